"""Signed commands: for this device, by the director, in time, and once."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.trust.simulator import DEVICE, OTHER, START, Publisher, strange_signer

from edgec.errors import TrustError
from edgec.trust import DeviceTrust, generate_key, rotate, sign_command
from edgec.trust._commands import MAX_COMMAND_BYTES, PAYLOAD_TYPE, REMEMBERED, CommandLog, open_command
from edgec.trust._tuf import Envelope


@pytest.fixture
def device(publisher: Publisher, tmp_path: Path) -> DeviceTrust:
    return publisher.device(tmp_path / "device", groups={"canary"})


def signed(publisher: Publisher, **more: Any) -> bytes:
    options: dict[str, Any] = {"device": DEVICE, "issued_at": publisher.clock.now, **more}
    signers = options.pop("signers", None) or publisher.signers("director")
    return sign_command(signers, "logs", {"lines": 10}, **options)


def reason(device: DeviceTrust, envelope: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        device.verify_command(envelope)
    return caught.value.reason


def test_a_command_is_obeyed_once(publisher: Publisher, device: DeviceTrust, tmp_path: Path) -> None:
    envelope = signed(publisher, command_id="c-1")
    command = device.verify_command(envelope)
    assert (command.id, command.name, command.args) == ("c-1", "logs", {"lines": 10})
    assert (command.device, command.group, command.expires_at) == (DEVICE, "", int(START) + 300)
    assert reason(device, envelope) == "replay"
    assert reason(publisher.device(tmp_path / "device"), envelope) == "replay"
    assert device.verify_command(signed(publisher)).id != "c-1"


def test_commands_of_a_group_are_for_its_members(publisher: Publisher, device: DeviceTrust) -> None:
    assert device.verify_command(signed(publisher, device="", group="canary")).group == "canary"
    assert reason(device, signed(publisher, device="", group="others")) == "device"


def test_row_13_a_command_for_another_device_is_refused(publisher: Publisher, device: DeviceTrust) -> None:
    assert reason(device, signed(publisher, device=OTHER)) == "device"


def test_row_07_only_the_director_commands(publisher: Publisher, device: DeviceTrust) -> None:
    assert reason(device, signed(publisher, signers=[strange_signer()])) == "signature"
    for name in ("online", "targets-1", "root-1"):
        assert reason(device, signed(publisher, signers=publisher.signers(name))) == "signature"


def test_row_15_a_command_expires_and_no_clock_brings_it_back(
    publisher: Publisher, device: DeviceTrust
) -> None:
    envelope = signed(publisher)
    publisher.clock.now = START + 300
    assert reason(device, envelope) == "expired"
    publisher.clock.now = START + 86400
    publisher.image.release(renew=True)
    publisher.director.renew(DEVICE)
    device.update(publisher.repo)
    publisher.clock.now = 0
    assert reason(device, envelope) == "expired"


@pytest.mark.slow
def test_a_retired_key_commands_no_more(publisher: Publisher, device: DeviceTrust) -> None:
    added = generate_key(publisher.keys_folder, "director-2", "director")
    ring = publisher.ring()
    rotate(*publisher.open(ring), retire=[ring.named("director")], add=[added])
    publisher.director.release()
    device.update(publisher.repo)
    assert reason(device, signed(publisher)) == "signature"
    assert device.verify_command(signed(publisher, signers=publisher.signers("director-2"))).name == "logs"


def test_an_expired_root_commands_nothing(publisher: Publisher, device: DeviceTrust) -> None:
    publisher.clock.now = START + 400 * 86400
    assert reason(device, signed(publisher)) == "expired"


def document(**changes: Any) -> bytes:
    fields = {
        "v": 1,
        "id": "c",
        "name": "logs",
        "args": {},
        "device": DEVICE,
        "issued_at": 10,
        "expires_at": 20,
    }
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not None}).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 20_000,
        document(v=2),
        document(v=None),
        document(id=""),
        document(id="a/b"),
        document(id=5),
        document(name="../x"),
        document(args=[]),
        document(device=None),
        document(group="canary"),
        document(device="+"),
        document(issued_at=-1),
        document(issued_at=1.5),
        document(issued_at=True),
        document(expires_at=10),
        document(expires_at=10**9),
        document(expires_at="20"),
    ],
)
def test_malformed_commands_are_refused_though_signed(payload: bytes) -> None:
    signer = strange_signer()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    with pytest.raises(TrustError) as caught:
        open_command(json.dumps(envelope.to_dict()).encode(), [signer.public_key], 1)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"payload": 5, "payloadType": "x", "signatures": []}',
        b'{"payload": "%%", "payloadType": "x", "signatures": [{}]}',
        b'{"payload": "", "payloadType": "x", "signatures": {"a": 1}}',
        b"[" * 50_000,
    ],
)
def test_garbage_is_no_command(envelope: bytes) -> None:
    with pytest.raises(TrustError) as caught:
        open_command(envelope, [strange_signer().public_key], 1)
    assert caught.value.reason in ("malformed", "signature")


def test_signatures_of_other_documents_are_none_of_commands(publisher: Publisher) -> None:
    signer = strange_signer()
    envelope = Envelope(document(), "application/vnd.in-toto+json", {})
    envelope.sign(signer)
    data = envelope.to_dict()
    for payload_type in ("application/vnd.in-toto+json", PAYLOAD_TYPE):
        with pytest.raises(TrustError):
            open_command(json.dumps({**data, "payloadType": payload_type}).encode(), [signer.public_key], 1)
    swapped = {**data, "payload": base64.b64encode(document(id="d")).decode()}
    with pytest.raises(TrustError):
        open_command(json.dumps(swapped).encode(), [signer.public_key], 1)


def test_a_command_is_bounded() -> None:
    with pytest.raises(TrustError, match=str(MAX_COMMAND_BYTES)):
        open_command(b" " * (MAX_COMMAND_BYTES + 1), [], 1)


def test_wrong_use_is_said(publisher: Publisher) -> None:
    with pytest.raises(TrustError, match="exactly one of both"):
        signed(publisher, group="canary")
    with pytest.raises(TrustError, match="no private key of role 'director'"):
        sign_command([], "logs", device=DEVICE, issued_at=0)
    with pytest.raises(TrustError, match="valid for up to"):
        signed(publisher, valid_s=10**9)


def test_the_log_is_bounded_and_forgets_nothing_in_an_attackers_favour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.trust._commands.REMEMBERED", 4)
    assert REMEMBERED == 512
    signer = strange_signer()

    def command(number: int) -> Any:
        data = sign_command([signer], "logs", device=DEVICE, issued_at=100 + number, command_id=f"c-{number}")
        return open_command(data, [signer.public_key], 1)

    log = CommandLog(tmp_path / "commands.json", lambda: 0.0)
    for number in range(10):
        log.receive(command(number), 110)
    again = CommandLog(tmp_path / "commands.json", lambda: 0.0)
    for number in range(10):
        with pytest.raises(TrustError, match="received before"):
            again.receive(command(number), 110)
    again.receive(command(11), 110)
    (tmp_path / "commands.json").write_bytes(b"garbage")
    damaged = CommandLog(tmp_path / "commands.json", lambda: 111.0)
    with pytest.raises(TrustError, match="received before"):
        damaged.receive(command(11), 111)
    damaged.receive(command(12), 111)
