"""Tiny models for LiteRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.runtime.testing import Node

Quantization = tuple[NDArray[np.float32], NDArray[np.int64], int]

_TYPES = {
    "float32": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT16,
    "float64": schema.TensorType.FLOAT64, "uint8": schema.TensorType.UINT8, "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64, "bool": schema.TensorType.BOOL,
}  # fmt: skip
_OPERATORS = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_VERSIONS = {schema.BuiltinOperator.CONV_2D: 3}  # from this on, int8 with a scale per channel


def litert_members(
    nodes: Sequence[Node],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, bytes]:
    """Return the member of a LiteRT payload, ``model.tflite``, whose operators are those of the nodes.

    Args:
        nodes: Sorted; of ``MatMul`` by a constant, ``Add``, ``Sub``, ``Neg``, ``Relu``, ``Cast``.
        inputs: Of the graph.
        outputs: Of the graph.
        weights: Constants by name.
    """
    file = LiteRtFile()
    for spec in inputs:
        file.tensor(spec.name, spec.dtype, spec.shape)
    dtypes = {spec.name: spec.dtype for spec in (*inputs, *outputs)}
    for name, array in (weights or {}).items():
        # FULLY_CONNECTED has the outputs first.
        products = [n for n in nodes if n.operator == "MatMul" and n.inputs[1] == name]
        file.constant(name, array.T if products else array)
    for node in nodes:
        (output,) = node.outputs
        first = file.axes(node.inputs[0])
        if node.operator == "MatMul":
            first = (*first[:-1], file.axes(node.inputs[1])[0])
        file.tensor(output, dtypes.get(output, "float32"), first)
        file.operator(*_builtin(node.operator), node.inputs, [output])
    return {"model.tflite": file.to_bytes([i.name for i in inputs], [o.name for o in outputs])}


def litert_spec(*, precision: str = "fp32", device: str = "CPU") -> EngineSpec:
    """Return how LiteRT runs a payload of `litert_members`."""
    return EngineSpec(
        name="litert", version=">=2.1,<3", device=device, precision=precision, files=("model.tflite",)
    )


def int8_convolution_members() -> dict[str, bytes]:
    """Return a full-integer file: ``x`` int8[1, 16, 16, 8] to ``y`` int8[1, 16, 16, 16], padded, 3 x 3."""
    random = np.random.default_rng(0)
    scale, zero_point = np.array([0.05], np.float32), np.array([0], np.int64)
    scales, zeros = np.full(16, 0.01, np.float32), np.zeros(16, np.int64)
    file = LiteRtFile()
    file.tensor("x", "int8", (1, 16, 16, 8), (scale, zero_point, 0))
    file.tensor("y", "int8", (1, 16, 16, 16), (scale, zero_point, 0))
    weights = random.integers(-127, 128, (16, 3, 3, 8)).astype(np.int8)
    file.constant("w", weights, (scales, zeros, 0))
    file.constant("b", np.zeros(16, np.int32), (scales * scale[0], zeros, 0))
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = 1
    file.operator(_OPERATORS.CONV_2D, _OPTIONS.Conv2DOptions, options, ["x", "w", "b"], ["y"])
    return {"model.tflite": file.to_bytes(["x"], ["y"])}


class LiteRtFile:
    """A TFLite file in the making; its tensors are named."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._buffers = [schema.BufferT()]  # the first is the empty one
        self._codes: list[int] = []
        self._index: dict[str, int] = {}

    def axes(self, name: str) -> tuple[int | str, ...]:
        """Return the shape of a tensor, as it was given."""
        tensor = self._tensors[self._index[name]]
        signature = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        return tuple("free" if n == -1 else int(n) for n in signature)

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int | str],
        quantization: Quantization | None = None,
        buffer: int = 0,
    ) -> None:
        """Add a tensor; a dimension that is a text is free."""
        made = schema.TensorT()
        made.name, made.type, made.buffer = name, _TYPES[dtype], buffer
        made.shape = [1 if isinstance(n, str) else n for n in shape]
        if any(isinstance(n, str) for n in shape):
            made.shapeSignature = [-1 if isinstance(n, str) else n for n in shape]
        if quantization is not None:
            made.quantization = schema.QuantizationParametersT()
            scales, zero_points, axis = quantization
            made.quantization.scale, made.quantization.zeroPoint = list(scales), list(zero_points)
            made.quantization.quantizedDimension = axis
        self._index[name] = len(self._tensors)
        self._tensors.append(made)

    def constant(self, name: str, array: NDArray[Any], quantization: Quantization | None = None) -> None:
        """Add a constant."""
        buffer: Any = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._buffers.append(buffer)
        self.tensor(name, array.dtype.name, array.shape, quantization, len(self._buffers) - 1)

    def operator(
        self, code: int, kind: int, options: Any, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        """Add an operator: its code, the kind of its options, and these."""
        if code not in self._codes:
            self._codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.index(code)
        made.inputs = [self._index[name] for name in inputs]
        made.outputs = [self._index[name] for name in outputs]
        made.builtinOptionsType, made.builtinOptions = kind, options
        self._operators.append(made)

    def to_bytes(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """Return the file."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs = [self._index[name] for name in inputs]
        graph.outputs = [self._index[name] for name in outputs]
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [graph], self._buffers
        model.operatorCodes = []
        for code in self._codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.deprecatedBuiltinCode = code, min(code, 127)
            made.version = _VERSIONS.get(code, 1)
            model.operatorCodes.append(made)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _builtin(operator: str) -> tuple[int, int, Any]:
    """Return the code of an operator, the kind of its options, and these."""
    match operator:
        case "MatMul":
            options = schema.FullyConnectedOptionsT()
            return _OPERATORS.FULLY_CONNECTED, _OPTIONS.FullyConnectedOptions, options
        case "Add":
            return _OPERATORS.ADD, _OPTIONS.AddOptions, schema.AddOptionsT()
        case "Sub":
            return _OPERATORS.SUB, _OPTIONS.SubOptions, schema.SubOptionsT()
        case "Neg":
            return _OPERATORS.NEG, _OPTIONS.NegOptions, schema.NegOptionsT()
        case "Relu":
            return _OPERATORS.RELU, _OPTIONS.NONE, None
        case "Cast":
            return _OPERATORS.CAST, _OPTIONS.NONE, None
    raise ValueError(f"expected MatMul, Add, Sub, Neg, Relu or Cast, got {operator!r}")
