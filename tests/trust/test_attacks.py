"""Rows 6 to 15 of the fault matrix, as far as they concern metadata: each attack, and what is left of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tests.trust.simulator import (
    DAY,
    DEVICE,
    OTHER,
    START,
    Publisher,
    artifact,
    forged,
    named,
    path_of,
    rechained,
    refused,
    strange_signer,
    versions,
)

from edgec.errors import TrustError
from edgec.trust import generate_key, rotate
from edgec.trust._tuf import Metadata

# Each makes a repository of its own; together they take a quarter of a minute.
pytestmark = pytest.mark.slow

OWN = f"director/{DEVICE}"
CHAIN = ("timestamp", "snapshot", "targets")
FOLDERS = ("image", OWN)
HUGE = 2**63
# Who signs what, as the simulator's publisher has it.
SIGNERS = {
    "image": {"timestamp": ["online"], "snapshot": ["online"], "targets": ["targets-1", "targets-2"]},
    OWN: {role: ["director"] for role in CHAIN},
}


def reassign(publisher: Publisher, version: str, device: str = DEVICE) -> None:
    publisher.director.assign(device, {"tiny": path_of(version)})


def stolen(publisher: Publisher, folder: str, *roles: str) -> dict[str, list[Any]]:
    return {role: publisher.signers(*SIGNERS[folder][role]) for role in roles or CHAIN}


# Row 7: wrong key, unsigned, under the threshold, duplicate key ids


@pytest.mark.parametrize(("folder", "role"), [*itertools.product(FOLDERS, CHAIN)])
@pytest.mark.parametrize("attack", ["wrong key", "unsigned"])
def test_row_07_wrong_key_and_unsigned(
    publisher: Publisher, tmp_path: Path, folder: str, role: str, attack: str
) -> None:
    device = publisher.device(tmp_path / "device")
    signers = stolen(publisher, folder, *CHAIN[: CHAIN.index(role)])
    signers[role] = [strange_signer()] if attack == "wrong key" else []
    refused(device, rechained(publisher.files(), folder, signers, {}), "signature")
    assert versions(device.update(publisher.repo)) == ["1"]


def test_row_07_under_the_threshold(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    signers = {**stolen(publisher, "image"), "targets": publisher.signers("targets-1")}
    refused(device, rechained(publisher.files(), "image", signers, {}), "signature")


def test_row_07_one_signature_twice_is_one(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    (signer,) = publisher.signers("targets-1")

    def twice(files: dict[str, bytes]) -> bytes:
        data = forged(files[named(files, "image", "targets")], [signer])
        begin = data.index(b'{"keyid"')
        end = data.index(b"}", begin) + 1
        return data[:end] + b"," + data[begin:]

    files = publisher.files()
    files[named(files, "image", "targets")] = twice(files)
    # The snapshot pins the file as it was; with the online key stolen too, tuf finds the repetition.
    refused(device, files, "digest", "malformed")


def test_row_07_one_key_under_two_ids_is_one(publisher: Publisher, tmp_path: Path) -> None:
    root = publisher.image.root
    key = root.keys[root.roles["targets"].keyids[0]]
    again = type(key)("f" * 64, key.keytype, key.scheme, key.keyval)
    plan = {role: ([root.keys[i] for i in r.keyids], r.threshold) for role, r in root.roles.items()}
    with pytest.raises(TrustError, match="2 signatures of targets were asked for, of 1 different keys"):
        publisher.image.stage_root({**plan, "targets": ([key, again], 2)})


def test_row_07_a_new_root_needs_the_old_and_the_new_keys(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    files = publisher.files()

    def take_over(signed: Any) -> None:
        signed.version = 2
        mine = thief.public_key
        signed.keys[mine.keyid] = mine
        for role in signed.roles.values():
            role.keyids, role.threshold = [mine.keyid], 1

    thief = strange_signer()
    for signers in ([thief], [thief, *publisher.signers("root-1")]):
        files["image/2.root.json"] = forged(files["image/1.root.json"], signers, take_over)
        refused(device, files, "signature")
    assert versions(device.update(publisher.repo)) == ["1"]


# Row 9: frozen and expired


@pytest.mark.parametrize(("folder", "role"), [*itertools.product(FOLDERS, CHAIN), ("image", "model.tiny")])
def test_row_09_each_role_expires(publisher: Publisher, tmp_path: Path, folder: str, role: str) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)

    def age(signed: Any) -> None:
        signed.expires = signed.expires.replace(year=2026, month=1, day=2)

    if role == "model.tiny":
        publisher.lifetimes = type(publisher.lifetimes)(targets=1)
        publisher.image.stage_again(role)
        publisher.image.release()
        files = publisher.files()
    else:
        files = rechained(publisher.files(), folder, stolen(publisher, folder), {role: age})
    publisher.clock.now = START + 2 * DAY
    error = refused(device, files, "expired")
    assert "2026-01-03" in str(error)


@pytest.mark.parametrize("kind", ["image", "director"])
def test_row_09_an_expired_root_refuses_what_is_new(publisher: Publisher, tmp_path: Path, kind: str) -> None:
    device = publisher.device(tmp_path / "device")
    publisher.clock.now = START + 366 * DAY
    publisher.image.stage_again("targets")
    publisher.image.stage_again("model.tiny")
    publisher.image.release(renew=True)
    publisher.director.renew(DEVICE)
    refused(device, publisher.repo, "expired")
    rotate(*publisher.open())
    publisher.image.release()
    publisher.director.release()
    assert versions(device.update(publisher.repo)) == ["1"]


def test_row_09_frozen_for_30_days_and_healed(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    assigned = device.update(publisher.repo).targets[0]
    frozen = publisher.files()
    reassign(publisher, "2")
    publisher.clock.now = START + 15 * DAY
    assert versions(device.update(frozen)) == ["1"]
    assert device.stale_since is None
    publisher.clock.now = START + 31 * DAY
    assert "stale since 2026-01-31" in str(refused(device, frozen, "expired"))
    assert device.stale_since == START + 30 * DAY
    with pytest.raises(TrustError, match="stale since"):
        device.recheck(assigned)
    publisher.image.release(renew=True)
    publisher.director.renew(DEVICE)
    assert versions(device.update(publisher.repo)) == ["2"]
    assert device.stale_since is None


# Row 10: rollback of metadata, and the rollback that is wanted


@pytest.mark.parametrize("source", ["cache", "lost cache"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_row_10_older_metadata_is_refused(
    publisher: Publisher, tmp_path: Path, folder: str, source: str
) -> None:
    device = publisher.device(tmp_path / "device")
    old = publisher.files()
    reassign(publisher, "2")
    publisher.publish("3")
    device.update(publisher.repo)
    if source == "lost cache":
        (tmp_path / "device" / "metadata.json").write_bytes(b"garbage")
        device = publisher.device(tmp_path / "device")
        assert device.healed == ("metadata.json",)
    mixed = {
        name: (old if name.startswith(folder) else publisher.files()).get(name, data)
        for name, data in publisher.files().items()
    }
    refused(device, mixed, "rollback")
    assert versions(device.update(publisher.repo)) == ["2"]


@pytest.mark.parametrize("role", ["snapshot", "targets"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_row_10_a_stolen_online_key_cannot_lower_versions(
    publisher: Publisher, tmp_path: Path, folder: str, role: str
) -> None:
    device = publisher.device(tmp_path / "device")
    reassign(publisher, "2")
    publisher.image.stage_again("targets")
    publisher.image.release()
    device.update(publisher.repo)

    def sink(signed: Any) -> None:
        signed.version -= 2

    files = rechained(publisher.files(), folder, stolen(publisher, folder), {role: sink})
    refused(device, files, "rollback")


def test_row_10_a_role_cannot_be_removed(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)

    def forget(signed: Any) -> None:
        del signed.meta["model.tiny.json"]

    signers = stolen(publisher, "image", "snapshot", "timestamp")
    refused(device, rechained(publisher.files(), "image", signers, {"snapshot": forget}), "malformed")


def test_row_10_an_incident_rollback_is_a_new_epoch(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    seen = []
    for version in ("1", "2", "1", "2"):
        reassign(publisher, version)
        assignment = device.update(publisher.repo)
        seen.append((assignment.epoch, versions(assignment)))
    assert seen == [(1, ["1"]), (2, ["2"]), (3, ["1"]), (4, ["2"])]


@pytest.mark.parametrize("epoch", [1, 2])
def test_row_10_an_epoch_neither_sinks_nor_changes(publisher: Publisher, tmp_path: Path, epoch: int) -> None:
    device = publisher.device(tmp_path / "device")
    reassign(publisher, "2")
    device.update(publisher.repo)

    def rewrite(signed: Any) -> None:
        signed.unrecognized_fields["x-edgec"]["epoch"] = epoch
        old = Metadata.from_bytes(first).signed
        signed.targets = old.targets

    first = publisher.files()[f"{OWN}/1.targets.json"]
    files = rechained(publisher.files(), OWN, stolen(publisher, OWN), {"targets": rewrite})
    refused(device, files, "epoch")


# Row 11: fast-forward


@pytest.mark.parametrize("role", CHAIN)
@pytest.mark.parametrize(("folder", "key"), [("image", "online"), (OWN, "director")])
def test_row_11_fast_forward_is_healed_by_new_keys(
    publisher: Publisher, tmp_path: Path, folder: str, key: str, role: str
) -> None:
    device = publisher.device(tmp_path / "device")

    def forward(signed: Any) -> None:
        signed.version = HUGE

    device.update(rechained(publisher.files(), folder, stolen(publisher, folder), {role: forward}))
    for version in ("2", "1", "2"):
        reassign(publisher, version)
    if role != "targets" or folder == OWN:
        refused(device, publisher.repo, "rollback")
    added = generate_key(publisher.keys_folder, f"{key}-2", key)
    ring = publisher.ring()
    rotate(*publisher.open(ring), retire=[ring.named(key)], add=[added])
    publisher.image.release()
    publisher.director.release()
    assert versions(device.update(publisher.repo)) == ["2"]
    # The new key's numbers are not held against the thief's.
    reassign(publisher, "1")
    publisher.image.release(renew=True)
    assert versions(device.update(publisher.repo)) == ["1"]


def test_row_11_an_epoch_of_a_stolen_key_is_forgotten_with_it(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")

    def last_epoch(signed: Any) -> None:
        signed.unrecognized_fields["x-edgec"]["epoch"] = HUGE

    device.update(rechained(publisher.files(), OWN, stolen(publisher, OWN), {"targets": last_epoch}))
    added = generate_key(publisher.keys_folder, "director-2", "director")
    ring = publisher.ring()
    rotate(*publisher.open(ring), retire=[ring.named("director")], add=[added])
    publisher.director.release()
    reassign(publisher, "2")
    assert device.update(publisher.repo).epoch == 2
    reassign(publisher, "1")
    assert device.update(publisher.repo).epoch == 3


# Row 12: mix and match


def test_row_12_no_mixture_of_two_states_is_believed(publisher: Publisher, tmp_path: Path) -> None:
    old = publisher.files()
    reassign(publisher, "2")
    publisher.publish("3")
    new = publisher.files()
    roles = [(folder, role) for folder in FOLDERS for role in CHAIN]
    allowed = [old, new]
    for number, choice in enumerate(itertools.product((0, 1), repeat=len(roles))):
        if number % 7 and number not in (0, 63):
            continue  # Every seventh of 64: each role is old and new, beside others that are not.
        files = {name: data for name, data in new.items() if "root" in name or "model" in name}
        for (folder, role), which in zip(roles, choice, strict=True):
            source = named(allowed[which], folder, role)
            # The file that a reader asks for next is named by the one before it.
            files[named(new, folder, role)] = allowed[which][source]
        device = publisher.device(tmp_path / f"device-{number}")
        consistent = len(set(choice[:3])) == len(set(choice[3:])) == 1
        try:
            assigned = versions(device.update(files))
        except TrustError:
            assert number != 63
        else:
            assert consistent, choice
            assert assigned in (["1"], ["2"])


# Row 13: another file, another device, other hardware


@pytest.mark.parametrize(
    ("field", "reason"),
    [("length", "mismatch"), ("hash", "mismatch"), ("name", "unknown_target"), ("model", "mismatch")],
)
def test_row_13_substituted_targets(publisher: Publisher, tmp_path: Path, field: str, reason: str) -> None:
    device = publisher.device(tmp_path / "device")
    before = versions(device.update(publisher.repo))

    def substitute(signed: Any) -> None:
        (entry,) = signed.targets.values()
        signed.unrecognized_fields["x-edgec"]["epoch"] += 1
        if field == "length":
            entry.length += 1
        elif field == "hash":
            entry.hashes["sha256"] = "0" * 64
        elif field == "name":
            entry.path = "tiny/evil-1-cpu-x86_64.edgec"
            signed.targets = {entry.path: entry}
        else:
            entry.unrecognized_fields["custom"]["model"] = "other"

    files = rechained(publisher.files(), OWN, stolen(publisher, OWN), {"targets": substitute})
    refused(device, files, reason)
    assert versions(device.update(publisher.repo)) == before


def test_row_13_metadata_of_another_device_does_no_harm(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    for version in ("2", "1", "2", "1"):
        reassign(publisher, version, OTHER)
    others = {name: data for name, data in publisher.files().items() if DEVICE not in name}
    replayed = {name.replace(OTHER, DEVICE): data for name, data in others.items()}
    for role in CHAIN:
        assert named(replayed, OWN, role)
    refused(device, replayed, "device")
    # Its higher numbers are not remembered as this device's own.
    reassign(publisher, "2")
    assert versions(device.update(publisher.repo)) == ["2"]


def test_row_13_hardware_of_another_class(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device", hardware={"rpi5", "cpu-arm64"})
    error = refused(device, publisher.repo, "hardware")
    assert "runs on cpu-x86_64, and this device is cpu-arm64, rpi5" in str(error)


def test_row_13_the_roots_do_not_stand_in_for_each_other(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    added = generate_key(publisher.keys_folder, "director-2", "director")
    ring = publisher.ring()
    rotate(*publisher.open(ring), retire=[ring.named("director")], add=[added])
    publisher.director.release()
    files = publisher.files()
    # Signed by the same people, with the next number, and it would hand the catalogue to the director.
    files["image/2.root.json"] = files["director/2.root.json"]
    refused(device, files, "repository")
    assert versions(device.update(publisher.repo)) == ["1"]


# Row 14: revoked in the midst of an update


@pytest.mark.parametrize("how", ["delegation", "artifact", "assignment", "floor"])
def test_row_14_revoked_before_installation(publisher: Publisher, tmp_path: Path, how: str) -> None:
    device = publisher.device(tmp_path / "device")
    assigned = device.update(publisher.repo).targets[0]
    assert device.recheck(assigned) == assigned
    assert device.recheck(assigned, publisher.repo) == assigned
    image = publisher.image
    if how == "delegation":
        image.revoke("tiny")
    elif how == "artifact":
        image.withdraw(assigned.path)
    elif how == "floor":
        image.set_rollback_floor("tiny", "2")
    else:
        reassign(publisher, "2")
    image.release()
    with pytest.raises(TrustError) as caught:
        device.recheck(assigned, publisher.repo)
    expected = {"delegation": "unknown_target", "artifact": "unknown_target", "floor": "rollback_floor"}
    assert caught.value.reason == expected.get(how, "revoked")


def test_row_14_a_revoked_key_stays_revoked_where_its_metadata_is_replayed(
    publisher: Publisher, tmp_path: Path
) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    added = generate_key(publisher.keys_folder, "online-2", "online")
    ring = publisher.ring()
    rotate(*publisher.open(ring), retire=[ring.named("online")], add=[added])
    publisher.image.release()
    newest = publisher.files()
    thief = publisher.signers("online")
    forgery = rechained(newest, "image", {"snapshot": thief, "timestamp": thief}, {})
    # The new root is seen beside the forgery, and then hidden.
    refused(device, forgery, "signature")
    del forgery["image/2.root.json"]
    refused(device, forgery, "signature")
    again = publisher.device(tmp_path / "device")
    refused(again, forgery, "signature")
    assert versions(again.update(newest)) == ["1"]


# Row 15: clocks


@pytest.mark.parametrize("clock", [0.0, -5.0, START - 20 * 365 * DAY, float("nan")])
def test_row_15_a_clock_in_the_past_revives_nothing(
    publisher: Publisher, tmp_path: Path, clock: float
) -> None:
    frozen = publisher.files()
    device = publisher.device(tmp_path / "device")
    publisher.clock.now = START + 40 * DAY
    publisher.image.release(renew=True)
    publisher.director.renew(DEVICE)
    device.update(publisher.repo)
    floor = device.time_floor
    assert floor == START + 40 * DAY
    publisher.clock.now = clock
    again = publisher.device(tmp_path / "device")
    assert again.now() == again.time_floor == floor
    refused(again, frozen, "rollback", "expired")
    publisher.clock.now = START + 75 * DAY
    fresh = publisher.director.renew(DEVICE)
    publisher.image.release(renew=True)
    renewed = publisher.files()
    assert fresh.epoch == 1
    publisher.clock.now = clock
    assert versions(again.update(renewed)) == ["1"]
    assert again.time_floor == START + 75 * DAY


def test_row_15_a_new_device_knows_when_it_was_made(publisher: Publisher, tmp_path: Path) -> None:
    publisher.clock.now = 0.0
    assert publisher.device(tmp_path / "device").now() == START


def test_row_15_a_clock_far_ahead_removes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    floor = device.time_floor
    publisher.clock.now = 4102444800.0  # 2100.
    refused(device, publisher.repo, "expired")
    assert device.time_floor == floor
    assert device.stale_since == START + 30 * DAY
    publisher.clock.now = START + DAY
    assert versions(device.update(publisher.repo)) == ["1"]


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_row_15_a_jump_in_the_midst(publisher: Publisher, tmp_path: Path, jump: float) -> None:
    class Jumping:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self) -> float:
            self.calls += 1
            return START + 7200 + (jump if self.calls > 2 else 0)

    device = publisher.device(tmp_path / "device", clock=Jumping())
    assert versions(device.update(publisher.repo)) == ["1"]
    assert versions(device.update(publisher.repo)) == ["1"]


def test_row_15_a_publisher_far_ahead_is_not_believed_for_ever(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    device.update(publisher.repo)
    real = publisher.clock.now
    publisher.clock.now = START + 3650 * DAY
    publisher.image.release(renew=True)
    publisher.director.renew(DEVICE)
    publisher.clock.now = real
    device.update(publisher.repo)
    assert device.time_floor == START + DAY


# A stolen director's key


def test_a_stolen_director_key_cannot_go_below_the_rollback_floor(
    publisher: Publisher, tmp_path: Path
) -> None:
    device = publisher.device(tmp_path / "device")
    before = publisher.files()
    image = publisher.image
    image.set_rollback_floor("tiny", "2")
    image.release()
    with pytest.raises(TrustError, match="below the rollback floor 2"):
        reassign(publisher, "1")
    reassign(publisher, "2")
    assert versions(device.update(publisher.repo)) == ["2"]

    def older(signed: Any) -> None:
        signed.unrecognized_fields["x-edgec"]["epoch"] += 1
        signed.targets = Metadata.from_bytes(before[f"{OWN}/1.targets.json"]).signed.targets

    files = rechained(publisher.files(), OWN, stolen(publisher, OWN), {"targets": older})
    error = refused(device, files, "rollback_floor")
    assert "releases below 2 must not be installed any more" in str(error)


def test_a_stolen_director_key_cannot_bring_an_artifact_of_its_own(
    publisher: Publisher, tmp_path: Path
) -> None:
    device = publisher.device(tmp_path / "device")
    evil = artifact(tmp_path / "evil.edgec", "9")

    def add(signed: Any) -> None:
        (entry,) = signed.targets.values()
        entry.path, entry.length = path_of("9"), evil.stat().st_size
        signed.targets = {entry.path: entry}

    files = rechained(publisher.files(), OWN, stolen(publisher, OWN), {"targets": add})
    refused(device, files, "unknown_target")


def test_two_artifacts_for_one_model_are_refused(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    reassign(publisher, "2")

    def both(signed: Any) -> None:
        signed.targets.update(Metadata.from_bytes(first).signed.targets)

    first = publisher.files()[f"{OWN}/1.targets.json"]
    refused(device, rechained(publisher.files(), OWN, stolen(publisher, OWN), {"targets": both}), "malformed")
