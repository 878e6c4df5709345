"""ONNX in, a TFLite flatbuffer out.

Images go through the file as NHWC. A graph input or output of four axes that the model's convolutions see as
NCHW is NHWC in the file too, which is what NPUs and camera frames have; `TfliteTensor.permutation` says so.
Values of any other rank keep their axes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from edgec.compiler.calibration import CalibrationTable
from edgec.compiler.tflite.flatbuffer import DTYPES, Quant
from edgec.compiler.tflite.graph import Graph, Node, UnknownShapesError, read_graph
from edgec.compiler.tflite.layout import Layout, identity
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.modes import Mode
from edgec.compiler.tflite.patterns import find_patterns
from edgec.compiler.tflite.registry import NoIntegerKernel, Operator, Refused, find_operator, way_out
from edgec.errors import CalibrationError, ConversionError

# Operators that want NCHW images as NHWC; what feeds them decides the layout of the graph's inputs.
_IMAGE_OPERATORS = frozenset(
    {
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "MaxPool",
        "Resize",
        "SpaceToDepth",
    }
)
# Operators whose output has its input's layout: looked through on the way to the above.
_TRANSPARENT = frozenset(
    {"Add", "BatchNormalization", "Cast", "Clip", "Div", "Identity", "Mul", "Pad", "Relu", "Sigmoid", "Sub"}
)
_UNKNOWN = "the writer has no such operator"
IO_DTYPES = ("float32", "int8")


@dataclass(frozen=True, kw_only=True)
class TfliteTensor:
    """One input or output of the file.

    Attributes:
        name: As in the source; also its name in the signature.
        dtype: In the file.
        shape: In the file.
        source_shape: In the source.
        permutation: Axis ``i`` in the file is axis ``permutation[i]`` of the source:
            ``file_array = source_array.transpose(permutation)``.
        scale: Of int8 and int16; None where the tensor is not quantized.
        zero_point: Likewise.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source_shape: tuple[int, ...]
    permutation: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None

    @property
    def moved(self) -> bool:
        """Whether its axes are in another order than the source's."""
        return self.permutation != tuple(range(len(self.permutation)))


@dataclass(frozen=True, kw_only=True)
class TfliteModel:
    """What was written.

    Attributes:
        data: The file; the same arguments give the same bytes.
        inputs: In the source's order.
        outputs: Likewise.
        float_nodes: Names of nodes that compute in float in an integer or dynamic file: excluded ones, and
            those that have no integer kernel where the caller allows that.
    """

    data: bytes
    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]
    float_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """A node that cannot be written.

    Attributes:
        node: Its name, or its first output where it has none.
        operator: ``Conv``.
        reason: What of it.
        fix: The nearest way out.
    """

    node: str
    operator: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.reason}; {self.fix}"


class UnsupportedOperatorsError(ConversionError):
    """Nodes cannot be written as TFLite.

    Attributes:
        found: All of them, in the order of computation.
    """

    def __init__(self, found: Sequence[Unsupported], mode: Mode) -> None:
        lines = "\n".join(f"- {u}" for u in found)
        nodes = "1 node" if len(found) == 1 else f"{len(found)} nodes"
        super().__init__(f"{nodes} cannot be written as {mode.value} TFLite:\n{lines}")
        self.found = tuple(found)


def write_tflite(
    model: onnx.ModelProto,
    *,
    mode: Mode = Mode.FLOAT32,
    table: CalibrationTable | None = None,
    method: str = "minmax",
    io: str = "float32",
    exclude: Collection[str] = (),
    float_fallback: bool = False,
    keep_layout: bool = False,
) -> TfliteModel:
    """Write a model as a TFLite file.

    Args:
        model: In fp32 with fixed shapes and its weights inside, simplified; left as it is.
        mode: What the file computes with.
        table: Of this very model; needed by the integer modes, and by them only.
        method: How ranges are taken from the table, one of ``edgec.compiler.ranges.METHODS``.
        io: Dtype of float inputs and outputs in the file, in the integer modes: ``float32``, with QUANTIZE
            and DEQUANTIZE at the boundary, or ``int8`` (then int16 in mode int16x8).
        exclude: Names of nodes to leave in float, weights included; a node without a name goes by its first
            output.
        float_fallback: Whether nodes without an integer kernel stay in float rather than be refused.
        keep_layout: Whether inputs and outputs keep the source's axes, at the price of a TRANSPOSE each.

    Raises:
        UnsupportedOperatorsError: Nodes cannot be written; all are named.
        ConversionError: Shapes are not fixed, or inputs have a dtype that TFLite lacks.
        CalibrationError: An integer mode lacks the table, or it is of another model.
        ValueError: No such method or `io`.
    """
    if io not in IO_DTYPES:
        raise ValueError(f"unknown io {io!r}; there are: {', '.join(IO_DTYPES)}")
    if mode.integer and table is None:
        raise CalibrationError(
            f"{mode.value} TFLite needs the ranges of all tensors: give calibration data (--calibration)"
        )
    try:
        graph = find_patterns(read_graph(model))
    except UnknownShapesError as e:
        lacking = _lacking(e.nodes)
        if lacking:
            raise UnsupportedOperatorsError(lacking, mode) from e
        raise
    run = _Run(graph, mode, table, method, exclude, float_fallback)
    inputs = run.add_inputs(quantized=mode.integer and io != "float32", keep_layout=keep_layout)
    found = run.lower()
    if found:
        raise UnsupportedOperatorsError(found, mode)
    outputs = run.add_outputs(quantized=mode.integer and io != "float32", keep_layout=keep_layout)
    file = run.lowering.file
    return TfliteModel(
        data=file.pack([i for i, _ in inputs], [o for o, _ in outputs], "edgec"),
        inputs=tuple(t for _, t in inputs),
        outputs=tuple(t for _, t in outputs),
        float_nodes=tuple(run.float_nodes),
    )


def unsupported(
    model: onnx.ModelProto,
    mode: Mode = Mode.FLOAT32,
    *,
    exclude: Collection[str] = (),
    float_fallback: bool = False,
) -> list[Unsupported]:
    """Return every node that `write_tflite` would refuse, without calibration data; empty where none.

    Raises:
        ConversionError: Shapes are not fixed, or inputs have a dtype that TFLite lacks.
    """
    try:
        graph = find_patterns(read_graph(model))
    except UnknownShapesError as e:
        if lacking := _lacking(e.nodes):
            return lacking
        raise
    run = _Run(graph, mode, None, "minmax", exclude, float_fallback)
    run.add_inputs(quantized=False, keep_layout=False)
    return run.lower()


def _lacking(nodes: Sequence[Node]) -> list[Unsupported]:
    """Return the nodes of operators that the writer does not know at all."""
    return [
        Unsupported(node=n.name, operator=n.op, reason=_UNKNOWN, fix=way_out(n.op))
        for n in nodes
        if find_operator(n.op) is None
    ]


class _Run:
    """One pass over the nodes."""

    def __init__(
        self,
        graph: Graph,
        mode: Mode,
        table: CalibrationTable | None,
        method: str,
        exclude: Collection[str],
        float_fallback: bool,
    ) -> None:
        self.graph = graph
        self.lowering = Lowering(graph, mode, table, method, exclude)
        self.float_nodes: list[str] = []
        self._mode, self._exclude, self._fallback = mode, frozenset(exclude), float_fallback

    def add_inputs(self, *, quantized: bool, keep_layout: bool) -> list[tuple[int, TfliteTensor]]:
        """Add the graph's inputs; they come first among the tensors."""
        odd = [n for n in self.graph.inputs if self.graph.dtype(n) not in DTYPES]
        if odd:
            kinds = ", ".join(f"{n!r} is {self.graph.dtype(n)}" for n in odd)
            raise ConversionError(f"TFLite has no such inputs: {kinds}; export the model with float32 inputs")
        result = []
        for name in self.graph.inputs:
            rank = len(self.graph.shape(name))
            layout = identity(rank)
            if rank == 4 and not keep_layout:
                layout = _wanted_layout(self.graph, name) or layout
            quant = self.lowering.calibrated(name) if quantized and self.lowering.is_float(name) else None
            index = self.lowering.give(name, layout, quant)
            result.append((index, self._described(name, index, layout, quant)))
        return result

    def lower(self) -> list[Unsupported]:
        """Write every node; return those that cannot be written."""
        found = []
        for node in self.graph.nodes:
            if node.name in self.lowering.done:
                continue
            try:
                self._lower_node(node)
            except Refused as e:
                found.append(Unsupported(node=node.name, operator=node.op, reason=e.reason, fix=e.fix))
            # What a refused node would have given stands in, so that the others can be looked at too.
            for name in node.outputs:
                if found and name and not self.lowering.holds(name):
                    self.lowering.give(name, identity(self.lowering.rank(name)), None)
        return found

    def _lower_node(self, node: Node) -> None:
        operator = find_operator(node.op)
        if operator is None:
            raise Refused(_UNKNOWN, way_out(node.op))
        excluded = bool(self._exclude & {node.name, *node.outputs})
        self.lowering.hybrid = self._mode is Mode.DYNAMIC and not excluded
        if self._mode.integer and not excluded:
            try:
                self._lower_with_integers(node, operator)
                return
            except NoIntegerKernel:
                if not self._fallback:
                    raise
        self.lowering.integer = False
        if (self._mode.integer or excluded) and self._touches_floats(node):
            self.float_nodes.append(node.name)
        operator.lower(self.lowering, node)

    def _lower_with_integers(self, node: Node, operator: Operator) -> None:
        self.lowering.integer = True
        if self._mode not in operator.modes and self._touches_floats(node):
            raise NoIntegerKernel(node.op)
        operator.lower(self.lowering, node)

    def _touches_floats(self, node: Node) -> bool:
        return any(self.lowering.is_float(n) for n in (*node.inputs, *node.outputs) if n)

    def add_outputs(self, *, quantized: bool, keep_layout: bool) -> list[tuple[int, TfliteTensor]]:
        """Make the graph's outputs: each a tensor of its own, under its own name."""
        lowering, result = self.lowering, []
        lowering.integer = False  # inputs as they came in
        taken = {lowering.take(n, quant=lowering.present_quant(n)) for n in self.graph.inputs}
        lowering.integer = self._mode.integer
        for name in self.graph.outputs:
            layout = lowering.layout(name)
            rank = lowering.rank(name)
            if keep_layout or rank != 4 or sorted(layout) != list(range(4)):
                layout = identity(rank)
            real = lowering.is_float(name)
            quant = self._output_quant(name, quantized) if real else lowering.present_quant(name)
            index = lowering.take(name, layout, quant)
            if index in taken or lowering.file.is_constant(index):
                index = lowering.reshape(index, lowering.file.tensors[index].shape, name)
            taken.add(index)
            lowering.file.rename(index, name)
            result.append((index, self._described(name, index, layout, quant)))
        return result

    def _output_quant(self, name: str, quantized: bool) -> Quant | None:
        if not quantized:
            return None
        present = self.lowering.present_quant(name)
        return present if present is not None else self.lowering.calibrated(name)

    def _described(self, name: str, index: int, layout: Layout, quant: Quant | None) -> TfliteTensor:
        tensor = self.lowering.file.tensors[index]
        return TfliteTensor(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            source_shape=self.graph.shape(name),
            permutation=layout,
            scale=None if quant is None else quant.scale[0],
            zero_point=None if quant is None else quant.zero_point,
        )


def _wanted_layout(graph: Graph, name: str) -> Layout | None:
    """Return the layout in which the first operator that cares wants a value of four axes."""
    for node in graph.consumers.get(name, []):
        if node.op in _IMAGE_OPERATORS:
            return (0, 2, 3, 1)
        output = node.outputs[0]
        if len(graph.shape(output)) != 4:
            continue
        if node.op == "Transpose":
            after = _wanted_layout(graph, output)
            perm = node.ints("perm", (3, 2, 1, 0))
            if after is not None:
                return tuple(perm[axis] for axis in after)
        elif node.op in _TRANSPARENT:
            after = _wanted_layout(graph, output)
            if after is not None:
                return after
    return None
