"""A patch from outside gives the file that was promised, or a DeltaError, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zstandard", reason="patches need the extra agent")
pytest.importorskip("detools", reason="patches need the extra agent")

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.delta.files import digest, forge, onnx_artifact, tuned, weights

from edgec.delta import Header, apply_delta, make_delta
from edgec.delta._format import CONTROL, DIFF, EXTRA, PREFIX, Stream
from edgec.errors import DeltaError
from edgec.sketch._bytes import pack_numbers

OLD = bytes(range(256)) * 4
NEW = OLD[:512] + b"!" * 8 + OLD[512:]
STEPS = [512, 8, 0, 512, 0, 0]
GOOD: dict[str, Any] = {"control": STEPS, "diff": bytes(1024), "extra": b"!" * 8}


def apply(folder: Path, patch: bytes, old: bytes = OLD, new: bytes = NEW) -> bytes:
    """Apply a patch where a file is; if it fails, that file is untouched, and no other is left."""
    (folder / "old").write_bytes(old)
    (folder / "patch").write_bytes(patch)
    out = folder / "out"
    out.write_bytes(b"as before")
    try:
        apply_delta(folder / "old", folder / "patch", out, length=len(new), sha256=digest(new))
    except DeltaError:
        assert out.read_bytes() == b"as before"
        raise
    finally:
        assert sorted(p.name for p in folder.iterdir()) == ["old", "out", "patch"]
    return out.read_bytes()


def test_what_is_forged_below_is_a_good_patch_otherwise(tmp_path: Path) -> None:
    assert apply(tmp_path, forge(OLD, NEW, **GOOD)) == NEW
    segment = forge(
        OLD,
        NEW,
        table=[0, 0, 512 * 16 + 4],
        planes={4: bytes(512)},
        control=[0, 8, 0, 512, 0, 0],
        diff=bytes(512),
        extra=b"!" * 8,
    )
    assert apply(tmp_path, segment) == NEW


def replaced(start: int, data: bytes) -> bytes:
    good = forge(OLD, NEW, **GOOD)
    return good[:start] + data + good[start + len(data) :]


def with_frame(kind: int, frame: bytes, unpacked: int) -> bytes:
    """A good patch with another frame in place of one of its streams."""
    parts = {CONTROL: STEPS_FRAME, DIFF: packed(bytes(1024)), EXTRA: packed(b"!" * 8)}
    sizes = {CONTROL: len(zstandard.decompress(STEPS_FRAME)), DIFF: 1024, EXTRA: 8}
    parts[kind], sizes[kind] = frame, unpacked
    streams = tuple(Stream(k, 0, 0, len(parts[k]), sizes[k]) for k in parts)
    return header(streams).to_bytes() + b"".join(parts.values())


def header(streams: tuple[Stream, ...]) -> Header:
    return Header(
        old_length=len(OLD),
        old_sha256=digest(OLD),
        new_length=len(NEW),
        new_sha256=digest(NEW),
        streams=streams,
    )


def packed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


STEPS_FRAME = packed(pack_numbers(STEPS))


def piece(frame: bytes, size: int | None = None) -> bytes:
    """A patch of one piece."""
    data = struct.pack("<I", len(frame) if size is None else size) + frame
    return header((Stream(PREFIX, 0, 0, len(data), len(NEW)),)).to_bytes() + data


def wide_window(size: int) -> bytes:
    """A frame that wants a window of 1 GiB."""
    params = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=params).compressobj()
    return compressor.compress(bytes(size)) + compressor.flush()


def other(**changes: Any) -> Callable[[], bytes]:
    return lambda: forge(OLD, NEW, **{**GOOD, **changes})


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "not a patch": lambda: b"PK\3\4" + bytes(200),
    "a newer version": lambda: replaced(8, b"\2\0"),
    "cut in its head": lambda: forge(OLD, NEW, **GOOD)[:50],
    "cut in its table of streams": lambda: forge(OLD, NEW, **GOOD)[:100],
    "cut in a stream": lambda: forge(OLD, NEW, **GOOD)[:-1],
    "bytes after its end": lambda: forge(OLD, NEW, **GOOD) + b"x",
    "sixty thousand streams": lambda: replaced(10, b"\xff\xff"),
    "no streams": lambda: header(()).to_bytes(),
    "from another file": lambda: forge(b"x" * len(OLD), NEW, **GOOD),
    "from a file of another length": lambda: forge(OLD + b"x", NEW, **GOOD),
    "to another file": lambda: forge(OLD, b"x" * len(NEW), **GOOD),
    "to a file of 2**63 bytes": lambda: forge(OLD, NEW, **GOOD, length=2**63),
    "makes fewer bytes than it says": lambda: forge(OLD, NEW, **GOOD, length=len(NEW) + 1),
    "other bytes than promised": other(extra=b"?" * 8),
    "a stream of no kind": lambda: replaced(92, b"\x09"),
    "a stream of a strange width": lambda: replaced(93, b"\x03"),
    "a reserved byte": lambda: replaced(95, b"\x01"),
    "a stream of 2**63 bytes": lambda: replaced(96, struct.pack("<Q", 2**63)),
    "numbers of a gigabyte": lambda: replaced(104, struct.pack("<Q", 2**30)),
    "more in a stream than it says": lambda: with_frame(EXTRA, packed(b"!" * 9), 8),
    "less in a stream than it says": lambda: with_frame(EXTRA, packed(b"!" * 7), 8),
    "no frame": lambda: with_frame(EXTRA, b"what is this", 8),
    "half a frame": lambda: with_frame(DIFF, packed(np.random.default_rng(0).bytes(1024))[:300], 1024),
    "a bomb": lambda: with_frame(DIFF, packed(bytes(2**28)), 1024),
    "a window of a gigabyte": lambda: with_frame(DIFF, wide_window(1024), 1024),
    "numbers that end within one": lambda: with_frame(CONTROL, packed(b"\x80" * 4), 4),
    "a number of too many bits": lambda: with_frame(CONTROL, packed(b"\xff" * 40), 40),
    "numbers that are no steps": other(control=[512, 8]),
    "steps that are too short": other(control=[512, 8, 0]),
    "steps that are too long": other(control=[*STEPS, 0, 8, 0]),
    "a negative change": other(control=[-512, 8, 0, 512, 0, 0]),
    "a negative insert": other(control=[512, -8, 0, 512, 0, 0]),
    "a step that does nothing": other(control=[512, 8, 0, 0, 0, 0, 512, 0, 0]),
    "reads before the old file": other(control=[512, 8, -513, 512, 0, 0]),
    "reads after the old file": other(control=[512, 8, 1, 512, 0, 0]),
    "skips 2**62 bytes": other(control=[512, 8, 2**62, 512, 0, 0]),
    "changes 2**60 bytes": other(control=[2**60, 8, 0]),
    "a segment after the new file": other(
        table=[len(NEW), 0, 8 * 16 + 4], planes={4: bytes(8)}, diff=bytes(1016)
    ),
    "a segment after the old file": other(
        table=[0, len(OLD), 8 * 16 + 4], planes={4: bytes(8)}, diff=bytes(1016)
    ),
    "a segment before the old file": other(table=[0, -4, 8 * 16 + 4], planes={4: bytes(8)}, diff=bytes(1016)),
    "a segment before the one before": other(
        table=[8, 0, 8 * 16 + 4, -16, 0, 8 * 16 + 4], planes={4: bytes(16)}, diff=bytes(1008)
    ),
    "a segment of no bytes": other(table=[0, 0, 4], planes={4: b""}),
    "a segment of -8 bytes": other(table=[0, 0, -8 * 16 + 4], planes={4: b""}),
    "a segment of half a number": other(table=[0, 0, 6 * 16 + 4], planes={4: bytes(6)}, diff=bytes(1018)),
    "a segment of width 3": other(table=[0, 0, 6 * 16 + 3], planes={4: bytes(6)}, diff=bytes(1018)),
    "planes without segments": other(planes={4: bytes(8)}, diff=bytes(1016)),
    "segments without planes": other(table=[0, 0, 8 * 16 + 4]),
    "too many segments": other(table=[0, 0, 17, 0, 0, 17] * 40000),
    "pieces and steps": lambda: header(
        (Stream(CONTROL, 0, 0, 0, 0), Stream(PREFIX, 0, 0, 0, len(NEW)))
    ).to_bytes(),
    "streams out of order": lambda: header((Stream(EXTRA, 0, 0, 0, 0), Stream(DIFF, 0, 0, 0, 0))).to_bytes(),
    "a stream twice": lambda: header((Stream(DIFF, 0, 0, 0, 0), Stream(DIFF, 0, 0, 0, 0))).to_bytes(),
    "a piece of no bytes": lambda: piece(b""),
    "a piece of 4 GB": lambda: piece(b"frame", 2**32 - 1),
    "a piece that is no frame": lambda: piece(b"frame"),
    "a piece that is too short": lambda: piece(packed(NEW[:-1])),
    "a piece that is a bomb": lambda: piece(packed(bytes(2**28))),
    "a piece that does not say how large it is": lambda: piece(wide_window(len(NEW))),
    "a piece too many": lambda: piece(packed(NEW) + packed(NEW)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patches_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeltaError):
        apply(tmp_path, HOSTILE[name]())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    folder = tmp_path_factory.mktemp("real")
    before = weights(rows=16, columns=20)
    old, new = onnx_artifact(folder / "1", before, "1"), onnx_artifact(folder / "2", tuned(before), "2")
    assert make_delta(old, new, folder / "p", worth=10, level=3) is not None
    return old.read_bytes(), new.read_bytes(), (folder / "p").read_bytes()


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damaged_patches_are_refused_or_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, real: tuple[bytes, bytes, bytes], data: st.DataObject
) -> None:
    old, new, patch = real
    damaged = bytearray(patch)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(damaged), len(damaged), data.draw(st.integers(0, len(damaged)))]))
    folder = tmp_path_factory.mktemp("damaged")
    with suppress(DeltaError):
        assert apply(folder, bytes(damaged[:cut]), old, new) == new


@settings(max_examples=120, deadline=None)
@given(
    table=st.lists(st.integers(-70, 2000), max_size=9),
    control=st.lists(st.integers(-600, 1100), max_size=12),
    planes=st.integers(0, 64),
    extra=st.integers(0, 64),
)
def test_any_numbers_are_refused_or_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, table: list[int], control: list[int], planes: int, extra: int
) -> None:
    rest = max(0, len(NEW) - 4 * planes - extra)
    patch = forge(
        OLD,
        NEW,
        table=table,
        control=control,
        planes={4: bytes(4 * planes)} if planes else {},
        diff=bytes(rest),
        extra=b"!" * extra,
    )
    with suppress(DeltaError):
        assert apply(tmp_path_factory.mktemp("numbers"), patch) == NEW
