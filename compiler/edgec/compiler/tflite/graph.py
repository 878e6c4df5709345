"""The ONNX graph as the writer reads it: nodes, constants, static shapes, who takes what."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import first_line, real_inputs
from edgec.compiler.quantization import lift_constants, raise_opset
from edgec.errors import ConversionError

_OPSET = 13  # from here on axes are inputs, and operators mean what the lowering functions take them for


@dataclass(frozen=True)
class Node:
    """One ONNX operator.

    Attributes:
        name: Its name, or its first output where it has none.
        op: ``Conv``; with the domain in front where it is not ONNX's own.
        inputs: Names of values; an absent optional one is empty.
        outputs: Likewise.
        attributes: As Python values.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def input(self, index: int) -> str:
        """Return the name of an input; empty where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def ints(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """Return an attribute of integers."""
        return tuple(int(v) for v in self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return an attribute of text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


class Graph:
    """A model made ready to be lowered.

    Attributes:
        nodes: In the order of computation.
        constants: By name.
        inputs: Names of what a caller gives.
        outputs: Names of what a caller gets.
        opset: Of the default domain.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: Mapping[str, NDArray[Any]],
        inputs: Sequence[str],
        outputs: Sequence[str],
        kinds: Mapping[str, tuple[str, tuple[int, ...]]],
        opset: int = _OPSET,
    ) -> None:
        self.nodes = list(nodes)
        self.constants = dict(constants)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.opset = opset
        self._kinds = dict(kinds)
        self._link()

    def replace_nodes(self, nodes: Sequence[Node]) -> None:
        """Put other nodes in place of all nodes; values keep their names, shapes and dtypes."""
        self.nodes = list(nodes)
        self._link()

    def _link(self) -> None:
        self.producers = {name: n for n in self.nodes for name in n.outputs if name}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(n for n in node.inputs if n):
                self.consumers.setdefault(name, []).append(node)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the sizes of a value or constant."""
        if name in self.constants:
            return self.constants[name].shape
        return self._kinds[name][1]

    def dtype(self, name: str) -> str:
        """Return the dtype of a value or constant, as numpy names it."""
        if name in self.constants:
            return self.constants[name].dtype.name
        return self._kinds[name][0]

    def only_consumer(self, name: str) -> Node | None:
        """Return the one node that takes a value; None where it is taken otherwise too, or not at all."""
        takers = self.consumers.get(name, [])
        return takers[0] if len(takers) == 1 and name not in self.outputs else None


class UnknownShapesError(ConversionError):
    """Shapes cannot be inferred.

    Attributes:
        nodes: All nodes of the model, among which may be operators that inference does not know.
    """

    def __init__(self, names: Sequence[str], nodes: Sequence[Node]) -> None:
        super().__init__(
            f"the shapes of {len(names)} values are not known, such as {names[0]!r}: simplify the model "
            "with fixed input shapes (--shape), so that every shape can be inferred"
        )
        self.nodes = tuple(nodes)


def read_graph(model: onnx.ModelProto, exclude: Collection[str] = ()) -> Graph:
    """Return the graph of a model, which stays as it is.

    1. Opset at least 13; initializers that old models list as inputs are not inputs.
    2. Constant nodes become constants; nodes of constants alone are computed.
    3. Every shape is inferred.

    Raises:
        ConversionError: Shapes are not static, contradict each other or cannot be inferred; weights are
            outside the model; the opset cannot be raised.
    """
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ConversionError("a TFLite file holds 2 GB at most, and the weights of this model are larger")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy = raise_opset(copy, _OPSET)
    inputs = real_inputs(copy)
    kept = list(inputs)
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    lift_constants(copy.graph)
    _require_static(inputs)
    try:
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except onnx.shape_inference.InferenceError as e:
        raise ConversionError(f"the shapes inside the model contradict: {first_line(str(e))}") from e
    graph = copy.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes = _fold([_node(n) for n in graph.node], graph.node, constants, copy)
    kinds = _kinds(graph)
    unknown = [
        name for n in nodes for name in n.outputs if name and name not in kinds and name not in constants
    ]
    if unknown:
        raise UnknownShapesError(unknown, nodes)
    return Graph(
        nodes,
        constants,
        [i.name for i in graph.input],
        [o.name for o in graph.output],
        kinds,
        next((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), _OPSET),
    )


def _require_static(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    dynamic = [
        i.name
        for i in inputs
        if not all(d.HasField("dim_value") and d.dim_value > 0 for d in i.type.tensor_type.shape.dim)
    ]
    if dynamic:
        raise ConversionError(
            f"TFLite files have fixed shapes, and those of {', '.join(map(repr, dynamic))} are not: pin "
            f"them, for example with --shape {dynamic[0]}=1,..."
        )


def _node(node: onnx.NodeProto) -> Node:
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return Node(
        name=node.name or node.output[0],
        op=f"{domain}{node.op_type}",
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
    )


def _fold(
    nodes: Sequence[Node],
    protos: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    model: onnx.ModelProto,
) -> list[Node]:
    """Compute the nodes that take constants alone; random ones are left."""
    from onnx.reference import ReferenceEvaluator

    kept = []
    for node, proto in zip(nodes, protos, strict=True):
        names = [n for n in node.inputs if n]
        foldable = all(n in constants for n in names) and "Random" not in node.op and "." not in node.op
        if not foldable or any(a.g.node or a.graphs for a in proto.attribute):
            kept.append(node)
            continue
        values = {n: constants[n] for n in dict.fromkeys(names)}
        single = helper.make_graph(
            [proto],
            "constant",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in values.items()
            ],
            [helper.make_empty_tensor_value_info(n) for n in node.outputs if n],
        )
        try:
            program = ReferenceEvaluator(helper.make_model(single, opset_imports=model.opset_import))
            results = program.run(None, values)
        except RuntimeError:  # it has no implementation of this operator and opset
            kept.append(node)
            continue
        constants.update(
            (n, np.asarray(v)) for n, v in zip([o for o in node.outputs if o], results, strict=True)
        )
    return kept


def _kinds(graph: onnx.GraphProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    kinds = {}
    for value in (*graph.value_info, *graph.output, *graph.input):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        kinds[value.name] = (dtype.name, tuple(d.dim_value for d in tensor.shape.dim))
    return kinds
