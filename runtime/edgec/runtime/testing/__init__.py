"""Tiny models and artifacts, for the tests of applications and of backends; they need no ``onnx`` package.

from edgec.runtime.testing import tiny_artifact

path = tiny_artifact(tmp_path / "tiny.edgec")
with load(path) as session:
    session.run({"x": np.ones((1, 4), np.float32)})
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import (
    GOLDEN,
    EngineSpec,
    GoldenVector,
    Manifest,
    Pipeline,
    TensorSpec,
    encode_golden,
    pack,
)

# Numbers of element types in onnx.proto.
_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9,
    "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
_IR_VERSION = 8
_OPSET = 17
_ALIGNMENT = 64


@dataclass(frozen=True)
class Node:
    """A node of an ONNX graph.

    Attributes:
        operator: Of the default domain: ``MatMul``.
        inputs: Names of tensors.
        outputs: Names of tensors.
        attributes: By name: an int, a float, a text, a list of ints, or an array.
    """

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int | float | str | list[int] | NDArray[Any]] = field(default_factory=dict)


class MemoryPayload:
    """Members of an artifact that is not packed, in memory."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = dict(members)

    def view(self, name: str) -> memoryview:
        """Return the bytes of a member."""
        return memoryview(self._members[name])


def onnx_members(
    nodes: Sequence[Node],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    weights: Mapping[str, NDArray[Any]] | None = None,
    *,
    external_bytes: int = 1024,
) -> dict[str, bytes]:
    """Return the members of an ONNX payload (opset 17, IR version 8).

    Args:
        nodes: Of the graph, sorted topologically.
        inputs: Of the graph.
        outputs: Of the graph.
        weights: Initializers by name.
        external_bytes: Initializers from this size go to ``weights.bin``, the others into the graph.

    Returns:
        ``weights.bin``, where there are any that large, and ``model.onnx``.
    """
    data = bytearray()
    tensors = []
    for name, array in (weights or {}).items():
        if array.nbytes < external_bytes:
            tensors.append(_tensor(array, name, raw=array.tobytes()))
            continue
        data += b"\0" * (-len(data) % _ALIGNMENT)
        tensors.append(_tensor(array, name, place=("weights.bin", len(data), array.nbytes)))
        data += array.tobytes()
    graph = [
        *(_field(1, _node(node, f"{node.operator}_{i}")) for i, node in enumerate(nodes)),
        _field(2, "graph"),
        *(_field(5, tensor) for tensor in tensors),
        *(_field(11, _value(spec)) for spec in inputs),
        *(_field(12, _value(spec)) for spec in outputs),
    ]
    model = _field(1, _IR_VERSION) + _field(7, b"".join(graph)) + _field(8, _field(2, _OPSET))
    return {**({"weights.bin": bytes(data)} if data else {}), "model.onnx": model}


def tiny_artifact(
    path: str | Path,
    *,
    batch: int | str = 1,
    pipeline: Pipeline | None = None,
    engine: EngineSpec | None = None,
    fallback: EngineSpec | None = None,
) -> Path:
    """Pack an artifact for ONNX Runtime: ``y = relu(x @ w + b)``, 4 numbers in, 3 out, two golden vectors.

    Args:
        path: Where to.
        batch: Size of the first axis, or the name of a dimension that may have any size.
        pipeline: Pre- and post-processing.
        engine: Declared in place of ONNX Runtime on the CPU.
        fallback: Declared fallback.

    Returns:
        `path`.
    """
    random = np.random.default_rng(7)
    w = random.standard_normal((4, 3)).astype(np.float32)
    b = random.standard_normal(3).astype(np.float32)
    inputs = (TensorSpec("x", "float32", (batch, 4)),)
    outputs = (TensorSpec("y", "float32", (batch, 3)),)
    nodes = [Node("MatMul", ["x", "w"], ["h"]), Node("Add", ["h", "b"], ["a"]), Node("Relu", ["a"], ["y"])]
    members = onnx_members(nodes, inputs, outputs, {"w": w, "b": b}, external_bytes=0)
    vectors = []
    for _ in range(2):
        x = random.standard_normal((1 if isinstance(batch, str) else batch, 4)).astype(np.float32)
        vectors.append(GoldenVector(inputs={"x": x}, outputs={"y": np.maximum(x @ w + b, 0)}))
    manifest = Manifest(
        model="tiny",
        model_version="1",
        target="cpu-x86_64",
        engine=engine or onnxruntime_spec(),
        fallback=fallback,
        inputs=inputs,
        outputs=outputs,
        pipeline=pipeline,
        golden={"y": {"max_abs_error": 1e-5}},
    )
    return pack(path, manifest, {**members, GOLDEN: encode_golden(vectors)})


def onnxruntime_spec(*, weights: bool = True, precision: str = "fp32") -> EngineSpec:
    """Return how ONNX Runtime runs a payload of `onnx_members`."""
    files = ("model.onnx", "weights.bin") if weights else ("model.onnx",)
    return EngineSpec(name="onnxruntime", version=">=1.23", device="CPU", precision=precision, files=files)


def _node(node: Node, name: str) -> bytes:
    return b"".join(
        [
            *(_field(1, tensor) for tensor in node.inputs),
            *(_field(2, tensor) for tensor in node.outputs),
            _field(3, name),
            _field(4, node.operator),
            *(_field(5, _attribute(key, value)) for key, value in node.attributes.items()),
        ]
    )


def _attribute(name: str, value: int | float | str | list[int] | NDArray[Any]) -> bytes:
    if isinstance(value, int):
        body, kind = _field(3, value), 2
    elif isinstance(value, float):
        body, kind = b"\x15" + struct.pack("<f", value), 1
    elif isinstance(value, str):
        body, kind = _field(4, value), 3
    elif isinstance(value, list):
        body, kind = b"".join(_field(8, i) for i in value), 7
    else:
        body, kind = _field(5, _tensor(value, name, raw=value.tobytes())), 4
    return _field(1, name) + body + _field(20, kind)


def _tensor(
    array: NDArray[Any], name: str, *, raw: bytes | None = None, place: tuple[str, int, int] | None = None
) -> bytes:
    parts = [_field(1, size) for size in array.shape]
    parts += [_field(2, _TYPES[array.dtype.name]), _field(8, name)]
    if raw is not None:
        parts.append(_field(9, raw))
    if place is not None:
        for key, value in zip(("location", "offset", "length"), place, strict=True):
            parts.append(_field(13, _field(1, key) + _field(2, str(value))))
        parts.append(_field(14, 1))
    return b"".join(parts)


def _value(spec: TensorSpec) -> bytes:
    sizes: Iterable[bytes] = (_field(2 if isinstance(size, str) else 1, size) for size in spec.shape)
    shape = b"".join(_field(1, size) for size in sizes)
    tensor = _field(1, _TYPES[spec.dtype]) + _field(2, shape)
    return _field(1, spec.name) + _field(2, _field(1, tensor))


def _field(number: int, value: int | str | bytes) -> bytes:
    """Return one field of a protocol buffer: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF  # negative numbers are 64 bits, two's complement
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
