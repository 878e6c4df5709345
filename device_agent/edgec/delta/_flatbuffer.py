"""Reads where the constants of a TFLite file lie, without LiteRT.

It follows the encoding of FlatBuffers (flatbuffers.dev/internals) and the field numbers of LiteRT's
schema.fbs: Model has subgraphs (2) and buffers (4), a subgraph tensors (0), a tensor type (1), buffer (2) and
name (3), a buffer data (0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Bytes per number, by tflite.TensorType; types of fewer than eight bits, and text, are left out.
_WIDTHS = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 8, 12: 8, 15: 4, 16: 2, 18: 2}
_MOST = 2**20  # entries of a vector


def read_buffers(model: memoryview) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, place of the first byte, length in bytes and width in bytes of each constant tensor.

    Raises:
        ValueError: It is no TFLite file.
    """
    if bytes(model[4:8]) != b"TFL3":
        raise ValueError("expected a TFLite file")
    try:
        yield from _read(model)
    except (struct.error, IndexError) as e:
        raise ValueError("the TFLite file is cut") from e


def _read(model: memoryview) -> Iterator[tuple[str, int, int, int]]:
    root = _follow(model, 0)
    buffers = list(_tables(model, root, 4))
    for subgraph in _tables(model, root, 2):
        for tensor in _tables(model, subgraph, 0):
            width = _WIDTHS.get(_scalar(model, tensor, 1, "<b"))
            index = _scalar(model, tensor, 2, "<I")
            if width is None or not 0 < index < len(buffers):
                continue
            start, length = _vector(model, buffers[index], 0)
            if length:
                name, size = _vector(model, tensor, 3)
                yield str(model[name : name + size], "utf-8", "replace"), start, length, width


def _follow(model: memoryview, at: int) -> int:
    return at + int(struct.unpack_from("<I", model, at)[0])


def _field(model: memoryview, table: int, number: int) -> int:
    """Return where a field of a table is; 0 where it has its default."""
    entries = table - int(struct.unpack_from("<i", model, table)[0])
    if entries < 0:
        raise ValueError("a table of the TFLite file begins before it")
    size = int(struct.unpack_from("<H", model, entries)[0])
    if 4 + 2 * number + 2 > size:
        return 0
    offset = int(struct.unpack_from("<H", model, entries + 4 + 2 * number)[0])
    return table + offset if offset else 0


def _scalar(model: memoryview, table: int, number: int, form: str) -> int:
    at = _field(model, table, number)
    return int(struct.unpack_from(form, model, at)[0]) if at else 0


def _vector(model: memoryview, table: int, number: int) -> tuple[int, int]:
    """Return where the entries of a vector begin, and how many there are."""
    at = _field(model, table, number)
    if not at:
        return 0, 0
    begin = _follow(model, at)
    return begin + 4, int(struct.unpack_from("<I", model, begin)[0])


def _tables(model: memoryview, table: int, number: int) -> Iterator[int]:
    begin, count = _vector(model, table, number)
    if count > _MOST:
        raise ValueError(f"a vector of the TFLite file has {count} entries")
    for i in range(count):
        yield _follow(model, begin + 4 * i)
