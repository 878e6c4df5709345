"""Topological order of nodes."""

from __future__ import annotations

import onnx

from edgec.errors import PassError


def sort_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every node after the nodes it takes values from, bodies of subgraphs included.

    Nodes that are in order already keep their order, so that the result is deterministic.

    Raises:
        PassError: The graph has a cycle.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import TopologicalSortPass

    try:
        result = TopologicalSortPass()(ir.from_proto(model))
    except (ValueError, ir.passes.PassError) as e:
        raise PassError(f"the nodes of the graph cannot be put in order: {e}") from e
    return ir.to_proto(result.model)
