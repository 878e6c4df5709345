"""From a model and samples to a smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgec.compiler.model import real_inputs
from edgec.compiler.pruning.allocation import Allocation, allocate
from edgec.compiler.pruning.elimination import eliminations
from edgec.compiler.pruning.groups import Groups, find_groups
from edgec.compiler.pruning.linear import linear_layers
from edgec.compiler.pruning.refit import Refit, refit_layers
from edgec.compiler.pruning.rules import RULES
from edgec.compiler.pruning.sensitivity import sensitivities
from edgec.compiler.pruning.shrink import shrink
from edgec.compiler.pruning.trace import trace_graph
from edgec.errors import CalibrationError

Arrays = Mapping[str, NDArray[Any]]

ALIGN = 8
_ROUNDS = 2  # in which channels go; between them layers are refitted, and what is left is measured again
_LARGE = 100_000_000  # multiply-accumulates from which on one round has to do


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


@dataclass(frozen=True)
class _Progress:
    """What rounds of pruning have made of a model.

    Attributes:
        original: The model before the first.
        macs: Multiply-accumulates that are left.
        pruned: The model after the last; None before the first.
        given: Which channels of the original layers still give, by name of their output.
        changed: Outputs of the layers whose inputs are not the original's.
        layers: Channels before and after, by name of what got smaller.
        refits: Of the last round.
    """

    original: onnx.ModelProto
    macs: float
    pruned: onnx.ModelProto | None = None
    given: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    refits: tuple[Refit, ...] = ()

    @property
    def model(self) -> onnx.ModelProto:
        """The model as it is now."""
        return self.original if self.pruned is None else self.pruned


def _composed(before: NDArray[np.bool_] | None, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the original channels are left when `mask` says which of those left before are."""
    if before is None:
        return mask
    composed = before.copy()
    composed[composed] = mask
    return composed


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
        self._model = lifted(model)
        self._samples, self._seed = samples, seed
        self._shapes = tensor_shapes(self._model, samples[0])
        self._align = align
        _, self._groups = self._traced()
        layers = linear_layers(self._model)
        axes = {
            name: 1 if "Conv" in layer.node.op_type else -1
            for name, layer in layers.items()
            if layer.weight.dtype == np.float32
        }
        weights = sensitivities(self._model, axes, samples, seed) if self._groups.clusters else {}
        self._orders = eliminations(self._model, self._groups, layers, samples, weights, seed)

    @property
    def groups(self) -> Groups:
        """What can be pruned, and why the rest cannot."""
        return self._groups

    def prune(self, ratio: float, *, refit: bool = True) -> Pruned:
        """Return the model without the channels that matter least.

        With the refit, channels go in rounds: what is left is refitted and measured again in between. Models
        of more than 100 million multiply-accumulates are pruned at once.

        Args:
            ratio: Share of the multiply-accumulates to remove, above 0 and below 1. A little more goes,
                because channels go in steps.
            refit: Whether what is left is fitted to take over.

        Raises:
            CompileError: The ratio cannot be reached, or is none.
            UnsupportedModelError: Nothing can be pruned.
        """
        measured, done = self, _Progress(self._model, self._groups.macs)
        allocation = allocate(self._groups, self._orders, ratio)  # refuses what cannot be reached
        if not refit or self._groups.macs > _LARGE:
            return self._made(self._cut(done, allocation, refit=refit, sweeps=1))
        for number in range(1, _ROUNDS + 1):
            share = 1 - (1 - ratio * number / _ROUNDS) * self._groups.macs / done.macs
            if share <= 0:
                continue
            if done.layers:
                measured = self._measured_again(done.model)
            allocation = allocate(measured._groups, measured._orders, share)
            done = measured._cut(done, allocation, refit=True, sweeps=2 if number == _ROUNDS else 1)
        return self._made(done)

    def cut(self, allocation: Allocation, *, refit: bool = True) -> Pruned:
        """Return the model with the groups that an allocation keeps."""
        return self._made(
            self._cut(_Progress(self._model, self._groups.macs), allocation, refit=refit, sweeps=1)
        )

    def _cut(self, done: _Progress, allocation: Allocation, *, refit: bool, sweeps: int) -> _Progress:
        """Return what an allocation, of the groups of this model, makes of what was done before."""
        graph, groups = self._traced()
        pruned = shrink(graph, groups, allocation.kept)
        left, touched = self._affected(allocation)
        given = {name: _composed(done.given.get(name), mask) for name, mask in left.items()}
        changed = {*done.changed, *touched}
        refits: tuple[Refit, ...] = ()
        if refit:
            order = [n.output[0] for n in done.original.graph.node if n.output[0] in changed]
            pruned, refits = refit_layers(
                done.original, pruned, given, order, self._samples, self._seed, sweeps
            )
        layers = dict(done.layers)
        for name, before, after in allocation.layers:
            layers[name] = (layers.get(name, (before, after))[0], after)
        return replace(
            done,
            macs=allocation.macs,
            pruned=pruned,
            given=given,
            changed=frozenset(changed),
            layers=layers,
            refits=refits,
        )

    def _made(self, done: _Progress) -> Pruned:
        return Pruned(
            model=done.model,
            macs_before=self._groups.macs,
            macs_after=round(done.macs),
            layers=tuple((name, *sizes) for name, sizes in done.layers.items()),
            refits=done.refits,
        )

    def _measured_again(self, model: onnx.ModelProto) -> Pruner:
        """Return a pruner of a form that is smaller already, with the limits of this one."""
        again = Pruner(model, self._samples, align=self._align, seed=self._seed)
        limits = {c.name: c for c in self._groups.clusters}
        clusters = tuple(
            replace(c, unit=limits[c.name].unit, least=limits[c.name].least) if c.name in limits else c
            for c in again._groups.clusters
        )
        again._groups = replace(again._groups, clusters=clusters)
        return again

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


def lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose constants are all initializers, none of which a caller can replace."""
    graph = ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    lifted = ir.to_proto(graph)
    given = {i.name for i in real_inputs(lifted)}
    inputs = [i for i in lifted.graph.input if i.name in given]
    del lifted.graph.input[:]
    lifted.graph.input.extend(inputs)
    return lifted
