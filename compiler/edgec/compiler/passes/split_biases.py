"""A bias of its own for every layer."""

from __future__ import annotations

import onnx

from edgec.compiler.model import walk_nodes

_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def split_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a copy of a bias for every layer that shares it, the first layer excepted.

    In int8 a bias has the scale of its layer's input times that of its weights. ONNX Runtime's quantizer,
    1.31 at least, leaves a convolution in float where something else than a layer takes its bias too.

    Args:
        model: Left as it is; returned as it is where no bias is shared.
    """
    weights = {t.name: t for t in model.graph.initializer}
    takers: dict[str, int] = {}
    for node in walk_nodes(model.graph):
        for name in node.input:
            takers[name] = takers.get(name, 0) + 1
    shared = {name for name, count in takers.items() if count > 1 and name in weights}
    if not any(_shared_bias(node, shared) for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        name = _shared_bias(node, shared)
        if name is not None and takers[name] > 1:
            takers[name] -= 1
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(weights[name])
            tensor.name = node.input[2] = f"{name}/of_{index}"
    return copy


def _shared_bias(node: onnx.NodeProto, shared: set[str]) -> str | None:
    biased = node.op_type in _LAYERS and len(node.input) > 2
    return node.input[2] if biased and node.input[2] in shared else None
