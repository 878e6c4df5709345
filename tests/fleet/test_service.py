"""A fleet opens from a directory: what is missing is made once, whole, and never twice."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="a fleet needs the extra 'fleet'")
pytest.importorskip("tuf", reason="a fleet needs the extra 'agent'")

from edgec.errors import FleetError
from edgec.fleet.service import Fleet
from edgec.fleet.store import Claims, Store
from edgec.fleet.store._credentials import Request, digest
from edgec.fleet.store._schema import artifacts, hardware, releases

NOW = 1.8e9


def test_first_use_makes_keys_repositories_and_a_token(tmp_path: Path) -> None:
    with Fleet(tmp_path / "fleet", clock=lambda: NOW) as fleet:
        assert fleet.first is not None
        assert fleet.first.admin_token is not None
        assert any("root-1.pem" in line for line in fleet.first.advice)
        token = fleet.tokens.find(fleet.first.admin_token, NOW)
        assert token is not None
        assert token.role == "admin"
        for path in (tmp_path / "fleet/keys").glob("*.pem"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        keyids = {key.keyid for key in fleet.ring.keys}
        assert fleet.image.snapshot() is not None
        assert fleet.director.root_files()
    with Fleet(tmp_path / "fleet", clock=lambda: NOW) as again:
        assert again.first is None
        assert {key.keyid for key in again.ring.keys} == keyids


def test_a_token_that_nobody_used_is_replaced_at_each_start(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        first = fleet.first
    with Fleet(tmp_path) as fleet:
        assert first is not None
        assert first.admin_token is not None
        assert fleet.first is not None
        assert fleet.first.admin_token is not None
        assert fleet.tokens.find(first.admin_token, time.time()) is None
        assert fleet.tokens.find(fleet.first.admin_token, time.time()) is not None


@pytest.mark.parametrize("leftover", ["keys", "repo"])
def test_what_a_killed_start_left_half_is_made_anew(tmp_path: Path, leftover: str) -> None:
    half = tmp_path / f".{leftover}.partial"
    half.mkdir()
    (half / "root-1.pem").write_bytes(b"half a key")
    with Fleet(tmp_path) as fleet:
        assert fleet.director.root_files()
        assert not half.exists()


@pytest.mark.parametrize("lost", ["keys", "repo"])
def test_a_fleet_in_use_makes_no_other_keys(tmp_path: Path, lost: str) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.store.devices.enrol("cam-1", "cpu", now=NOW, actor="ann")
    os.rename(tmp_path / lost, tmp_path / "elsewhere")
    with pytest.raises(FleetError, match="backup") as caught:
        Fleet(tmp_path)
    assert caught.value.reason == "data"
    assert not (tmp_path / lost).exists()


def test_wake_calls_back_until_forgotten(tmp_path: Path) -> None:
    heard: list[str] = []
    with Fleet(tmp_path) as fleet:
        forget = fleet.on_wake(lambda: heard.append("first"))
        fleet.on_wake(lambda: heard.append("second"))
        fleet.wake()
        forget()
        forget()
        fleet.wake()
    assert heard == ["first", "second", "second"]


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from edgec.fleet.service import Fleet

for number, delay in enumerate(map(float, sys.argv[2:])):
    child = os.fork()
    if child == 0:
        Fleet(Path(sys.argv[1], str(number)))
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_killed_at_any_moment_of_the_first_start_the_next_goes_on(tmp_path: Path) -> None:
    delays = [str(number * 0.02) for number in range(10)]
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), *delays], check=True, timeout=300)
    for number in range(len(delays)):
        with Fleet(tmp_path / str(number)) as fleet:
            assert fleet.first is not None
            assert fleet.first.admin_token is not None
            assert len([token for token in fleet.tokens.all() if token.revoked_at is None]) == 1
            assert fleet.image.snapshot() is not None
            assert fleet.director.root_files()


# Claims


def _request(device: str = "cam-1", key: str = "key", hardware: tuple[str, ...] = ("rpi5", "cpu")) -> Request:
    return Request(device=device, hardware=hardware, kind="certificate", fingerprint=digest(key))


def _issue(serial: str = "01") -> Callable[[str], tuple[str, str, float | None]]:
    return lambda device: (serial, f"certificate {serial} of {device}", NOW + 1000)


def test_a_claim_lets_a_device_in_with_its_labels(store: Store) -> None:
    claims = Claims(store.database)
    made, secret = claims.create(now=NOW, actor="ann", labels={"site": "lab"}, hardware="acme")
    asked = _request(hardware=("rpi5", "acme"))
    given = claims.redeem(secret, asked, _issue(), now=NOW)
    device = store.devices.get("cam-1")
    assert (device.hardware, device.labels) == ("acme", {"site": "lab"})
    assert given.document == "certificate 01 of cam-1"
    assert claims.in_force(digest("key")) == given
    assert claims.ends(["cam-1", "cam-2"]) == {"cam-1": NOW + 1000}
    assert [claim.uses_left for claim in claims.all()] == [0]
    assert store.audit.verify()[0] == 3
    # The answer was lost: the same again, and no other certificate.
    assert claims.redeem(secret, asked, _issue("02"), now=NOW) == given
    with pytest.raises(FleetError, match="used already") as caught:
        claims.redeem(secret, _request("cam-2", "other"), _issue(), now=NOW)
    assert caught.value.reason == "claim"
    assert made.id in str(caught.value)


@pytest.mark.parametrize(
    ("options", "request_", "expected"),
    [
        ({"expires_at": NOW + 1}, _request(), "expired"),
        ({"hardware": "acme-2"}, _request(), "for hardware 'acme-2'"),
        ({"device": "cam-9"}, _request(), "for the device 'cam-9'"),
    ],
)
def test_a_claim_lets_no_other_device_in(
    store: Store, options: dict[str, object], request_: Request, expected: str
) -> None:
    claims = Claims(store.database)
    _, secret = claims.create(now=NOW, actor="ann", **options)  # type: ignore[arg-type]
    with pytest.raises(FleetError, match=expected):
        claims.redeem(secret, request_, _issue(), now=NOW + 2)
    with pytest.raises(FleetError, match="no such claim"):
        claims.redeem(secret + "x", request_, _issue(), now=NOW)
    assert store.devices.find() == []


@pytest.mark.parametrize(
    ("name", "meant"), [("jetson", "jetson-orin-nano-jp6"), ("cpu", "cpu-arm64 or cpu-x86_64")]
)
def test_a_claim_names_a_target_and_no_alias(store: Store, name: str, meant: str) -> None:
    with pytest.raises(FleetError, match=f"'{name}' is {meant}: say that") as caught:
        Claims(store.database).create(now=NOW, actor="ann", hardware=name)
    assert caught.value.reason == "invalid"


def test_hardware_is_known_by_its_artifacts_too(store: Store) -> None:
    claims = Claims(store.database)
    _, secret = claims.create(now=NOW, actor="ann")
    asked = replace(_request(hardware=("acme",)), targets=["rpi5"])
    with pytest.raises(FleetError, match="no hardware 'acme'") as caught:
        claims.redeem(secret, asked, _issue(), now=NOW)
    assert caught.value.reason == "invalid"
    artifact = {
        "sha256": "a" * 64, "model": "m", "version": "1", "number": 1, "target": "acme", "path": "m",
        "length": 1, "content_digest": "", "reference": {}, "uploaded_at": NOW, "uploaded_by": "ann",
    }  # fmt: skip
    with store.database.write() as connection:
        connection.execute(releases.insert(), {"model": "m", "version": "1", "number": 1, "created_at": NOW})
        connection.execute(artifacts.insert(), artifact)
        connection.execute(hardware.insert(), {"sha256": "a" * 64, "name": "acme", "model": "m", "number": 1})
    claims.redeem(secret, asked, _issue(), now=NOW)
    assert store.devices.get("cam-1").hardware == "acme"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jetson", "'jetson' is jetson-orin-nano-jp6: say that"),
        ("cpu", "'cpu' is cpu-arm64 or cpu-x86_64: say"),
    ],
)
def test_an_alias_is_told_from_a_mistake(store: Store, name: str, said: str) -> None:
    claims = Claims(store.database)
    _, secret = claims.create(now=NOW, actor="ann")
    with pytest.raises(FleetError, match=said) as caught:
        claims.redeem(secret, replace(_request(hardware=(name,)), targets=["rpi5"]), _issue(), now=NOW)
    assert "upload" not in str(caught.value)
    both = replace(_request(hardware=(name, "rpi55")), targets=["rpi5"])
    with pytest.raises(FleetError, match=r"no hardware 'rpi55' \(did you mean 'rpi5'\?\)") as caught:
        claims.redeem(secret, both, _issue(), now=NOW)
    assert said in str(caught.value)
    assert [claim.uses_left for claim in claims.all()] == [1]


def test_a_device_comes_back_as_what_it_was(store: Store) -> None:
    claims = Claims(store.database)
    _, first = claims.create(now=NOW, actor="ann", hardware="acme")
    asked = replace(_request(hardware=("acme",)), targets=["rpi5"])
    claims.redeem(first, asked, _issue(), now=NOW)
    _, again = claims.create(now=NOW, actor="ann", device="cam-1")
    claims.redeem(again, replace(asked, fingerprint=digest("new")), _issue("02"), now=NOW)
    _, other = claims.create(now=NOW, actor="ann", device="cam-2")
    with pytest.raises(FleetError, match="no hardware 'acme'"):
        claims.redeem(other, replace(asked, device="cam-2", fingerprint=digest("x")), _issue("03"), now=NOW)


def test_a_claim_that_was_taken_back_is_refused(store: Store) -> None:
    claims = Claims(store.database)
    made, secret = claims.create(now=NOW, actor="ann", uses=5)
    claims.withdraw(made.id, now=NOW, actor="ann")
    claims.withdraw(made.id, now=NOW, actor="ann")
    with pytest.raises(FleetError, match="taken back"):
        claims.redeem(secret, _request(), _issue(), now=NOW)
    with pytest.raises(FleetError, match="no claim"):
        claims.withdraw("nothing", now=NOW, actor="ann")


@pytest.mark.parametrize("options", [{"uses": 0}, {"uses": 2, "device": "cam-1"}, {"expires_at": NOW - 1}])
def test_a_claim_that_could_never_be_used_is_not_made(store: Store, options: dict[str, object]) -> None:
    with pytest.raises(FleetError) as caught:
        Claims(store.database).create(now=NOW, actor="ann", **options)  # type: ignore[arg-type]
    assert caught.value.reason == "invalid"


def test_an_id_belongs_to_who_has_it_until_a_claim_names_it(store: Store) -> None:
    claims = Claims(store.database)
    _, many = claims.create(now=NOW, actor="ann", uses=9)
    claims.redeem(many, _request(), _issue(), now=NOW)
    with pytest.raises(FleetError, match="already") as caught:
        claims.redeem(many, _request(key="thief"), _issue("02"), now=NOW)
    assert caught.value.reason == "conflict"
    with pytest.raises(FleetError, match="another device"):
        claims.redeem(many, _request("cam-2"), _issue("02"), now=NOW)
    store.devices.revoke("cam-1", now=NOW, actor="ann", reason="lost in the field")
    before = claims.state()
    assert claims.in_force(digest("key")) is None
    with pytest.raises(FleetError, match="lost in the field") as caught:
        claims.redeem(many, _request(), _issue("02"), now=NOW)
    assert caught.value.reason == "revoked"
    assert store.devices.get("cam-1").revoked_reason == "lost in the field"
    _, back = claims.create(now=NOW, actor="ann", device="cam-1")
    claims.redeem(back, _request(key="new"), _issue("03"), now=NOW + 1)
    assert store.devices.get("cam-1").revoked_at is None
    assert claims.in_force(digest("key")) is None
    assert claims.in_force(digest("new")) is not None
    assert [c.serial for c in claims.credentials("cam-1") if c.replaced_at is not None] == ["01"]
    assert claims.state() != before
