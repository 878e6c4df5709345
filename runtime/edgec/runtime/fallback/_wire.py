"""Requests and responses of the Open Inference Protocol v2, as a client has them; no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.runtime._oip import DATATYPES

_MOST_AXES = 32
_LARGEST_AXIS = 2**40
_LARGEST_HEADER = 2**24


class MalformedError(Exception):
    """A response is not what the protocol says, or not of this model."""


class Described(NamedTuple):
    """What a server says of a tensor: its datatype, and its shape with -1 for any size."""

    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype}{list(self.shape)}"


def write_request(inputs: Mapping[str, NDArray[Any]], outputs: Sequence[TensorSpec]) -> tuple[int, bytes]:
    """Return the size of the JSON and the whole body; tensors in their own types, binary both ways."""
    described, binary = [], []
    for name, array in inputs.items():
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        binary.append(raw)
        described.append(
            {
                "name": name,
                "datatype": DATATYPES[array.dtype.name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
    wanted = [{"name": spec.name, "parameters": {"binary_data": True}} for spec in outputs]
    header = json.dumps({"inputs": described, "outputs": wanted}, separators=(",", ":")).encode()
    return len(header), b"".join([header, *binary])


def read_response(
    body: bytes, header_size: str | None, specs: Sequence[TensorSpec]
) -> dict[str, NDArray[Any]]:
    """Return the outputs of a response, in the model's order; new arrays.

    Args:
        body: All of it, from outside.
        header_size: Value of ``Inference-Header-Content-Length``; None where that is absent.
        specs: Outputs of the model.

    Raises:
        MalformedError: An output is missing, or of another type or shape; or it is no response at all.
    """
    size = _header_size(header_size, len(body))
    document = _document(body[:size])
    binary = memoryview(body)[size:]
    known = {spec.name: spec for spec in specs}
    found: dict[str, NDArray[Any]] = {}
    listed = document.get("outputs")
    if not isinstance(listed, list):
        raise MalformedError("outputs: expected an array")
    for entry in listed:
        name, spec = _named(entry, known)
        shape = _shape(entry, spec)
        raw_size = _raw_size(entry)
        if name in found:
            raise MalformedError(f"the output {name!r} comes twice")
        if raw_size is None:
            found[name] = _from_json(entry.get("data"), spec, shape)
            continue
        found[name] = _from_raw(binary[:raw_size], spec, shape, raw_size)
        binary = binary[raw_size:]
    missing = [name for name in known if name not in found]
    if missing or len(binary):
        raise MalformedError(f"outputs missing: {missing}" if missing else f"{len(binary)} bytes too many")
    return {name: found[name] for name in known}


def read_described(body: bytes) -> dict[str, Described]:
    """Return the inputs that the metadata of a model lists, by name.

    Raises:
        MalformedError: It is no metadata of a model.
    """
    listed = _document(body).get("inputs")
    found = {}
    for entry in listed if isinstance(listed, list) else ():
        name, datatype, shape = (
            [entry.get(key) for key in ("name", "datatype", "shape")]
            if isinstance(entry, dict)
            else (None, None, None)
        )
        fits = (
            isinstance(shape, list)
            and len(shape) <= _MOST_AXES
            and all(type(n) is int and -1 <= n <= _LARGEST_AXIS for n in shape)
        )
        if not isinstance(name, str) or datatype not in DATATYPES.values() or not fits:
            raise MalformedError(f"inputs: expected name, datatype and shape of each, got {entry!r:.80}")
        found[name] = Described(str(datatype), tuple(shape or ()))
    if not found:
        raise MalformedError("inputs: expected an array of at least one")
    return found


def _header_size(value: str | None, size: int) -> int:
    if value is None:
        return size
    if not (value.isascii() and value.isdigit() and len(value) < 12) or int(value) > size:
        raise MalformedError("Inference-Header-Content-Length does not fit the body")
    return int(value)


def _document(data: bytes) -> dict[str, Any]:
    if len(data) > _LARGEST_HEADER:
        raise MalformedError(f"the JSON has {len(data)} bytes, at most {_LARGEST_HEADER} are read")
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError is a ValueError
        raise MalformedError(f"expected JSON: {str(e)[:200]}") from e
    if not isinstance(document, dict):
        raise MalformedError("expected a JSON object")
    return document


def _named(entry: object, known: Mapping[str, TensorSpec]) -> tuple[str, TensorSpec]:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or name not in known:
        raise MalformedError(f"an output is not of this model: {name!r:.80}")
    spec = known[name]
    if entry.get("datatype") != DATATYPES[spec.dtype]:
        raise MalformedError(
            f"output {name!r}: expected {DATATYPES[spec.dtype]}, got {entry.get('datatype')!r:.80}"
        )
    return name, spec


def _shape(entry: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    shape = entry.get("shape")
    fits = isinstance(shape, list) and len(shape) == len(spec.shape)
    for n, wanted in zip(shape if isinstance(shape, list) else (), spec.shape, strict=False):
        fits &= type(n) is int and 0 <= n <= _LARGEST_AXIS and (isinstance(wanted, str) or n == wanted)
    if not fits:
        raise MalformedError(f"the shape of an output does not fit {spec}: {shape!r:.80}")
    return tuple(shape or ())


def _raw_size(entry: Mapping[str, Any]) -> int | None:
    parameters = entry.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0):
        raise MalformedError("binary_data_size: expected a number of at least 0")
    return size


def _from_raw(data: memoryview, spec: TensorSpec, shape: tuple[int, ...], size: int) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if size != _count(shape) * dtype.itemsize or len(data) != size:
        raise MalformedError(f"output {spec.name!r}: {size} bytes do not fit the shape {list(shape)}")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise MalformedError(f"output {spec.name!r}: a BOOL is one byte, 0 or 1")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _from_json(data: object, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    try:
        array = np.asarray(data)
    except ValueError as e:
        raise MalformedError(f"output {spec.name!r}: the data are nested unevenly") from e
    allowed = {"b": "b", "f": "iuf"}.get(dtype.kind, "iu")
    if array.size != _count(shape) or (array.size and array.dtype.kind not in allowed):
        raise MalformedError(f"output {spec.name!r}: the data are no {spec.dtype} of shape {list(shape)}")
    if dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise MalformedError(f"output {spec.name!r}: a value is out of the range of {spec.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(dtype).reshape(shape)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _refuse(value: str) -> NoReturn:
    raise ValueError(f"{value} is not JSON")
