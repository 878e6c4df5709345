"""What publishers sign: safe to stop anywhere, signed by as many people as it takes, provable afterwards."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.artifact.forge import ENVIRONMENT
from tests.trust.simulator import DAY, DEVICE, START, Publisher, artifact, path_of, refused, versions

from edgec.artifact import Artifact, pack
from edgec.errors import ArtifactError, OutputError, TrustError
from edgec.trust import (
    DeltaFile,
    KeyRing,
    generate_key,
    open_repositories,
    repository_status,
    rotate,
    verify_provenance,
)
from edgec.trust._repository import SignedRepository

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """The process ends here."""


def test_keys_are_private_encrypted_and_never_replaced(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "keys", "root-1", "root", passphrase=b"secret")
    generate_key(tmp_path / "keys", "online", "online")
    path = tmp_path / "keys/root-1.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    with pytest.raises(OutputError, match="a key is never replaced"):
        generate_key(tmp_path / "keys", "root-1", "root")
    for knows, said in (
        (lambda _: None, "encrypted: give its passphrase"),
        (lambda _: b"wrong", "cannot be read"),
    ):
        with pytest.raises(TrustError, match=said):
            KeyRing([tmp_path / "keys"], knows).signers([key.keyid])
    (signer,) = KeyRing([tmp_path / "keys"], lambda _: b"secret").signers([key.keyid])
    assert signer.public_key.keyid == key.keyid


def test_a_second_person_signs_later_and_elsewhere(publisher: Publisher, tmp_path: Path) -> None:
    """The first has the online keys and one of two targets keys; the second has the other alone."""
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    os.renames(publisher.keys_folder, first)
    for name in ("targets-2.pem", "targets-2.pub"):
        os.rename(first / name, second / name)
    (first / "targets-2.pub").write_bytes((second / "targets-2.pub").read_bytes())
    image, _ = publisher.open(publisher.ring(first))
    target = image.publish(artifact(tmp_path / "3.edgec", "3"))
    assert image.release() == []
    assert target.path not in image.targets()
    state = image.waiting()["model.tiny"]
    assert (state.needed, state.signed, state.missing, state.complete) == (
        2,
        ("targets-1",),
        ("targets-2",),
        False,
    )
    elsewhere, _ = publisher.open(publisher.ring(second))
    assert elsewhere.sign_staged() == ["model.tiny"]
    assert image.release() == ["model.tiny"]
    assert image.targets()[target.path] == target


@pytest.mark.slow
def test_row_01_publishing_can_be_stopped_at_every_write(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0
    write = SignedRepository._write

    def counted(self: SignedRepository, file: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        write(self, file, data)

    monkeypatch.setattr(SignedRepository, "_write", counted)
    stops = 0
    for number, version in enumerate(map(str, range(3, 40)), start=1):
        publisher.clock.now += 60
        left = number
        try:
            publisher.publish(version)
            publisher.director.assign(DEVICE, {"tiny": path_of(version)})
        except Killed:
            stops += 1
        else:
            break
        left = 10**6
        device = publisher.device(tmp_path / f"device-{number}")
        assert len(device.update(publisher.repo).targets) == 1
        publisher.publish(version)
        publisher.director.assign(DEVICE, {"tiny": path_of(version)})
        assert versions(device.update(publisher.repo)) == [version]
    assert stops >= 8


@pytest.mark.slow
def test_row_01_publishing_can_be_killed_at_any_time(publisher: Publisher, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.trust.simulator import DEVICE, Publisher, path_of
publisher = Publisher(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[2]), 10**6):
    publisher.clock.now += 1
    publisher.publish(str(number))
    publisher.director.assign(DEVICE, {"tiny": path_of(str(number))})
"""
    device = publisher.device(tmp_path / "device")
    for number in range(5):
        arguments = [sys.executable, "-c", code, str(publisher.folder), str(100 + 1000 * number)]
        process = subprocess.Popen(arguments, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.07 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(device.update(publisher.repo).targets) == 1
    publisher.publish("99999")


def test_a_damaged_artifact_is_not_published(publisher: Publisher, tmp_path: Path) -> None:
    path = artifact(tmp_path / "3.edgec", "3")
    data = bytearray(path.read_bytes())
    data[data.index(b"tiny 3")] ^= 1
    path.write_bytes(data)
    before = publisher.files()
    with pytest.raises(ArtifactError):
        publisher.image.publish(path)
    assert publisher.files() == before


def test_a_version_is_published_once(publisher: Publisher, tmp_path: Path) -> None:
    image = publisher.image
    before = publisher.files()
    again = image.publish(publisher.folder / "1.edgec")
    assert (again.release, image.release()) == (1, [])
    assert publisher.files() == before
    other = artifact(tmp_path / "other.edgec", "1", target="cpu-arm64")
    assert image.publish(other).release == 1
    with pytest.raises(TrustError, match="cannot be the name of a file"):
        image.publish(artifact(tmp_path / "evil.edgec", "../../etc"))
    with pytest.raises(TrustError, match="published already with other content"):
        image.publish(changed_artifact(tmp_path / "changed.edgec"))


def changed_artifact(path: Path) -> Path:
    """Pack version 1 again with a weight more."""
    with Artifact.open(artifact(path, "1")) as opened:
        manifest = opened.manifest
    return pack(path, manifest, {"model.onnx": b"other weights"})


def test_provenance_is_signed_and_about_this_file(publisher: Publisher) -> None:
    image = publisher.image
    role = image.role("model.tiny").signed
    entry = role.targets[f"{path_of('1')}.intoto.json"]
    sha256 = entry.hashes["sha256"]
    data = (publisher.repo / f"targets/tiny/{sha256}.tiny-1-cpu-x86_64.edgec.intoto.json").read_bytes()
    target = image.targets()[path_of("1")]
    keys = [key.key for key in publisher.ring().of_role("targets")]
    statement = verify_provenance(data, target.sha256, keys)
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"model": "tiny", "version": "1", "target": "cpu-x86_64"}
    assert definition["internalParameters"]["manifest"] == {"tool": "test"}
    with pytest.raises(TrustError, match="about another file"):
        verify_provenance(data, "0" * 64, keys)
    with pytest.raises(TrustError, match="not signed"):
        verify_provenance(data, target.sha256, [key.key for key in publisher.ring().of_role("root")])
    envelope = json.loads(data)
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    with pytest.raises(TrustError):
        verify_provenance(json.dumps(envelope).encode(), target.sha256, keys)


def test_deltas_travel_with_what_they_lead_to(publisher: Publisher, tmp_path: Path) -> None:
    image = publisher.image
    old = image.targets()[path_of("2")]
    (tmp_path / "patch").write_bytes(b"a patch")
    (tmp_path / "chunks").write_bytes(b"a map")
    image.publish(
        artifact(tmp_path / "3.edgec", "3"),
        chunks=tmp_path / "chunks",
        deltas=[DeltaFile(from_sha256=old.sha256, path=tmp_path / "patch", method="planes")],
    )
    image.release()
    publisher.director.assign(DEVICE, {"tiny": path_of("3")})
    (target,) = publisher.device(tmp_path / "device").update(publisher.repo).targets
    (delta,) = target.custom.deltas
    assert (delta.from_sha256, delta.length, delta.method) == (old.sha256, 7, "planes")
    assert (publisher.repo / delta.path).read_bytes() == b"a patch"
    assert target.custom.chunks is not None
    assert (publisher.repo / target.custom.chunks.path).read_bytes() == b"a map"


def test_a_model_can_be_signed_by_a_team_of_its_own(publisher: Publisher, tmp_path: Path) -> None:
    generate_key(publisher.keys_folder, "team", "targets")
    image = publisher.image
    image.delegate("tiny", ["team"])
    image.stage_again("model.tiny")
    image.release()
    state = image.signatures("model.tiny", image.role("model.tiny"))
    assert (state.signed, state.needed) == (("team",), 1)
    assert versions(publisher.device(tmp_path / "device").update(publisher.repo)) == ["1"]


def test_what_was_revoked_does_not_come_back_with_the_next_version(publisher: Publisher) -> None:
    image = publisher.image
    image.revoke("tiny")
    image.release()
    assert image.targets() == {}
    publisher.publish("3")
    assert list(image.targets()) == [path_of("3")]


def test_an_assignment_is_checked_before_it_is_signed(publisher: Publisher) -> None:
    director = publisher.director
    before = publisher.files()
    with pytest.raises(TrustError, match=r"tiny-9.* is not in force for model tiny") as caught:
        director.assign(DEVICE, {"tiny": path_of("9")}, hardware={"rpi5"})
    assert caught.value.reason == "assignment"
    with pytest.raises(TrustError, match="runs on cpu-x86_64, not on rpi5"):
        director.assign(DEVICE, {"tiny": path_of("2")}, hardware={"rpi5"})
    with pytest.raises(TrustError, match="is not in force for model other"):
        director.assign(DEVICE, {"other": path_of("2")})
    with pytest.raises(TrustError, match="1 to 64 letters"):
        director.assign("../evil", {})
    assert publisher.files() == before
    assert director.assign(DEVICE, {"tiny": path_of("1")}).epoch == 1


def test_a_rollback_floor_never_sinks(publisher: Publisher) -> None:
    image = publisher.image
    assert image.set_rollback_floor("tiny", "2") == 2
    with pytest.raises(TrustError, match="never sinks"):
        image.set_rollback_floor("tiny", "1")
    image.release()
    publisher.publish("3")
    assert {target.rollback_floor for target in image.targets().values()} == {2}


def test_too_few_keys_are_said(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="has an image repository already"):
        publisher.image.initialise()
    ring = publisher.ring()
    with pytest.raises(TrustError, match="1 keys would be left for targets, 2 must sign"):
        rotate(*publisher.open(ring), retire=[ring.named("targets-1")])
    fresh, _ = open_repositories(tmp_path / "fresh", ring)
    with pytest.raises(TrustError, match="4 signatures of root were asked for, of 3"):
        fresh.initialise(root_threshold=4)
    assert fresh.staged() == {}


def test_only_one_process_writes(publisher: Publisher) -> None:
    with (
        publisher.image.locked(),
        pytest.raises(OutputError, match="another process"),
        publisher.image.locked(),
    ):
        raise AssertionError("two writers")


@pytest.mark.slow
def test_root_keys_are_replaced_by_old_and_new_together(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    for number in (4, 5, 6):
        added = generate_key(publisher.keys_folder, f"root-{number}", "root")
        ring = publisher.ring()
        rotate(*publisher.open(ring), retire=[ring.named(f"root-{number - 3}")], add=[added])
        (publisher.keys_folder / f"root-{number - 3}.pem").rename(tmp_path / f"root-{number - 3}.pem")
        image, director = publisher.open()
        assert image.release() == director.release() == ["root"]
    assert image.root.version == director.root.version == 4
    publisher.publish("3")
    publisher.director.assign(DEVICE, {"tiny": path_of("3")})
    # One that slept through all of it follows the chain, also in one message.
    assert versions(device.update(publisher.director.bundle(DEVICE).metadata)) == ["3"]


def test_status_says_what_is_due(publisher: Publisher) -> None:
    found = repository_status(*publisher.open())
    assert found.due == ()
    assert found.models == {"tiny": 2}
    assert found.devices[DEVICE] == (1, START + 30 * DAY)
    assert {(role.repository, role.role, role.signed) for role in found.roles if role.role == "root"} == {
        (kind, "root", ("root-1", "root-2", "root-3")) for kind in ("image", "director")
    }
    publisher.clock.now += 20 * DAY
    soon = repository_status(*publisher.open())
    assert [due.overdue for due in soon.due] == [False] * 3
    publisher.clock.now += 11 * DAY
    late = repository_status(*publisher.open())
    assert [due.overdue for due in late.due] == [True] * 3
    assert "edgec repo renew" in late.due[0].what
    publisher.image.set_rollback_floor("tiny", "1")
    assert "signed and not in force" in repository_status(*publisher.open()).due[0].what


def test_old_versions_go_and_recent_ones_stay(publisher: Publisher) -> None:
    for _ in range(10):
        publisher.director.renew(DEVICE)
    left = sorted(path.name for path in (publisher.repo / "director" / DEVICE).glob("*.targets.json"))
    assert left == ["10.targets.json", "11.targets.json", "9.targets.json"]


def test_a_missing_online_key_is_said(publisher: Publisher) -> None:
    for name in ("online.pem", "director.pem"):
        (publisher.keys_folder / name).unlink()
    before = publisher.files()
    with pytest.raises(TrustError, match="role 'online'"):
        publisher.image.release(renew=True)
    with pytest.raises(TrustError, match="role 'director'"):
        publisher.director.assign(DEVICE, {"tiny": path_of("2")})
    assert publisher.files() == before


def test_a_bundle_that_fits_no_message_is_refused(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.trust._director.MAX_BUNDLE_BYTES", 4000)
    with pytest.raises(TrustError, match="4000 fit into a message") as caught:
        publisher.director.bundle(DEVICE)
    assert caught.value.reason == "too_large"


def test_a_withdrawn_artifact_is_no_longer_sent(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    image = publisher.image
    image.withdraw(path_of("1"))
    image.release()
    with pytest.raises(TrustError, match="which was withdrawn"):
        publisher.director.bundle(DEVICE)
    refused(device, publisher.repo, "unknown_target")
