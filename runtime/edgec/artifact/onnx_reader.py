"""Reads which tensors of an ONNX model lie in other files, without the onnx package.

Two things need it. ONNX Runtime before 1.24 wants such tensors one by one. And a model from outside
must not make an engine read a file of the device: every location has to be a member of the artifact.

It follows the encoding of protocol buffers (protobuf.dev/programming-guides/encoding) and the field
numbers of onnx.proto, and reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgec.errors import ArtifactError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 32  # of messages in messages; a model with subgraphs has less than 20
_TENSOR = "TensorProto"
# Where tensors are: message -> number of a field -> message in that field.
_FIELDS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file.

    Attributes:
        name: As in the model.
        data_type: Number of its element type in onnx.proto: 1 is float32.
        shape: One size per axis.
        location: Name of the file.
        offset: Of its first byte in the file.
        length: In bytes; None where the model leaves it to the shape.
        top_level: Whether it is an initializer of the main graph.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int | None
    top_level: bool


@dataclass(frozen=True)
class OnnxFacts:
    """What is read of a model.

    Attributes:
        nodes: How many its main graph has.
        packed_bits: Of weights that MatMulNBits unpacks: how many each has, from the fewest to the most.
        external: Every tensor that lies in another file.
    """

    nodes: int
    packed_bits: tuple[int, ...]
    external: tuple[ExternalTensor, ...]


def read_facts(model: memoryview) -> OnnxFacts:
    """Read an ONNX model.

    Raises:
        ArtifactError: The bytes are not those of an ONNX model.
    """
    try:
        graphs = [g for number, g in _read_fields(model) if number == 7 and isinstance(g, memoryview)]
        nodes = [n for graph in graphs for number, n in _read_fields(graph) if number == 1]
        bits = {b for n in nodes if isinstance(n, memoryview) and (b := _packed_bits(n)) is not None}
        return OnnxFacts(len(nodes), tuple(sorted(bits)), tuple(_walk(model, "ModelProto", 0)))
    except IndexError as e:
        raise ArtifactError("the model in the artifact is not valid ONNX: it is cut off") from e
    except ValueError as e:
        raise ArtifactError(f"the model in the artifact is not valid ONNX: {e}") from e


def _packed_bits(node: memoryview) -> int | None:
    """Return the attribute ``bits`` of a MatMulNBits, 4 where it has none; None for any other node."""
    fields = list(_read_fields(node))
    if not any(number == 4 and _is_text(value, b"MatMulNBits") for number, value in fields):
        return None
    for number, value in fields:
        if number == 5 and isinstance(value, memoryview):
            attribute = dict(_read_fields(value))
            bits = attribute.get(3)
            if _is_text(attribute.get(1), b"bits") and isinstance(bits, int):
                return bits
    return 4


def _is_text(value: int | memoryview | None, text: bytes) -> bool:
    return isinstance(value, memoryview) and bytes(value) == text


def _walk(message: memoryview, kind: str, depth: int) -> Iterator[ExternalTensor]:
    if depth > _DEEPEST:
        raise ValueError(f"messages nest deeper than {_DEEPEST}")
    inner = _FIELDS[kind]
    for number, value in _read_fields(message):
        within = inner.get(number)
        if within is None or not isinstance(value, memoryview):
            continue
        if within != _TENSOR:
            yield from _walk(value, within, depth + 1)
        elif (tensor := _read_tensor(value, top_level=depth == 1 and kind == "GraphProto")) is not None:
            yield tensor


def _read_tensor(message: memoryview, top_level: bool) -> ExternalTensor | None:
    shape: list[int] = []
    data_type, name, external = 0, "", False
    entries: dict[str, str] = {}
    for number, value in _read_fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _read_varints(value)
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8 and isinstance(value, memoryview):
            name = str(value, "utf-8")
        elif number == 13 and isinstance(value, memoryview):
            external = True
            pair = {k: str(v, "utf-8") for k, v in _read_fields(value) if isinstance(v, memoryview)}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif number == 14 and value == 1:
            external = True
    if not external:
        return None
    return ExternalTensor(
        name=name,
        data_type=data_type,
        shape=tuple(shape),
        location=entries.get("location", ""),
        offset=_natural(entries.get("offset", "0")),
        length=_natural(entries["length"]) if "length" in entries else None,
        top_level=top_level,
    )


def _natural(text: str) -> int:
    # int() alone would take signs, spaces, underscores and a million digits.
    if len(text) > 19 or not (text.isascii() and text.isdigit()):
        raise ValueError(f"expected a number of bytes, got {text[:20]!r}")
    return int(text)


def _read_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an int for a varint, bytes otherwise."""
    at, end = 0, len(message)
    while at < end:
        key, at = _read_varint(message, at)
        wire = key & 7
        value: int | memoryview
        if wire == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if wire == _BYTES:
                size, at = _read_varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise ValueError(f"unknown wire type {wire}")
            if size > end - at:
                raise ValueError("it is cut off")
            value = message[at : at + size]
            at += size
        yield key >> 3, value


def _read_varints(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _read_varint(message, at)
        values.append(value)
    return values


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
