"""A TFLite file under construction: tensors, buffers and operators, packed to bytes.

A typed layer over the object API that `ai_edge_litert` generates from LiteRT's schema
(https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs). That module needs numpy and
`flatbuffers` alone: importing it loads no interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ai_edge_litert.schema_py_generated as _schema
import flatbuffers
import numpy as np
from numpy.typing import NDArray

from edgec.compiler.tflite.versions import operator_version

S: Any = _schema  # generated code: its classes declare no types
B: Any = S.BuiltinOperator
_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
SIGNATURE = "serving_default"  # the key under which every runtime looks first

_TYPES: dict[str, int] = {
    "float32": S.TensorType.FLOAT32,
    "float16": S.TensorType.FLOAT16,
    "float64": S.TensorType.FLOAT64,
    "int8": S.TensorType.INT8,
    "uint8": S.TensorType.UINT8,
    "int16": S.TensorType.INT16,
    "uint16": S.TensorType.UINT16,
    "int32": S.TensorType.INT32,
    "uint32": S.TensorType.UINT32,
    "int64": S.TensorType.INT64,
    "uint64": S.TensorType.UINT64,
    "bool": S.TensorType.BOOL,
}
DTYPES = frozenset(_TYPES)


@dataclass(frozen=True)
class Quant:
    """How integers stand for real numbers: ``real = scale * (integer - zero_point)``.

    Attributes:
        scale: One, or one per index of `axis`; exactly representable in float32.
        zero_point: Of all scales.
        dtype: Of the integers.
        axis: Of the tensor in the file that the scales belong to.
    """

    scale: tuple[float, ...]
    zero_point: int
    dtype: str
    axis: int = 0


@dataclass
class Tensor:
    """One tensor of the file; `buffer` 0 is the empty buffer of what is computed at run time."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None
    buffer: int = 0
    variable: bool = False


@dataclass(frozen=True)
class Operation:
    """One operator of the file; an absent optional input is -1.

    `intermediates` are tensors of no data that tell some kernels the scales inside of them.
    """

    builtin: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = None
    intermediates: tuple[int, ...] = ()


class FlatModel:
    """Collects a model of one subgraph. Buffers with the same bytes, and equal constants, exist once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operations: list[Operation] = []
        self._buffers: list[bytes] = [b""]
        self._buffer_index: dict[bytes, int] = {b"": 0}
        self._constants: dict[tuple[int, tuple[int, ...], str, Quant | None], int] = {}
        self._names: set[str] = set()

    def add_tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        quant: Quant | None = None,
        *,
        variable: bool = False,
    ) -> int:
        """Add a tensor that is computed at run time and return its index; the name is made unique."""
        tensor = Tensor(self._unique(name), tuple(map(int, shape)), dtype, quant, variable=variable)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_constant(self, name: str, array: NDArray[Any], quant: Quant | None = None) -> int:
        """Return the index of a constant tensor; one that is there already is shared."""
        array = np.asarray(array, order="C")  # not ascontiguousarray, which gives a scalar an axis
        data = array.tobytes()
        buffer = self._buffer_index.get(data)
        if buffer is None:
            buffer = self._buffer_index[data] = len(self._buffers)
            self._buffers.append(data)
        key = (buffer, array.shape, array.dtype.name, quant)
        if key not in self._constants:
            self._constants[key] = self.add_tensor(name, array.shape, array.dtype.name, quant)
            self.tensors[-1].buffer = buffer
        return self._constants[key]

    def data(self, index: int) -> bytes | None:
        """Return the bytes of a constant; None for a tensor that is computed."""
        return self._buffers[self.tensors[index].buffer] if self.is_constant(index) else None

    def is_constant(self, index: int) -> bool:
        """Whether a tensor is in the file."""
        return self.tensors[index].buffer != 0

    def add_operation(
        self,
        builtin: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        *,
        intermediates: Sequence[int] = (),
    ) -> None:
        """Append an operator; `options` is the schema's object for it, such as ``Conv2DOptionsT``."""
        self.operations.append(
            Operation(builtin, tuple(inputs), tuple(outputs), options, tuple(intermediates))
        )

    def rename(self, index: int, name: str) -> None:
        """Give a tensor exactly this name; whatever else has it gets another."""
        for other in self.tensors:
            if other.name == name and other is not self.tensors[index]:
                other.name = self._unique(f"{name}/inner")
        self._names.add(name)
        self.tensors[index].name = name

    def pack(self, inputs: Sequence[int], outputs: Sequence[int], description: str) -> bytes:
        """Return the file; the same content gives the same bytes.

        Inputs and outputs are also named by a signature, whose names are those of the tensors.
        """
        self._drop_unused(set(inputs) | set(outputs))
        model, subgraph = S.ModelT(), S.SubGraphT()
        codes: dict[tuple[int, int], int] = {}
        subgraph.operators = [self._operator(o, codes) for o in self.operations]
        subgraph.name = "main"
        subgraph.inputs = np.array([self._kept[i] for i in inputs], np.int32)
        subgraph.outputs = np.array([self._kept[i] for i in outputs], np.int32)
        buffers: dict[int, int] = {0: 0}
        subgraph.tensors = [_tensor(self.tensors[i], buffers) for i in self._kept]
        model.version, model.description = _SCHEMA_VERSION, description
        model.operatorCodes = [_code(builtin, version) for builtin, version in codes]
        model.subgraphs = [subgraph]
        model.buffers = [_buffer(self._buffers[b]) for b in buffers]
        model.signatureDefs = [self._signature(inputs, outputs)]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _drop_unused(self, kept: set[int]) -> None:
        """Drop operators that nothing takes a result of, and tensors that no operator touches."""
        live = set(kept)
        operations = []
        for operation in reversed(self.operations):
            if live & set(operation.outputs):
                touched = (*operation.inputs, *operation.outputs, *operation.intermediates)
                live.update(i for i in touched if i >= 0)
                operations.append(operation)
        self.operations = operations[::-1]
        self._kept = {old: new for new, old in enumerate(sorted(live))}

    def _operator(self, operation: Operation, codes: dict[tuple[int, int], int]) -> Any:
        taken = [self.tensors[i] if i >= 0 else None for i in operation.inputs]
        given = [self.tensors[i] for i in operation.outputs]
        version = operator_version(builtin_name(operation.builtin), taken, given, operation.options)
        made = S.OperatorT()
        made.opcodeIndex = codes.setdefault((operation.builtin, version), len(codes))
        made.inputs = np.array([self._kept.get(i, -1) for i in operation.inputs], np.int32)
        made.outputs = np.array([self._kept[i] for i in operation.outputs], np.int32)
        if operation.intermediates:
            made.intermediates = np.array([self._kept[i] for i in operation.intermediates], np.int32)
        if operation.options is not None:
            kind = type(operation.options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(S.BuiltinOptions, kind)
            made.builtinOptions = operation.options
        return made

    def _signature(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        made = S.SignatureDefT()
        made.signatureKey, made.subgraphIndex = SIGNATURE, 0
        made.inputs = [self._map(i) for i in inputs]
        made.outputs = [self._map(i) for i in outputs]
        return made

    def _map(self, index: int) -> Any:
        made = S.TensorMapT()
        made.name, made.tensorIndex = self.tensors[index].name, self._kept[index]
        return made

    def _unique(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._names:
            unique, number = f"{name};{number}", number + 1
        self._names.add(unique)
        return unique


def builtin_name(builtin: int) -> str:
    """Return the schema's name of an operator: ``CONV_2D``."""
    return _NAMES[builtin]


_NAMES: dict[int, str] = {number: name for name, number in vars(S.BuiltinOperator).items() if name.isupper()}


def _tensor(tensor: Tensor, buffers: dict[int, int]) -> Any:
    made = S.TensorT()
    made.name, made.shape = tensor.name, np.array(tensor.shape, np.int32)
    made.type = _TYPES[tensor.dtype]
    made.buffer = buffers.setdefault(tensor.buffer, len(buffers))
    made.isVariable, made.hasRank = tensor.variable, True
    if tensor.quant is not None:
        quant = S.QuantizationParametersT()
        quant.scale = np.array(tensor.quant.scale, np.float32)
        quant.zeroPoint = np.full(len(tensor.quant.scale), tensor.quant.zero_point, np.int64)
        quant.quantizedDimension = tensor.quant.axis
        made.quantization = quant
    return made


def _code(builtin: int, version: int) -> Any:
    made = S.OperatorCodeT()
    made.builtinCode, made.version = builtin, version
    # Readers from before 2020 know this byte only; 127 tells the others to look at `builtinCode`.
    made.deprecatedBuiltinCode = min(builtin, int(B.PLACEHOLDER_FOR_GREATER_OP_CODES))
    return made


def _buffer(data: bytes) -> Any:
    made = S.BufferT()
    if data:
        made.data = np.frombuffer(data, np.uint8)
    return made


def element_size(number: int) -> int:
    """Return how many bytes an element of a type of the schema has; 1 where the writer lacks the type."""
    return _SIZES.get(number, 1)


_SIZES: dict[int, int] = {number: np.dtype(name).itemsize for name, number in _TYPES.items()}
