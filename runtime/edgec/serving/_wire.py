"""Inference requests and responses of the Open Inference Protocol, from bytes and to bytes; no I/O.

A request is read in two steps. Its *header*, the JSON, becomes a `Plan`, which holds no data; where all
inputs are binary, the same header means the same plan, so that the caller may keep it. The plan then
takes the tensors out of the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import RequestError
from edgec.serving._datatypes import KNOWN, datatype_of, from_json, from_raw, to_json, to_raw

Tensors = Mapping[str, NDArray[Any]]
_MOST_AXES = 32
_LARGEST_AXIS = 2**63 - 1
_MOST_ID = 4096
_MOST_KEPT_HEADERS = 16
_DIGITS = re.compile(rb"[0-9]{1,18}")
_JSON_HEADERS = [(b"content-type", b"application/json")]


@dataclass(frozen=True)
class _Input:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    binary_bytes: int | None  # None where `data` holds it
    data: object


@dataclass(frozen=True)
class Plan:
    """What the header of an inference request says.

    Attributes:
        id: Of the request, to be echoed; None where it has none.
        inputs: In the order of the request.
        outputs: Name of each output that is wanted, in order, and whether it is wanted as binary data.
        queue_timeout_s: Longest wait for its turn, in seconds; None for as long as it takes.
        response_headers: JSON of responses that were written, where all that follows is binary.
    """

    id: str | None
    inputs: tuple[_Input, ...]
    outputs: tuple[tuple[str, bool], ...]
    queue_timeout_s: float | None
    response_headers: dict[tuple[Any, ...], bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_reusable(self) -> bool:
        """Whether it holds no data, so that it means the same with another body."""
        return all(i.binary_bytes is not None for i in self.inputs)

    def tensors(self, binary: memoryview) -> dict[str, NDArray[Any]]:
        """Return the inputs by name.

        Args:
            binary: What follows the header in the body.

        Raises:
            RequestError: The data are not what the header says.
        """
        total = sum(i.binary_bytes or 0 for i in self.inputs)
        if total != len(binary):
            raise RequestError(
                f"the inputs declare {total} bytes of binary data, {len(binary)} follow the header"
            )
        at, tensors = 0, {}
        for spec in self.inputs:
            if spec.binary_bytes is None:
                tensors[spec.name] = from_json(spec.data, spec.dtype, spec.shape, spec.name)
            else:
                part = binary[at : at + spec.binary_bytes]
                tensors[spec.name] = from_raw(part, spec.dtype, spec.shape, spec.name)
                at += spec.binary_bytes
        return tensors


def header_size(value: bytes | None, body_bytes: int) -> int | None:
    """Return how many bytes of the body are JSON; None where the whole body is.

    Args:
        value: Of the HTTP header ``Inference-Header-Content-Length``; None where it is absent.
        body_bytes: Size of the body.

    Raises:
        RequestError: It is no number, or beyond the body.
    """
    if value is None:
        return None
    if not _DIGITS.fullmatch(value.strip()):
        raise RequestError("Inference-Header-Content-Length is not a decimal number")
    size = int(value)
    if size > body_bytes:
        raise RequestError(
            f"Inference-Header-Content-Length says {size} bytes, the body has {body_bytes} when decompressed"
        )
    return size


def read_json(data: bytes | memoryview) -> Any:
    """Return what a JSON document says; NaN, infinities and repeated keys are refused.

    Raises:
        RequestError: It is not JSON in UTF-8, or too deep.
    """
    try:
        return json.loads(str(data, "utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as e:
        raise RequestError("expected JSON in UTF-8") from e
    except RecursionError as e:
        raise RequestError("the JSON is nested too deeply") from e
    except ValueError as e:  # JSONDecodeError, or an integer of thousands of digits
        raise RequestError(f"expected JSON: {str(e)[:200]}") from e


def read_plan(
    header: bytes | memoryview, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Plan:
    """Read the header of an inference request.

    Args:
        header: The JSON.
        inputs: What the model takes.
        outputs: What the model gives.

    Raises:
        RequestError: It is malformed, or not for this model; shapes are checked by who runs it.
    """
    document = _object(read_json(header), "the request")
    identity = document.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > _MOST_ID):
        raise RequestError(f"id: expected a text of at most {_MOST_ID} characters")
    parameters = _parameters(document, "the request")
    timeout = _number(parameters, "timeout", "the request")
    return Plan(
        id=identity or None,
        inputs=_inputs(document, {spec.name: spec for spec in inputs}),
        outputs=_outputs(document, [spec.name for spec in outputs], parameters),
        queue_timeout_s=timeout / 1e6 if timeout else None,
    )


def read_raw(
    body: memoryview, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[Plan, memoryview]:
    """Read a request that is nothing but the bytes of its one tensor.

    At most one dimension may be free; it follows from the size. Outputs come back as binary data.

    Returns:
        The plan, and the binary data for it.

    Raises:
        RequestError: The model takes several inputs, has more free dimensions, or the size does not fit.
    """
    if len(inputs) != 1:
        raise RequestError(f"a raw binary request is for models with one input, this one has {len(inputs)}")
    (spec,) = inputs
    dtype = np.dtype(spec.dtype)
    wanted = tuple((output.name, True) for output in outputs)
    if dtype.kind == "O":  # of shape [1]: the body is the element, without its length
        element = memoryview(len(body).to_bytes(4, "little") + body)
        return Plan(None, (_Input(spec.name, dtype, (1,), len(element), None),), wanted, None), element
    shape = _fitting_shape(spec, dtype, len(body))
    return Plan(None, (_Input(spec.name, dtype, shape, len(body), None),), wanted, None), body


def _fitting_shape(spec: TensorSpec, dtype: np.dtype[Any], size: int) -> tuple[int, ...]:
    free = sum(isinstance(n, str) for n in spec.shape)
    if free > 1:
        raise RequestError(f"a raw binary request needs all dimensions but one, input {spec} has more")
    unit = dtype.itemsize
    for n in spec.shape:
        unit *= n if isinstance(n, int) else 1
    if size != unit and not (free and unit and size % unit == 0):
        raise RequestError(f"a raw binary request of {size} bytes does not fit input {spec}")
    return tuple(n if isinstance(n, int) else size // unit for n in spec.shape)


def write_response(
    plan: Plan, model: str, version: str, tensors: Tensors
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of the response to a request that was run.

    Raises:
        RequestError: An output is wanted as JSON, which cannot carry it.
    """
    raw = {name: to_raw(tensors[name]) for name, as_binary in plan.outputs if as_binary}
    if not raw:
        return _JSON_HEADERS, _response_header(plan, model, version, tensors, {})
    if len(raw) < len(plan.outputs):
        header = _response_header(plan, model, version, tensors, raw)
    else:
        key = (model, version, *((tensors[name].shape, len(data)) for name, data in raw.items()))
        kept = plan.response_headers.get(key)
        header = kept or _response_header(plan, model, version, tensors, raw)
        if kept is None and len(plan.response_headers) < _MOST_KEPT_HEADERS:
            plan.response_headers[key] = header
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(header)),
    ]
    return headers, b"".join([header, *raw.values()])


def _response_header(
    plan: Plan, model: str, version: str, tensors: Tensors, raw: Mapping[str, bytes | memoryview]
) -> bytes:
    """Return the JSON of a response; what is in `raw` follows it."""
    described = []
    for name, _ in plan.outputs:
        array = tensors[name]
        entry: dict[str, Any] = {
            "name": name, "datatype": datatype_of(array.dtype.name), "shape": list(array.shape)
        }  # fmt: skip
        if name in raw:
            entry["parameters"] = {"binary_data_size": len(raw[name])}
        else:
            entry["data"] = to_json(array, name)
        described.append(entry)
    document = {"model_name": model, "model_version": version, "outputs": described}
    if plan.id is not None:
        document["id"] = plan.id
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _inputs(document: dict[str, Any], specs: Mapping[str, TensorSpec]) -> tuple[_Input, ...]:
    given = document.get("inputs")
    if not isinstance(given, list) or not given:
        raise RequestError(f"inputs: expected an array of tensors, the model takes {_listed(specs)}")
    read = [_input(_object(entry, f"inputs[{i}]"), i, specs) for i, entry in enumerate(given)]
    names = [i.name for i in read]
    if len(set(names)) != len(names):
        raise RequestError("inputs: a name occurs twice")
    missing = [name for name in specs if name not in names]
    if missing:
        raise RequestError(
            f"inputs: {', '.join(map(repr, missing))} missing, the model takes {_listed(specs)}"
        )
    return tuple(read)


def _input(entry: dict[str, Any], number: int, specs: Mapping[str, TensorSpec]) -> _Input:
    where = f"inputs[{number}]"
    name = entry.get("name")
    if not isinstance(name, str) or name not in specs:
        raise RequestError(f"{where}: unknown name {_quoted(name)}, the model takes {_listed(specs)}")
    spec = specs[name]
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in KNOWN:
        raise RequestError(f"input {name!r}: unknown datatype {_quoted(datatype)}")
    if datatype != datatype_of(spec.dtype):
        raise RequestError(f"input {name!r}: expected {datatype_of(spec.dtype)}, got {datatype}")
    shape = _shape(entry.get("shape"), name)
    parameters = _parameters(entry, f"input {name!r}")
    _refuse_shared_memory(parameters, f"input {name!r}")
    size = _number(parameters, "binary_data_size", f"input {name!r}")
    if size is not None and "data" in entry:
        raise RequestError(f"input {name!r}: it has both data and binary_data_size")
    if size is None and "data" not in entry:
        raise RequestError(f"input {name!r}: it has neither data nor binary_data_size")
    return _Input(name, np.dtype(spec.dtype), shape, size, entry.get("data"))


def _shape(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise RequestError(f"input {name!r}: shape: expected an array of at most {_MOST_AXES} sizes")
    for n in value:
        if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= _LARGEST_AXIS:
            raise RequestError(f"input {name!r}: shape: {_quoted(n)} is no size of a dimension")
    return tuple(value)


def _outputs(
    document: dict[str, Any], known: list[str], parameters: dict[str, Any]
) -> tuple[tuple[str, bool], ...]:
    everywhere = _flag(parameters, "binary_data_output", "the request")
    given = document.get("outputs")
    if given is not None and not isinstance(given, list):
        raise RequestError("outputs: expected an array")
    if not given:  # missing and empty are both: all of them
        return tuple((name, bool(everywhere)) for name in known)
    wanted: dict[str, bool] = {}
    for i, entry in enumerate(given):
        name = _object(entry, f"outputs[{i}]").get("name")
        if not isinstance(name, str) or name not in known:
            raise RequestError(
                f"outputs[{i}]: unknown name {_quoted(name)}, the model gives {', '.join(map(repr, known))}"
            )
        if name in wanted:
            raise RequestError(f"outputs: {name!r} occurs twice")
        own = _parameters(entry, f"output {name!r}")
        _refuse_shared_memory(own, f"output {name!r}")
        if own.get("classification"):
            raise RequestError(f"output {name!r}: the classification extension is not supported")
        flag = _flag(own, "binary_data", f"output {name!r}")
        wanted[name] = bool(everywhere) if flag is None else flag
    return tuple(wanted.items())


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters of a part of the request; those that nobody knows are left alone."""
    return _object(entry.get("parameters") or {}, f"{where}: parameters")


def _refuse_shared_memory(parameters: dict[str, Any], where: str) -> None:
    if "shared_memory_region" in parameters:
        raise RequestError(f"{where}: shared memory is not supported: send the data")


def _flag(parameters: dict[str, Any], key: str, where: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{where}: {key}: expected true or false, got {_quoted(value)}")
    return value


def _number(parameters: dict[str, Any], key: str, where: str) -> int | None:
    value = parameters.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_AXIS:
        raise RequestError(f"{where}: {key}: expected a number of at least 0, got {_quoted(value)}")
    return value


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected an object, got {_quoted(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return document


def _refuse_constant(value: str) -> NoReturn:
    raise ValueError(f"{value} is not JSON: send it as binary data")


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(map(str, specs.values()))


def _quoted(value: object) -> str:
    """Return a value of a request for a message, cut: whoever sent it may have sent much of it."""
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, bool | int | float) and abs(value) < 1e20:
        return json.dumps(value)
    return {type(None): "null", list: "an array", dict: "an object"}.get(type(value), "a number")
