"""From a model and samples to a smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgec.compiler.model import real_inputs
from edgec.compiler.pruning.allocation import Allocation, allocate
from edgec.compiler.pruning.energy import group_energies
from edgec.compiler.pruning.groups import Groups, find_groups
from edgec.compiler.pruning.linear import linear_layers
from edgec.compiler.pruning.refit import Refit, refit_layers
from edgec.compiler.pruning.rules import RULES
from edgec.compiler.pruning.shrink import shrink
from edgec.compiler.pruning.trace import trace_graph
from edgec.errors import CalibrationError

Arrays = Mapping[str, NDArray[Any]]

ALIGN = 8


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A model with fewer channels.

    Attributes:
        model: With the same inputs and outputs; names of nodes and tensors stay.
        macs_before: Multiply-accumulates of one inference of the original: those of Conv, ConvTranspose, Gemm
            and MatMul.
        macs_after: Of this one.
        layers: What got smaller: name, channels before, and after.
        refits: What the refit did, layer by layer; empty without one.
    """

    model: onnx.ModelProto
    macs_before: int
    macs_after: int
    layers: tuple[tuple[str, int, int], ...]
    refits: tuple[Refit, ...]

    @property
    def removed(self) -> float:
        """Share of the multiply-accumulates that is gone."""
        return 1 - self.macs_after / self.macs_before


class Pruner:
    """A model whose channels have been followed and measured, ready to be pruned by any ratio.

    Args:
        model: In float, weights inside; left as it is.
        samples: Real inputs; channels are judged and layers refitted on all of them.
        align: Multiples of how many channels to leave, where a layer has many.
        seed: Of the positions in large tensors that are looked at.

    Raises:
        CalibrationError: There are no samples.
    """

    def __init__(
        self, model: onnx.ModelProto, samples: Sequence[Arrays], *, align: int = ALIGN, seed: int = 0
    ) -> None:
        if not samples:
            raise CalibrationError("pruning needs real inputs, and there are none: give --calibration")
        self._model = _lifted(model)
        self._samples, self._seed = samples, seed
        self._shapes = tensor_shapes(self._model, samples[0])
        self._align = align
        _, self._groups = self._traced()
        self._energy = group_energies(self._model, self._groups, linear_layers(self._model), samples, seed)

    @property
    def groups(self) -> Groups:
        """What can be pruned, and why the rest cannot."""
        return self._groups

    @property
    def energy(self) -> NDArray[np.float64]:
        """By group: what the layers that take it lose without it, as shares of their outputs' energy."""
        return self._energy

    def prune(self, ratio: float, *, refit: bool = True) -> Pruned:
        """Return the model without the channels that matter least.

        Args:
            ratio: Share of the multiply-accumulates to remove, above 0 and below 1. A little more goes,
                because channels go in steps.
            refit: Whether what is left is fitted to take over.

        Raises:
            CompileError: The ratio cannot be reached, or is none.
            UnsupportedModelError: Nothing can be pruned.
        """
        return self.cut(allocate(self._groups, self._energy, ratio), refit=refit)

    def cut(self, allocation: Allocation, *, refit: bool = True) -> Pruned:
        """Return the model with the groups that an allocation keeps."""
        graph, groups = self._traced()
        pruned = shrink(graph, groups, allocation.kept)
        refits: tuple[Refit, ...] = ()
        if refit:
            given, changed = self._affected(allocation)
            pruned, refits = refit_layers(self._model, pruned, given, changed, self._samples, self._seed)
        return Pruned(
            model=pruned,
            macs_before=self._groups.macs,
            macs_after=round(allocation.macs),
            layers=allocation.layers,
            refits=refits,
        )

    def _traced(self) -> tuple[ir.Model, Groups]:
        graph = ir.from_proto(self._model)
        return graph, find_groups(trace_graph(graph, self._shapes, RULES), self._align)

    def _affected(self, allocation: Allocation) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
        """Return which channels layers still give, and the layers whose inputs differ from the original's."""
        kept = allocation.kept
        given: dict[str, NDArray[np.bool_]] = {}
        smaller: set[str] = set()
        for value, axes in self._groups.trace.axes.items():
            for ids in axes:
                if ids is not None:
                    members = self._groups.of(ids)
                    if not (kept[members] | (members < 0)).all():
                        smaller.add(str(value.name))
        for contraction in self._groups.trace.contractions:
            if contraction.given is not None:
                members = self._groups.of(contraction.given)
                given[str(contraction.node.outputs[0].name)] = np.asarray(kept[members] | (members < 0))
        layers = linear_layers(self._model)
        touched, changed = set(smaller), []
        for node in self._model.graph.node:
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.output[0] in layers:
                if node.input[0] in touched:
                    changed.append(node.output[0])
                    touched.update(node.output)
            elif touched & set(node.input):
                touched.update(node.output)
        return given, changed


def tensor_shapes(model: onnx.ModelProto, sample: Arrays) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a model for one sample, as far as they can be inferred."""
    pinned = onnx.ModelProto()
    pinned.CopyFrom(model)
    for value in real_inputs(pinned):
        for dim, size in zip(value.type.tensor_type.shape.dim, sample[value.name].shape, strict=True):
            dim.dim_value = size
    del pinned.graph.value_info[:]
    for value in pinned.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(pinned, data_prop=True)
    found: dict[str, tuple[int, ...]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.dim_value > 0 for d in tensor.shape.dim):
            found[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return found


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose constants are all initializers, none of which a caller can replace."""
    graph = ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    lifted = ir.to_proto(graph)
    given = {i.name for i in real_inputs(lifted)}
    inputs = [i for i in lifted.graph.input if i.name in given]
    del lifted.graph.input[:]
    lifted.graph.input.extend(inputs)
    return lifted
