"""Datatypes of the protocol, and how an array is carried in each: as raw bytes and as JSON."""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import RequestError
from edgec.runtime._oip import DATATYPES

# BF16 is in the binary extension only, and no artifact has it: it is known, so that a mismatch is named.
KNOWN = frozenset({*DATATYPES.values(), "BF16"})
_NOT_IN_JSON = ("FP16", "BF16")
_IS_LITTLE = sys.byteorder == "little"
_LENGTH = struct.Struct("<I")
_MOST_AXES = 32
# Types that the elements of JSON data may have, by kind of the dtype.
_ELEMENTS: dict[str, set[type]] = {
    "b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str}
}  # fmt: skip


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a dtype: ``FP32`` of ``float32``."""
    return DATATYPES[dtype]


def from_raw(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return the tensor that raw bytes stand for: little-endian, row-major, without padding.

    Args:
        data: All of it. The array is a read-only view of it where the machine allows.
        dtype: Of the tensor; ``object`` for BYTES, of which each element has a length of 4 bytes before it.
        shape: Of the tensor; the product of its sizes is an ordinary Python integer and cannot overflow.
        name: Of the tensor, for messages.

    Raises:
        RequestError: The size of `data` is not that of the shape.
    """
    count = _count(shape)
    if dtype.kind == "O":
        return _elements(data, count, name).reshape(shape)
    expected = count * dtype.itemsize
    if len(data) != expected:
        raise RequestError(
            f"input {name!r}: {DATATYPES[dtype.name]} of shape {list(shape)} takes {expected} bytes, "
            f"binary_data_size says {len(data)}"
        )
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise RequestError(f"input {name!r}: a BOOL is one byte, 0 or 1")
    if not _IS_LITTLE:
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    # With this very dtype: of an equal one, a session would have to find out that it is.
    return np.frombuffer(data, dtype).reshape(shape)


def to_raw(array: NDArray[Any]) -> bytes | memoryview:
    """Return the raw bytes of a tensor: little-endian, row-major; BYTES elements with their lengths.

    They are a view of the tensor where its bytes lie like that already.
    """
    if array.dtype.kind == "O":
        return b"".join(_LENGTH.pack(len(element)) + element for element in array.reshape(-1))
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def from_json(data: object, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return the tensor that JSON data stand for, nested or flat.

    Raises:
        RequestError: The datatype cannot be carried in JSON, the number of elements differs from that of
            the shape, or an element is of another type or out of range.
    """
    datatype = DATATYPES[dtype.name]
    if datatype in _NOT_IN_JSON:
        raise RequestError(f"input {name!r}: {datatype} cannot be carried in JSON: send it as binary data")
    if not isinstance(data, list):
        raise RequestError(f"input {name!r}: expected data as an array, got {_json_type(data)}")
    flat, nested = _flat(data, name)
    if len(flat) != _count(shape):
        raise RequestError(
            f"input {name!r}: shape {list(shape)} takes {_count(shape)} elements, got {len(flat)}"
        )
    if len(nested) > 1 and nested != shape:
        raise RequestError(f"input {name!r}: data are nested as {list(nested)}, shape is {list(shape)}")
    # Types are looked at before numpy does: it would make room for the longest text in every element.
    if not set(map(type, flat)) <= _ELEMENTS[dtype.kind]:
        raise RequestError(f"input {name!r}: data have elements that are no {datatype}")
    array = _texts(flat, name) if dtype.kind == "O" else _numbers(flat, dtype, name)
    return array.reshape(shape)


def to_json(array: NDArray[Any], name: str) -> list[Any]:
    """Return a tensor as flat JSON data.

    Raises:
        RequestError: JSON cannot carry it: FP16, NaN and infinities, BYTES that are no UTF-8.
    """
    datatype = DATATYPES[array.dtype.name]
    advice = 'ask for it as binary data ("binary_data": true)'
    if datatype in _NOT_IN_JSON:
        raise RequestError(f"output {name!r}: {datatype} cannot be carried in JSON: {advice}")
    if array.dtype.kind == "O":
        try:
            return [element.decode() for element in array.reshape(-1)]
        except UnicodeDecodeError as e:
            raise RequestError(f"output {name!r} has elements that are no UTF-8: {advice}") from e
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"output {name!r} has NaN or infinite values, which JSON cannot carry: {advice}")
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _elements(data: memoryview, count: int, name: str) -> NDArray[Any]:
    # Each has 4 bytes at least, so that a huge shape is refused before an array of its size is made.
    if count * _LENGTH.size > len(data):
        raise RequestError(f"input {name!r}: {count} BYTES elements do not fit in {len(data)} bytes")
    array, at = np.empty(count, object), 0
    for i in range(count):
        if at + _LENGTH.size > len(data):
            raise RequestError(f"input {name!r}: the data end before BYTES element {i}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise RequestError(
                f"input {name!r}: BYTES element {i} says {length} bytes, {len(data) - at} are left"
            )
        array[i] = bytes(data[at : at + length])
        at += length
    if at != len(data):
        raise RequestError(f"input {name!r}: {len(data) - at} bytes are left after {count} BYTES elements")
    return array


def _texts(flat: list[Any], name: str) -> NDArray[Any]:
    array = np.empty(len(flat), object)
    try:
        array[:] = [element.encode() for element in flat]
    except UnicodeEncodeError as e:  # a lone surrogate
        raise RequestError(f"input {name!r}: an element is no text that UTF-8 can carry") from e
    return array


def _flat(data: list[Any], name: str) -> tuple[list[Any], tuple[int, ...]]:
    """Return the elements of nested data, in order, and how they are nested."""
    flat, nested = data, [len(data)]
    while any(isinstance(element, list) for element in flat):
        lengths = {len(element) if isinstance(element, list) else -1 for element in flat}
        if len(lengths) != 1 or len(nested) > _MOST_AXES:
            raise RequestError(f"input {name!r}: data are nested unevenly, or too deeply")
        flat = [element for row in flat for element in row]
        nested.append(lengths.pop())
    return flat, tuple(nested)


def _numbers(flat: list[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    if not flat:
        return np.empty(0, dtype)
    datatype = DATATYPES[dtype.name]
    array = np.asarray(flat)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        # Integers beyond 64 bits are of kind O; -1 beside 2**63 is of kind f.
        if array.dtype.kind not in "iu" or int(array.min()) < info.min or int(array.max()) > info.max:
            raise RequestError(f"input {name!r}: values of {datatype} go from {info.min} to {info.max}")
        return array.astype(dtype)
    try:
        with np.errstate(over="ignore"):
            converted = array.astype(dtype)
    except OverflowError:  # an integer of hundreds of digits
        converted = np.array([np.inf], dtype)
    if dtype.kind == "f" and not np.isfinite(converted).all():
        raise RequestError(f"input {name!r}: a value is too large for {datatype}")
    return converted


def _json_type(value: object) -> str:
    if value is None:
        return "null, or no data at all"
    return {bool: "a boolean", int: "a number", float: "a number", str: "a text"}.get(
        type(value), "an object"
    )
