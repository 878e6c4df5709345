"""Simplification: constants folded, dead and identity nodes removed, shapes inferred."""

from __future__ import annotations

import onnx

from edgec.compiler.quiet import quiet
from edgec.errors import PassError


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a simpler model with the same interface.

    Works with onnxslim: folds constants and batch normalisation, removes identities and dead
    nodes, merges common subexpressions. Names, order, dtypes and shapes of graph inputs and
    outputs stay. The caller compares what the result computes with the original.

    Raises:
        PassError: The simplifier failed, or changed the interface.
    """
    import onnxslim

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():  # it prints, and logs through handlers of its own
            slim = onnxslim.slim(copy)
    except Exception as e:  # onnxslim lets whatever its rewrites meet escape
        raise PassError(f"onnxslim failed: {type(e).__name__}: {e}") from e
    if not isinstance(slim, onnx.ModelProto) or _interface(slim) != _interface(model):
        raise PassError("onnxslim changed the inputs or outputs of the model")
    return slim


def _interface(model: onnx.ModelProto) -> list[list[tuple[str, int]]]:
    initializers = {t.name for t in model.graph.initializer}
    return [
        [(v.name, v.type.tensor_type.elem_type) for v in values if v.name not in initializers]
        for values in (model.graph.input, model.graph.output)
    ]
