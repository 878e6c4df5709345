"""Golden vectors: a few inputs with the outputs that the source model gave for them.

Stored in the safetensors format: eight bytes of header size, a JSON header, raw little-endian
arrays. Vector 0's input ``image`` is the tensor ``0/inputs/image``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import _json
from edgec.artifact._fields import MAX_AXES, Fields, mapping, natural, one_of, sequence
from edgec.artifact._layout import GOLDEN
from edgec.errors import ManifestError

MAX_VECTORS = 1024
_MAX_HEADER = 2**20
_MAX_ELEMENTS = 2**48
_KEY = re.compile(r"(?s)(0|[1-9][0-9]{0,3})/(inputs|outputs)/(.+)")
_SIZE = struct.Struct("<Q")
_DTYPES = {
    "BOOL": "|b1", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "|u1", "U16": "<u2",
    "U32": "<u4", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class GoldenVector:
    """One call of the source model.

    Attributes:
        inputs: One array per input of the model, by name.
        outputs: One array per output of the model, by name.
    """

    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def encode_golden(vectors: Sequence[GoldenVector]) -> bytes:
    """Return the member ``golden.safetensors``; the same vectors give the same bytes.

    Raises:
        ManifestError: There are too many, or an array has a dtype that the format has not.
    """
    if len(vectors) > MAX_VECTORS:
        raise ManifestError(f"{len(vectors)} golden vectors; at most {MAX_VECTORS} are stored")
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for i, vector in enumerate(vectors):
        for role, arrays in (("inputs", vector.inputs), ("outputs", vector.outputs)):
            for name, array in arrays.items():
                little = np.asarray(array, order="C")
                little = little.astype(little.dtype.newbyteorder("<"), copy=False)
                if little.dtype.str not in _NAMES:
                    raise ManifestError(
                        f"golden vector {i}: {name!r} is {little.dtype}, which cannot be stored"
                    )
                header[f"{i}/{role}/{name}"] = {
                    "dtype": _NAMES[little.dtype.str],
                    "shape": list(little.shape),
                    "data_offsets": [end, end + little.nbytes],
                }
                parts.append(little.tobytes())
                end += little.nbytes
    head = _json.encode(header, "golden vectors")
    return b"".join([_SIZE.pack(len(head)), head, *parts])


def decode_golden(data: memoryview | bytes) -> list[GoldenVector]:
    """Return the golden vectors in `data`, their arrays copied, native and writable.

    Args:
        data: Bytes from outside.

    Raises:
        ManifestError: They are not what `encode_golden` writes.
    """
    data = memoryview(data)
    head_size = _SIZE.unpack_from(data)[0] if len(data) >= _SIZE.size else len(data)
    if head_size > min(_MAX_HEADER, len(data) - _SIZE.size):
        raise ManifestError(
            f"{GOLDEN} has {len(data)} bytes and a header of {head_size}: it was cut, or is too large"
        )
    head, body = data[_SIZE.size : _SIZE.size + head_size], data[_SIZE.size + head_size :]
    header = mapping(_json.decode(bytes(head), GOLDEN, max_size=_MAX_HEADER), GOLDEN)
    tensors = sorted((_tensor(name, value) for name, value in header.items()), key=lambda t: (t.begin, t.end))
    vectors: list[GoldenVector] = []
    end = 0
    for tensor in tensors:
        # Each array begins where the one before it ends: no byte belongs to two, or to none.
        if tensor.begin != end or tensor.end > len(body):
            raise ManifestError(
                f"{GOLDEN}: {tensor.name!r:.60} is at bytes {tensor.begin} to {tensor.end}, expected {end}"
            )
        end = tensor.end
        if tensor.number not in (len(vectors) - 1, len(vectors)):
            raise ManifestError(f"{GOLDEN}: {tensor.name!r:.60} is out of order")
        if tensor.number == len(vectors):
            vectors.append(GoldenVector())
        arrays = vectors[tensor.number].inputs if tensor.role == "inputs" else vectors[tensor.number].outputs
        assert isinstance(arrays, dict)
        arrays[tensor.name] = tensor.array(body)
    if end != len(body):
        raise ManifestError(f"{GOLDEN}: {len(body) - end} bytes at its end belong to no array")
    return vectors


class _Tensor(NamedTuple):
    number: int
    role: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def array(self, body: memoryview) -> NDArray[Any]:
        little = np.frombuffer(body[self.begin : self.end], dtype=self.dtype).reshape(self.shape)
        return little.astype(little.dtype.newbyteorder("="))


def _tensor(key: str, value: object) -> _Tensor:
    match = _KEY.fullmatch(key)
    if not match or int(match[1]) >= MAX_VECTORS:
        raise ManifestError(f"{GOLDEN} has an array {key!r:.60}; expected such as '0/inputs/image'")
    where = f"{GOLDEN}[{key!r:.60}]"
    fields = Fields(value, where)
    dtype = _DTYPES[fields.need("dtype", one_of(tuple(_DTYPES)))]
    shape = fields.need("shape", sequence(natural, most=MAX_AXES))
    begin, end = fields.need("data_offsets", sequence(natural, least=2, most=2))
    # Zeros apart: numpy refuses an array whose other axes are too large, even if it has no element.
    if math.prod(filter(None, shape)) > _MAX_ELEMENTS:
        raise ManifestError(f"{where}.shape {list(shape)} is larger than any array")
    if end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ManifestError(f"{where}.data_offsets {[begin, end]} does not fit shape {list(shape)}")
    return _Tensor(int(match[1]), match[2], match[3], dtype, shape, begin, end)
