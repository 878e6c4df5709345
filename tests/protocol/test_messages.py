"""Messages survive the way over the wire, and hostile bytes become one kind of error."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.samples import DESIRED, MESSAGES, PRESENCE, REPORTED, TELEMETRY

from edgec.errors import ProtocolError
from edgec.protocol import (
    CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    Chunk,
    Command,
    Desired,
    Message,
    Presence,
    Reported,
    SeqRange,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
)

cbor2 = pytest.importorskip("cbor2", reason="the extra `agent` is not installed")


def name(message: Message) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_a_message_survives_the_way(message: Message) -> None:
    assert type(message).from_bytes(message.to_bytes()) == message


def test_the_samples_set_every_field_somewhere() -> None:
    for kind in {type(m) for m in MESSAGES}:
        for field in fields(kind):
            values = [getattr(m, field.name) for m in MESSAGES if type(m) is kind]
            assert any(value != field.default for value in values), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_unknown_fields_are_ignored(message: Message) -> None:
    compact = type(message).by_number
    value = cbor2.loads(message.to_bytes()) if compact else json.loads(message.to_bytes())
    value[200 if compact else "from_the_future"] = [1, {"x": None}]
    data = cbor2.dumps(value) if compact else json.dumps(value).encode()
    assert type(message).from_bytes(data) == message


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_another_version_is_refused(message: Message) -> None:
    compact = type(message).by_number
    value = cbor2.loads(message.to_bytes()) if compact else json.loads(message.to_bytes())
    for version in (2, 0, True, "1", None, 1.5):
        value[0 if compact else "v"] = version
        data = cbor2.dumps(value) if compact else json.dumps(value).encode()
        with pytest.raises(ProtocolError, match="version 1"):
            type(message).from_bytes(data)


BAD_JSON = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "not UTF-8": b'{"v":1,"online":true,"boot_id":"\xff"}',
    "a key twice": PRESENCE.to_bytes().replace(b'"v":1', b'"v":1,"v":1'),
    "NaN": PRESENCE.to_bytes().replace(b"1750000000.0", b"NaN"),
    "infinity": PRESENCE.to_bytes().replace(b"1750000000.0", b"1e999"),
    "a number of a thousand digits": PRESENCE.to_bytes().replace(
        b'"boot_epoch":7', b'"boot_epoch":' + b"7" * 1000
    ),
    "beyond 2**53": PRESENCE.to_bytes().replace(b'"boot_epoch":7', b'"boot_epoch":9007199254740993'),
    "negative": PRESENCE.to_bytes().replace(b'"boot_epoch":7', b'"boot_epoch":-1'),
    "a boolean for a number": PRESENCE.to_bytes().replace(b'"boot_epoch":7', b'"boot_epoch":true'),
    "a number for a boolean": PRESENCE.to_bytes().replace(b"true", b"1"),
    "a float for an integer": PRESENCE.to_bytes().replace(b'"boot_epoch":7', b'"boot_epoch":7.0'),
    "null": PRESENCE.to_bytes().replace(b'"boot-7"', b"null"),
    "an id with a slash": PRESENCE.to_bytes().replace(b"boot-7", b"boot/7"),
    "an id with a line break": PRESENCE.to_bytes().replace(b"boot-7", b"boot7\\n"),
    "an empty id": PRESENCE.to_bytes().replace(b"boot-7", b""),
    "a long id": PRESENCE.to_bytes().replace(b"boot-7", b"b" * 65),
    "half a surrogate pair": PRESENCE.to_bytes().replace(b"edgec 0.1.0", b"\\ud800"),
    "a missing field": PRESENCE.to_bytes().replace(b'"connection"', b'"other"'),
    "nested": b'{"v":1,"x":' + b"[" * 60000 + b"]" * 60000 + b"}",
    "too large": PRESENCE.to_bytes() + b" " * MAX_MESSAGE_BYTES,
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="Presence"):
        Presence.from_bytes(data)


def changed(**values: Any) -> bytes:
    """Return telemetry with fields of its CBOR changed: `k2` is key 2; None leaves it out."""
    value = cbor2.loads(TELEMETRY.to_bytes())
    for key, item in values.items():
        value[int(key[1:])] = item
    return bytes(cbor2.dumps(value))


def record(**values: Any) -> list[Any]:
    return [{1: 0, 2: "window", 3: 1.0, 4: b"", **{int(key[1:]): value for key, value in values.items()}}]


BAD_CBOR = {
    "nothing": b"",
    "no map": b"\x01",
    "a list": b"\x80",
    "a break": b"\xff",
    "cut": TELEMETRY.to_bytes()[:-1],
    "bytes after the end": TELEMETRY.to_bytes() + b"\x00",
    "a length beyond the end": b"\xbb" + b"\x7f" + b"\xff" * 7,
    "a long byte string that is not there": b"\xa1\x01\x5b\x00\x00\x7f" + b"\xff" * 5,
    "nested": b"\x81" * 100_000,
    "a map within itself": bytes.fromhex("d81ca100d81d00"),
    "a number of 32768 bytes": b"\xa2\x00\x01\x02\xc2\x59\x80\x00" + b"\xff" * 0x8000,
    "a pattern": b"\xa2\x00\x01\x01\xd8\x23\x63(((",
    "a date": changed(k5=cbor2.CBORTag(1, 5)),
    "a date as text": changed(k5=cbor2.CBORTag(0, "2026-11-22T00:00:00Z")),
    "a set": changed(k3=cbor2.CBORTag(258, [])),
    "undefined": changed(k5=cbor2.undefined),
    "NaN": changed(k5=float("nan")),
    "infinity": changed(k5=float("inf")),
    "an integer that no float holds": changed(k5=10**400),
    "beyond 2**53": changed(k2=2**60),
    "negative": changed(k2=-1),
    "text for bytes": changed(k3=record(k4="text")),
    "bytes for text": changed(k3=record(k2=b"window")),
    "a word with a space": changed(k3=record(k2="two words")),
    "records that are no list": changed(k3={}),
    "a record that is no map": changed(k3=[1]),
    "offsets that repeat": changed(k3=record() * 2),
    "names as keys": bytes(cbor2.dumps({"v": 1, "boot_id": "b"})),
    "a key twice": b"\xa2\x00\x01\x00\x01",
    "too large": bytes(MAX_MESSAGE_BYTES + 1),
    "JSON": PRESENCE.to_bytes(),
}


@pytest.mark.parametrize("data", BAD_CBOR.values(), ids=BAD_CBOR)
def test_bad_cbor_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="Telemetry"):
        Telemetry.from_bytes(data)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_any_bytes_are_a_message_or_a_protocol_error(message: Message, data: st.DataObject) -> None:
    good = bytearray(message.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not good:
            break
    try:
        again = type(message).from_bytes(bytes(good))
    except ProtocolError:
        return
    assert type(message).from_bytes(again.to_bytes()) == again


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "", "a\\b", "a b"]
)
def test_a_path_stays_within_the_repository(path: str) -> None:
    data = DESIRED.to_bytes().replace(b"models/kws/2.edgec", json.dumps(path)[1:-1].encode())
    with pytest.raises(ProtocolError, match="path"):
        Desired.from_bytes(data)


def test_what_the_other_side_would_refuse_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match=r"Presence\.boot_epoch must be an integer"):
        replace(PRESENCE, boot_epoch=-1).to_bytes()
    with pytest.raises(ProtocolError, match="boot_id"):
        replace(PRESENCE, boot_id="a/b").to_bytes()
    with pytest.raises(ProtocolError, match="sent_at"):
        replace(PRESENCE, sent_at=float("nan")).to_bytes()
    with pytest.raises(ProtocolError, match="expires"):
        Command(id="c", name="verify", issued_at=2.0, expires_at=1.0, envelope="{}").to_bytes()
    large = tuple(TelemetryRecord(offset=i, kind="sample", at=0.0, payload=bytes(100_000)) for i in range(2))
    with pytest.raises(ProtocolError, match="at most 131072 are sent"):
        replace(TELEMETRY, records=large).to_bytes()


def test_the_largest_chunk_fits_into_a_message() -> None:
    chunk = Chunk(id="r" * 64, offset=2**53 - 1 - CHUNK_BYTES, total=2**53 - 1, data=bytes(CHUNK_BYTES))
    assert Chunk.from_bytes(chunk.to_bytes()) == chunk


def test_a_will_is_the_birth_of_its_connection_but_offline() -> None:
    will = PRESENCE.as_will()
    assert (will.online, will.boot_epoch, will.connection) == (
        False,
        PRESENCE.boot_epoch,
        PRESENCE.connection,
    )


def test_an_ack_covers_what_it_names() -> None:
    ack = TelemetryAck(boot_id="b", seq=4, ranges=(SeqRange(first=6, last=7),))
    assert [seq for seq in range(10) if ack.covers(seq)] == [0, 1, 2, 3, 4, 6, 7]
    assert not TelemetryAck(boot_id="b").covers(0)


def test_records_are_numbered_from_the_first() -> None:
    assert [seq for seq, _ in TELEMETRY.numbered()] == [41, 44]


def test_messages_are_small() -> None:
    assert len(PRESENCE.to_bytes()) < 200
    assert len(replace(REPORTED, alerts=()).to_bytes()) < 512
    assert len(Reported.from_bytes(REPORTED.to_bytes()).models) == 1
