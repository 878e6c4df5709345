"""The deed: constants lose channels, attributes and shape constants follow."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.compiler.pruning.channels import Ids
from edgec.compiler.pruning.groups import Groups
from edgec.compiler.pruning.trace import is_constant


def shrink(model: ir.Model, groups: Groups, kept: NDArray[np.bool_]) -> onnx.ModelProto:
    """Remove the groups that are not kept from the graph that was traced, in place, and return it.

    Names of nodes and tensors stay. The result computes what the model would if all channels that are gone
    were zero wherever they are taken.
    """

    def keep(ids: Ids) -> NDArray[np.bool_]:
        members = groups.of(ids)
        return np.asarray(kept[members] | (members < 0)) if len(kept) else np.ones(len(ids), np.bool_)

    for value, axes in groups.trace.axes.items():
        if is_constant(value) and any(ids is not None and not keep(ids).all() for ids in axes):
            _cut(value, [None if ids is None else keep(ids) for ids in axes])
    for rewrite in groups.trace.rewrites:
        rewrite(keep)
    _drop_unused(model)
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred


def _cut(value: ir.Value, keep: list[NDArray[np.bool_] | None]) -> None:
    assert value.const_value is not None
    array = value.const_value.numpy()
    for axis, mask in enumerate(keep):
        if mask is not None:
            array = np.compress(mask, array, axis=axis)
    value.const_value = ir.tensor(np.ascontiguousarray(array), dtype=value.const_value.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _drop_unused(model: ir.Model) -> None:
    """Remove the constants that rewrites have replaced."""
    graph = model.graph
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]
