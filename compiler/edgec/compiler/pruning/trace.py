"""What goes with what in a graph: every axis of every tensor gets its channels.

An axis of a value is either fixed (None: nobody may shorten it), or has numbers of channels. Axes of
constants are free until a node asks for them. The rules of the operators, in `edgec.compiler.pruning.rules`
and `edgec.compiler.pruning.shapes`, tie what must go together and freeze what must stay; an operator without
a rule freezes all that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.compiler.pruning.channels import Channels, Ids

Axes = list[Ids | None]
Keep = Callable[[Ids], NDArray[np.bool_]]
"""Says for each channel of an axis whether it is kept."""
Rewrite = Callable[[Keep], None]
"""Brings the attributes and shape constants of a node in line with what is kept."""
Rule = Callable[["Trace", ir.Node], None]


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A node that multiplies and accumulates.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        macs: Multiply-accumulates of one inference, before anything is pruned.
        axes: Channels of the axes that its cost is proportional to, of those that can get shorter.
        taken: Of its first input, those that it sums over; None where they cannot get fewer.
        given: Of its output.
    """

    node: ir.Node
    macs: int
    axes: tuple[Ids, ...]
    taken: Ids | None
    given: Ids | None

    @property
    def name(self) -> str:
        """Of the node, or of what it gives where it has none."""
        return label(self.node)


@dataclass
class Trace:
    """The channels of a graph.

    Attributes:
        shapes: Of all tensors whose shape is known.
        channels: All numbers.
        axes: Channels per axis, by value.
        contractions: Nodes that cost, in their order.
        rewrites: To be done when it is known what is kept.
        opset: Of the default domain.
    """

    shapes: Mapping[str, tuple[int, ...]]
    opset: int
    channels: Channels = field(default_factory=Channels)
    axes: dict[ir.Value, Axes] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the shape of a value; the caller knows that it is known."""
        if is_constant(value) and value.const_value is not None:
            return tuple(int(n) for n in value.const_value.shape.numpy())
        return self.shapes[str(value.name)]

    def knows(self, value: ir.Value | None) -> bool:
        """Whether a value is missing, which is fine, or of a known shape."""
        return value is None or is_constant(value) or value.name in self.shapes

    def of(self, value: ir.Value) -> Axes:
        """Return the channels of all axes of a value; those of constants that nobody asked for are None."""
        return self.axes.setdefault(value, [None] * len(self.shape(value)))

    def ids(self, value: ir.Value, axis: int) -> Ids | None:
        """Return the channels of an axis; a constant's are made on demand."""
        axes = self.of(value)
        found = axes[axis]
        if found is None and is_constant(value):
            found = axes[axis] = self.channels.new(self.shape(value)[axis])
        return found

    def tie(self, first: Ids | None, second: Ids | None, reason: str) -> None:
        """Make two axes go together; where one is fixed, the other is too."""
        if first is not None and second is not None:
            self.channels.tie(first, second)
        elif first is not None:
            self.channels.freeze(first, reason)
        elif second is not None:
            self.channels.freeze(second, reason)

    def tie_rows(self, ids: Ids | None, groups: int) -> None:
        """Make the n-th channels of all of `groups` equal parts of an axis go together."""
        if ids is None:
            return
        first, *others = ids.reshape(groups, -1)
        for other in others:
            self.channels.tie(first, other)

    def freeze(self, value: ir.Value, reason: str, axes: Sequence[int] | None = None) -> None:
        """Keep axes of a value as they are, all of them by default."""
        for axis in range(len(self.of(value))) if axes is None else axes:
            found = self.ids(value, axis)
            if found is not None:
                self.channels.freeze(found, reason)

    def freeze_node(self, node: ir.Node, because: str = "has no rule here") -> None:
        """Keep all that a node takes as it is, and let nobody shorten what it gives."""
        for value in node.inputs:
            if value is not None and self.knows(value):
                self.freeze(value, f"{label(node)} ({node.op_type}) {because}")


def label(node: ir.Node) -> str:
    """Return what to call a node: its name, or that of what it gives."""
    return str(node.name or node.outputs[0].name)


def is_constant(value: ir.Value) -> bool:
    """Whether a value is a weight in the graph that no caller can replace."""
    return value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def constant(node: ir.Node, index: int) -> NDArray[np.int64] | None:
    """Return a constant integer input of a node; None where it is missing or computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy()).astype(np.int64)


def set_constant(node: ir.Node, index: int, array: NDArray[np.int64]) -> None:
    """Give a node a constant of its own: others may share the one that it had."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{node.outputs[0].name}/pruned_{index}"
    while name in graph.initializers:  # pruned before
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape = ir.Shape(array.shape)
    value.dtype = ir.DataType.INT64
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def integers(node: ir.Node, name: str) -> list[int] | None:
    """Return a list of integers of an attribute; None where it is missing."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(n) for n in attribute.as_ints()]


def trace_graph(model: ir.Model, shapes: Mapping[str, tuple[int, ...]], rules: Mapping[str, Rule]) -> Trace:
    """Follow the channels through a graph whose constants are all initializers.

    Args:
        model: The graph; nothing is changed.
        shapes: Of its tensors, for one sample.
        rules: By operator of the default domain.
    """
    trace = Trace(shapes, model.graph.opset_imports.get("", 0))
    for node in model.graph:
        rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        known = all(trace.knows(v) for v in (*node.inputs, *node.outputs))
        if rule is None:
            trace.freeze_node(node)
        elif not known:
            trace.freeze_node(node, "has tensors of unknown shape")
        else:
            rule(trace, node)
        _freeze_captured(trace, node)
    for value in model.graph.outputs:
        if trace.knows(value):
            trace.freeze(value, f"output {value.name!r} of the model")
    return trace


def _freeze_captured(trace: Trace, node: ir.Node) -> None:
    """Keep what the bodies of a node, such as the branches of If, take from outside."""
    bodies = [
        a for a in node.attributes.values() if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    ]
    for attribute in bodies:
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                trace.freeze_node(inner, f"is in a body of {label(node)}")
