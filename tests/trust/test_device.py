"""What a device believes, where it comes from, and what survives on its disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.trust.simulator import DAY, DEVICE, OTHER, START, Clock, Publisher, path_of, refused, versions

from edgec.errors import TrustError
from edgec.trust import DeviceTrust, bundle_files


def test_the_same_bytes_from_anywhere_say_the_same(publisher: Publisher, tmp_path: Path) -> None:
    bundle = publisher.director.bundle(DEVICE)
    device = publisher.device(tmp_path / "device")
    from_directory = device.update(publisher.repo)
    assert device.update(bundle.metadata) == from_directory
    assert publisher.device(tmp_path / "second").update(bundle.metadata) == from_directory
    (target,) = from_directory.targets
    assert (from_directory.epoch, target.model, target.path) == (1, "tiny", path_of("1"))
    assert target.location == f"targets/tiny/{target.sha256}.tiny-1-cpu-x86_64.edgec"
    assert (publisher.repo / target.location).stat().st_size == target.length
    assert from_directory.expires == START + 30 * DAY
    director, image = bundle.texts()
    assert not any("/" in name for name in (*director, *image))
    assert bundle_files(DEVICE, director, image) == bundle.metadata
    # What a message says is what the metadata proves.
    assert (bundle.epoch, bundle.targets["tiny"]) == (1, target.custom)
    assert bundle.size_bytes < 8 * 1024


def test_nothing_is_written_where_nothing_is_new(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "device").iterdir()}
    assert {path.name for path in files} == {"metadata.json", "floors.json", "floors.copy.json"}
    device.update(publisher.repo)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "device").iterdir()} == files


def test_what_is_known_survives_a_restart(publisher: Publisher, tmp_path: Path) -> None:
    assigned = publisher.device(tmp_path / "device").update(publisher.repo).targets[0]
    again = publisher.device(tmp_path / "device")
    assert (again.epoch, again.healed) == (1, ())
    assert again.recheck(assigned) == assigned


def test_what_was_verified_is_not_verified_again_until_it_expires(
    publisher: Publisher, tmp_path: Path
) -> None:
    """Without its scratch folder no metadata can be verified."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    device = publisher.device(tmp_path / "device", scratch=scratch)
    assignment = device.update(publisher.repo)
    scratch.rmdir()
    assert device.known() == assignment
    assert device.recheck(assignment.targets[0]) == assignment.targets[0]
    publisher.clock.now = assignment.expires
    assert device.stale_since == assignment.expires
    scratch.mkdir()
    with pytest.raises(TrustError) as caught:
        device.recheck(assignment.targets[0])
    assert caught.value.reason == "expired"


def test_what_is_refused_leaves_what_was_verified(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    assignment = device.update(publisher.repo)
    publisher.director.assign(OTHER, {"tiny": path_of("2")})
    files = publisher.files()
    files[f"director/{DEVICE}/timestamp.json"] = files[f"director/{OTHER}/timestamp.json"]
    refused(device, files, "device", "digest", "not_found")
    assert device.known() == assignment


def test_only_what_the_director_signed_just_now_is_fresh(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    assert not device.is_fresh(60)
    device.update(publisher.repo)
    assert device.is_fresh(60)
    device.known()
    assert device.is_fresh(60)
    publisher.clock.now += 61
    assert not device.is_fresh(60)
    # A clock that is behind tells nothing.
    publisher.clock.now -= 600
    assert not device.is_fresh(60)


def test_what_was_kept_is_not_fresh_whatever_the_clock_says(publisher: Publisher, tmp_path: Path) -> None:
    """A device without a clock of its own starts with the time that it had at the power cut."""
    monotonic = Clock(0.0)
    files = publisher.files()
    publisher.device(tmp_path / "device").update(files)
    publisher.clock.now += DAY
    publisher.director.assign(DEVICE, {"tiny": path_of("2")})
    publisher.clock.now = START + 5
    again = publisher.device(tmp_path / "device", monotonic=monotonic)
    (target,) = again.known().targets
    assert not again.is_fresh(60)
    # Nor is the same message, which a broker may have kept.
    again.update(files)
    assert not again.is_fresh(60)
    with pytest.raises(TrustError) as caught:
        again.recheck(target, publisher.repo)
    assert caught.value.reason == "revoked"


def test_what_was_heard_ages_while_the_clock_stands(publisher: Publisher, tmp_path: Path) -> None:
    monotonic = Clock(0.0)
    device = publisher.device(tmp_path / "device", monotonic=monotonic)
    device.update(publisher.repo)
    monotonic.now += 60
    assert device.is_fresh(60)
    monotonic.now += 1
    assert not device.is_fresh(60)
    publisher.director.assign(DEVICE, {"tiny": path_of("2")})
    device.update(publisher.repo)
    assert device.is_fresh(60)


@pytest.mark.parametrize("damaged", ["metadata.json", "floors.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "nested"])
def test_a_damaged_file_heals_and_lowers_no_floor(
    publisher: Publisher, tmp_path: Path, damaged: str, damage: str
) -> None:
    old = publisher.files()
    publisher.director.assign(DEVICE, {"tiny": path_of("2")})
    publisher.device(tmp_path / "device").update(publisher.repo)
    path = tmp_path / "device" / damaged
    data = path.read_bytes()
    flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    broken = {"truncated": data[: len(data) // 2], "flipped": flipped, "empty": b"", "nested": b"[" * 10**5}
    path.write_bytes(broken[damage])
    device = publisher.device(tmp_path / "device")
    assert device.healed == (damaged,)
    assert device.epoch == 2
    refused(device, old, "rollback")
    assert versions(device.update(publisher.repo)) == ["2"]
    assert publisher.device(tmp_path / "device").healed == ()


def test_a_rejected_update_leaves_no_trace(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    files = publisher.files()
    files["image/timestamp.json"] = files["image/timestamp.json"].replace(b'"version":2', b'"version":3')
    refused(device, files, "signature")
    assert [path.name for path in (tmp_path / "device").iterdir()] == []


@pytest.mark.parametrize(
    "name", ["director/dev-1/timestamp.json", "image/timestamp.json", "image/2.targets.json"]
)
@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"", ("malformed", "digest")),
        (b"\xff\x00" * 50, ("malformed", "digest")),
        (b"{}", ("malformed", "digest")),
        (b"[]", ("malformed", "digest")),
        (b'{"signed": {"_type": "timestamp"}, "signatures": 5}', ("malformed", "digest")),
        (b'{"signed": {"_type": "root"}, "signatures": []}', ("malformed", "digest")),
        (b"[" * 10_000, ("malformed", "digest", "too_large")),
        (b"9" * 10_000, ("malformed", "digest", "too_large")),
        (b" " * 3_000_000, ("too_large",)),
    ],
    ids=["empty", "binary", "object", "list", "types", "other role", "deep", "number", "endless"],
)
@pytest.mark.slow
def test_row_06_garbage_and_endless_data(
    publisher: Publisher, tmp_path: Path, name: str, data: bytes, reasons: tuple[str, ...]
) -> None:
    device = publisher.device(tmp_path / "device")
    files = publisher.files()
    assert name in files
    refused(device, {**files, name: data}, *reasons)
    assert versions(device.update(files)) == ["1"]


def test_row_16_and_17_no_place_for_files(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device", scratch=tmp_path / "nowhere")
    refused(device, publisher.repo, "storage")
    (tmp_path / "nowhere").mkdir()
    assert versions(device.update(publisher.repo)) == ["1"]
    assert list((tmp_path / "nowhere").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrustError) as caught:
        publisher.device(tmp_path / "file" / "device")
    assert caught.value.reason == "storage"


@pytest.mark.slow
def test_row_16_a_disk_that_is_full_at_any_write(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each open for writing fails in turn; the device believes what it did, and goes on afterwards."""
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    real_open, left = os.open, 10**9

    def full(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        nonlocal left
        if flags & os.O_CREAT:
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(path, flags, *rest, **more)

    reasons = []
    for number in range(14):
        publisher.director.assign(DEVICE, {"tiny": path_of("12"[number % 2 - 1])})
        monkeypatch.setattr(os, "open", full)
        left = number
        try:
            device.update(publisher.repo)
        except TrustError as e:
            reasons.append(e.reason)
        finally:
            monkeypatch.undo()
        assert len(publisher.device(tmp_path / "device").update(publisher.repo).targets) == 1
    assert len(reasons) >= 3
    assert set(reasons) == {"storage"}


def test_a_file_that_is_missing_is_said(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device", "dev-9")
    assert "timestamp.json of the director repository is not there" in str(
        refused(device, publisher.repo, "not_found")
    )
    assert "is no directory" in str(refused(device, tmp_path / "nowhere", "unreachable"))


def test_a_device_needs_roots_of_the_right_repositories(publisher: Publisher, tmp_path: Path) -> None:
    image = publisher.root("image")
    with pytest.raises(TrustError, match="one never stands in for the other") as caught:
        DeviceTrust(tmp_path / "device", device_id=DEVICE, hardware=(), image_root=image, director_root=image)
    assert caught.value.reason == "repository"
    unsigned = json.loads(publisher.root("image"))
    unsigned["signatures"] = unsigned["signatures"][:1]
    with pytest.raises(TrustError, match="is not signed"):
        DeviceTrust(
            tmp_path / "device",
            device_id=DEVICE,
            hardware={"cpu-x86_64"},
            image_root=json.dumps(unsigned).encode(),
            director_root=publisher.root("director"),
        )


def test_many_devices_live_in_one_process(publisher: Publisher, tmp_path: Path) -> None:
    publisher.director.assign(OTHER, {"tiny": path_of("2")})
    first, second = publisher.device(tmp_path / "1"), publisher.device(tmp_path / "2", OTHER)
    assert versions(first.update(publisher.repo)) == ["1"]
    assert versions(second.update(publisher.repo)) == ["2"]


def test_a_device_that_is_to_run_nothing_is_told_so(publisher: Publisher, tmp_path: Path) -> None:
    publisher.director.assign(DEVICE, {})
    assert publisher.device(tmp_path / "device").update(publisher.repo).targets == ()
