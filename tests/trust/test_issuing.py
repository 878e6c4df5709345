"""Assignments signed many at once: devices believe them, and each other's trouble does not touch them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.trust.simulator import DAY, DEVICE, OTHER, START, Publisher, path_of, versions

from edgec.errors import TrustError
from edgec.trust import KeyRing, SignedWish, Wish, issue, open_repositories


def wish(device: str, epoch: int, version: str, **more: Any) -> Wish:
    return Wish(
        device=device, epoch=epoch, models={"tiny": path_of(version)}, hardware=("cpu-x86_64",), **more
    )


def signed(publisher: Publisher, *wishes: Wish) -> list[SignedWish]:
    issued = issue(publisher.director, wishes)
    assert not issued.keep()
    found = issued.made.values()
    assert all(isinstance(f, SignedWish) for f in found)
    return [f for f in found if isinstance(f, SignedWish)]


def test_a_device_believes_what_was_issued_with_the_epoch_of_the_caller(
    publisher: Publisher, tmp_path: Path
) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    first, second = signed(publisher, wish(DEVICE, 7, "2"), wish(OTHER, 9, "2"))
    assert (first.bundle.epoch, second.bundle.epoch, first.expires) == (7, 9, START + 30 * DAY)
    assert versions(device.update(first.bundle.metadata)) == ["2"]
    assert device.epoch == 7
    # Over HTTP it is the same, and another tool goes on from there.
    assert versions(publisher.device(tmp_path / "http").update(publisher.repo)) == ["2"]
    assert publisher.director.assign(DEVICE, {"tiny": path_of("1")}).epoch == 8
    assert versions(device.update(publisher.repo)) == ["1"]


def test_nothing_is_not_the_same_as_unknown(publisher: Publisher, tmp_path: Path) -> None:
    (none,) = signed(publisher, Wish(device=DEVICE, epoch=3, models={}))
    assert publisher.device(tmp_path / "device").update(none.bundle.metadata).targets == ()


def test_a_wish_that_cannot_be_leaves_the_others_alone(publisher: Publisher) -> None:
    npu = Wish(device="npu-1", epoch=1, models={"tiny": path_of("1")}, hardware=("npu",))
    issued = issue(publisher.director, [wish(DEVICE, 4, "9"), npu, wish(OTHER, 4, "2")])
    assert not issued.keep()
    found = issued.made
    reasons = {d: f.reason for d, f in found.items() if isinstance(f, TrustError)}
    assert reasons == {DEVICE: "assignment", "npu-1": "assignment"}
    assert publisher.director.assigned(OTHER) == (4, {"tiny": path_of("2")})
    assert publisher.director.assigned(DEVICE) == (1, {"tiny": path_of("1")})


def test_row_21_a_restored_backup_of_files_and_books_repeats_no_version(
    publisher: Publisher, tmp_path: Path
) -> None:
    device = publisher.device(tmp_path / "device")
    backup = publisher.files()
    for epoch in (2, 3, 4):
        (new,) = signed(publisher, wish(DEVICE, epoch, "2"))
        device.update(new.bundle.metadata)
    for name in publisher.files():
        (publisher.repo / name).unlink()
    for name, data in backup.items():
        (publisher.repo / name).write_bytes(data)
    publisher.clock.now += 60
    (after,) = signed(publisher, wish(DEVICE, 5, "1"))
    assert after.version > new.version
    assert versions(device.update(after.bundle.metadata)) == ["1"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 500])
def test_files_that_a_power_cut_damaged_are_made_again(
    publisher: Publisher, tmp_path: Path, damage: bytes
) -> None:
    device = publisher.device(tmp_path / "device")
    (before,) = signed(publisher, wish(DEVICE, 2, "2"))
    device.update(before.bundle.metadata)
    for path in (publisher.repo / "director" / DEVICE).glob("*.json"):
        path.write_bytes(damage)
    (again,) = signed(publisher, wish(DEVICE, 3, "1", after=before.version))
    assert again.version > before.version
    assert versions(device.update(publisher.repo)) == ["1"]


def test_old_files_go_and_what_is_asked_for_in_a_refresh_stays(publisher: Publisher) -> None:
    for epoch in range(2, 9):
        publisher.clock.now += 5
        signed(publisher, wish(DEVICE, epoch, "2"))
    names = sorted(path.name.partition(".")[2] for path in (publisher.repo / "director" / DEVICE).iterdir())
    assert names == ["json", *["snapshot.json"] * 3, *["targets.json"] * 3]


def test_without_the_key_nothing_is_issued(publisher: Publisher, tmp_path: Path) -> None:
    for path in publisher.keys_folder.glob("*.pub"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    _, director = open_repositories(publisher.repo, KeyRing((tmp_path,)), clock=publisher.clock)
    with pytest.raises(TrustError, match="'director' is not in"):
        issue(director, [wish(DEVICE, 2, "2")])


def test_where_files_of_a_device_cannot_be_written_the_others_are_told(publisher: Publisher) -> None:
    place = publisher.repo / "director" / OTHER
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("no directory")
    issued = issue(publisher.director, [wish(OTHER, 4, "2", after=1), wish(DEVICE, 4, "2")])
    assert all(isinstance(made, SignedWish) for made in issued.made.values())
    assert list(issued.keep()) == [OTHER]
    assert publisher.director.assigned(DEVICE) == (4, {"tiny": path_of("2")})


def test_a_full_disk_keeps_what_was_and_leaves_nothing(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(publisher.repo)

    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgec.trust._issuing.os.replace", replace)
    devices = [f"dev-{number}" for number in range(1, 40)]
    issued = issue(publisher.director, [wish(device, 4, "2", after=1) for device in devices])
    assert {type(made) for made in issued.made.values()} == {SignedWish}
    assert files_of(publisher.repo) == before
    assert sorted(issued.keep()) == sorted(devices)
    assert files_of(publisher.repo) == before


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
