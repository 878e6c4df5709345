"""Whatever happens to a file on its way, `open` or `verify` notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.artifact.forge import Part, Tiny, comment_of, signed, write_zip

from edgec.artifact import Artifact
from edgec.errors import ArtifactError

Damage = Callable[[bytes], bytes]


def noticed(path: Path) -> None:
    """Assert that the file is refused, with one line, before a byte of it is given to anyone."""
    with pytest.raises(ArtifactError) as raised, Artifact.open(path) as artifact:
        artifact.verify()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


def flip(draw: st.DrawFn, size: int) -> Damage:
    at, mask = draw(st.integers(0, size - 1)), draw(st.integers(1, 255))
    return lambda data: data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def cut(draw: st.DrawFn, size: int) -> Damage:
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    return lambda data: data[:start] + data[stop:]


def insert(draw: st.DrawFn, size: int) -> Damage:
    at, what = draw(st.integers(0, size)), draw(st.binary(min_size=1, max_size=100))
    return lambda data: data[:at] + what + data[at:]


def overwrite(draw: st.DrawFn, size: int) -> Damage:
    at, what = draw(st.integers(0, size - 1)), draw(st.binary(min_size=1, max_size=100))
    return lambda data: data[:at] + what + data[at + len(what) :]


def move(draw: st.DrawFn, size: int) -> Damage:
    start, length = draw(st.integers(0, size - 1)), draw(st.integers(1, 200))
    to = draw(st.integers(0, size - 1))

    def moved(data: bytes) -> bytes:
        piece, rest = data[start : start + length], data[:start] + data[start + length :]
        return rest[:to] + piece + rest[to:]

    return moved


KINDS = [flip, cut, insert, overwrite, move]


@st.composite
def damage(draw: st.DrawFn, size: int) -> Damage:
    return draw(st.sampled_from(KINDS))(draw, size)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_flipped_cut_and_inserted_anywhere(data: st.DataObject, tiny: Tiny, tmp_path: Path) -> None:
    whole = tiny.pack(tmp_path / "a.edgec").read_bytes()
    body = whole
    for _ in range(data.draw(st.integers(1, 3))):
        body = data.draw(damage(len(body)))(body) if body else body
    if body == whole:
        return
    path = tmp_path / "damaged.edgec"
    path.write_bytes(body)
    noticed(path)


@pytest.mark.slow
def test_every_byte_counts(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny.pack(tmp_path / "a.edgec")
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(whole):
            file.seek(at)
            file.write(bytes([byte ^ 1 << at % 8]))
            noticed(path)
            file.seek(at)
            file.write(bytes([byte]))
    with Artifact.open(path) as artifact:
        artifact.verify()


def test_every_length_counts(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny.pack(tmp_path / "a.edgec")
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        noticed(path)
        path.write_bytes(whole[length + 1 :])
        noticed(path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(
        ["flags", "method", "time", "date", "crc", "stored", "size", "mode", "needs", "place"]
    ),
    value=st.integers(0, 2**16 - 1) | st.integers(0, 2**32 - 1),
    member=st.integers(0, 4),
    both=st.booleans(),
)
def test_any_value_in_any_header(
    field: str, value: int, member: int, both: bool, tiny: Tiny, tmp_path: Path
) -> None:
    narrow = field in ("flags", "method", "time", "date", "needs")
    manifest = signed(tiny.document())
    parts = tiny.parts(manifest)
    parts[member].central = {field: value & 0xFFFF if narrow else value}
    if both:
        parts[member].local = parts[member].central
    data = write_zip(parts, comment=comment_of(manifest))
    if data == write_zip(tiny.parts(manifest), comment=comment_of(manifest)):
        return
    path = tmp_path / "damaged.edgec"
    path.write_bytes(data)
    noticed(path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.binary(max_size=20) | st.text(max_size=10).map(str.encode))
def test_any_name(name: bytes, tiny: Tiny, tmp_path: Path) -> None:
    """Whatever a member is called: it is refused, since the manifest does not have it."""
    manifest = signed(tiny.document())
    parts = [Part(name, b"x"), *tiny.parts(manifest)]
    path = tmp_path / "damaged.edgec"
    path.write_bytes(write_zip(parts, comment=comment_of(manifest)))
    noticed(path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    ),
    data=st.data(),
)
def test_any_value_in_any_field(value: object, data: st.DataObject, tiny: Tiny, tmp_path: Path) -> None:
    """A well-signed manifest with anything anywhere is read, or refused with a line that can be printed."""
    document = tiny.document()
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        manifest = signed(document)
    except UnicodeEncodeError:
        return
    path = tmp_path / "changed.edgec"
    path.write_bytes(write_zip(tiny.parts(manifest), comment=comment_of(manifest)))
    complaint = ""
    try:
        with Artifact.open(path) as artifact:
            artifact.verify()
    except ArtifactError as e:
        complaint = str(e)
    assert (complaint or "none").isprintable()
    assert len(complaint) < 1000
