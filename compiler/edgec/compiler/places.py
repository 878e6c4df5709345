"""Every node of a model, bodies of subgraphs included, with what is known of its tensors."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from edgec.compiler.model import opset_of, walk_nodes

FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Tensor:
    """A tensor as a node sees it.

    Attributes:
        name: As in the graph.
        dtype: As numpy names it; None where it could not be inferred.
        shape: Sizes, with a name or None where one is free; None where not even the rank is known.
        constant: Its value, where the graph holds it.
        origin: ``input`` of the main graph, ``constant``, or ``node``.
    """

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None
    constant: TensorProto | None = None
    origin: str = "node"

    @property
    def rank(self) -> int | None:
        """Number of axes; None where it is not known."""
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every size is known."""
        return self.shape is not None and all(isinstance(n, int) for n in self.shape)


@dataclass(frozen=True)
class Place:
    """A node where it stands.

    Attributes:
        node: Itself.
        label: Its name, or where it has none, its operator and first output.
        inputs: What it takes; None where an optional input is left out.
        outputs: What it gives, in the same manner.
        captured: What the bodies of its subgraphs take from outside.
        depth: How many subgraphs it is inside of.
    """

    node: onnx.NodeProto
    label: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    captured: tuple[Tensor, ...] = ()
    depth: int = 0


def find_places(model: onnx.ModelProto) -> list[Place]:
    """Return the nodes of a model in the order of its graph, each body right after its node.

    Types and shapes are inferred as far as onnx can; large weights are not needed for it.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_large_weights(model), data_prop=True)
    except onnx.shape_inference.InferenceError:
        inferred = model  # contradictions are for the engine to judge; what is declared stays known
    originals = {t.name: t for t in model.graph.initializer}
    return list(_places(inferred.graph, ChainMap(), originals, 0))


def attributes_of(node: onnx.NodeProto, opset: int) -> dict[str, object]:
    """Return the attributes of a node, defaults of its operator's schema included."""
    values: dict[str, object] = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        pass
    else:
        for name, attribute in schema.attributes.items():
            if attribute.default_value.name:
                values[name] = helper.get_attribute_value(attribute.default_value)
    values.update({a.name: helper.get_attribute_value(a) for a in node.attribute})
    return {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in values.items()}


def schema_opset(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """Return the version of the operator set that a node is of; 1 where its domain is not imported."""
    if node.domain in ("", "ai.onnx"):
        return opset_of(model)
    return next((o.version for o in model.opset_import if o.domain == node.domain), 1)


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether a node is of ONNX's own operator set."""
    return node.domain in ("", "ai.onnx")


def dtype_name(elem_type: int) -> str | None:
    """Return numpy's name of an ONNX element type; None for none."""
    if elem_type == TensorProto.UNDEFINED:
        return None
    if elem_type == TensorProto.STRING:
        return "string"
    return str(helper.tensor_dtype_to_np_dtype(elem_type).name)


def _without_large_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    # Inference copies the model; small constants are what it needs, of large ones their type only.
    slim = onnx.ModelProto()
    slim.ir_version = model.ir_version
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    slim.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(slim.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < 4096:
            slim.graph.initializer.append(tensor)
        else:
            slim.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return slim


def _places(
    graph: onnx.GraphProto,
    outer: ChainMap[str, Tensor],
    originals: Mapping[str, TensorProto],
    depth: int,
) -> Iterator[Place]:
    scope = outer.new_child(_declared(graph, originals, depth))
    for node in graph.node:
        if node.op_type == "Constant" and is_standard(node):
            scope[node.output[0]] = _constant_output(node, scope)
    for node in graph.node:
        bodies = [body for a in node.attribute for body in (a.g, *a.graphs) if body.node or body.output]
        for name in node.output:
            if name:
                scope.setdefault(name, Tensor(name, None, None))
        yield Place(
            node=node,
            label=node.name or f"{node.op_type} -> {next(iter(node.output), '')}",
            inputs=tuple(scope.get(n, Tensor(n, None, None)) if n else None for n in node.input),
            outputs=tuple(scope[n] if n else None for n in node.output),
            captured=tuple(scope[n] for n in dict.fromkeys(_free_names(bodies)) if n in scope),
            depth=depth,
        )
        for body in bodies:
            yield from _places(body, scope, originals, depth + 1)


def _declared(graph: onnx.GraphProto, originals: Mapping[str, TensorProto], depth: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for value in (*graph.value_info, *graph.output):
        found[value.name] = _from_value_info(value)
    for value in graph.input:
        known = _from_value_info(value)
        found[value.name] = Tensor(known.name, known.dtype, known.shape, None, "node" if depth else "input")
    for tensor in graph.initializer:
        found[tensor.name] = _from_tensor(tensor)
    if depth == 0:
        found.update({name: _from_tensor(tensor) for name, tensor in originals.items()})
    return found


def _from_value_info(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape: tuple[int | str | None, ...] | None = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return Tensor(value.name, dtype_name(kind.elem_type), shape)


def _from_tensor(tensor: TensorProto) -> Tensor:
    return Tensor(tensor.name, dtype_name(tensor.data_type), tuple(tensor.dims), tensor, "constant")


def _constant_output(node: onnx.NodeProto, scope: Mapping[str, Tensor]) -> Tensor:
    name = node.output[0]
    value = next((a.t for a in node.attribute if a.name == "value"), None)
    if value is None:
        known = scope.get(name, Tensor(name, None, None))
        return Tensor(name, known.dtype, known.shape, None, "constant")
    return Tensor(name, dtype_name(value.data_type), tuple(value.dims), value, "constant")


def _free_names(bodies: list[onnx.GraphProto]) -> Iterator[str]:
    for body in bodies:
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {name for node in walk_nodes(body) for name in node.output}
        for node in walk_nodes(body):
            yield from (n for n in node.input if n and n not in own)
        yield from (o.name for o in body.output if o.name not in own)
