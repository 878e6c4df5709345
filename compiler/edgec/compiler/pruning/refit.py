"""Closed-form refit: what is left of each layer takes over what is gone, by least squares on real inputs.

For a layer that computes W x + b, x now comes from the pruned network and y from the original one at the same
place. The change D of the weights and d of the bias minimize |y - (W + D) x - (b + d)|^2 + c |D|^2, summed
over samples and positions: D = R X' (X X' + c I)^-1 with the residuals R = Y - W X, all centred where there
is a bias to absorb the means. The penalty pulls towards the weights there are, not towards zero, so that
directions that the samples do not show stay as they were. Like ThiNet (Luo et al., ICCV 2017) and the layer
problem of SparseGPT (Frantar and Alistarh, ICML 2023), but for whole graphs: layers are refitted in order,
each on what those before it, refitted already, give it. The last layer that gives to a sum of two branches is
fitted to the sum, so that it makes up for what the other branch lacks. A second sweep asks before a Relu only
for what passes it: Zhang et al., "Accelerating very deep convolutional networks" (TPAMI 38, 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.compiler.pruning.linear import Linear, linear_layers
from edgec.compiler.pruning.sampling import picked_positions

Arrays = Mapping[str, NDArray[Any]]

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean diagonal of X X'
_ROWS_AT_ONCE = 4096  # that are multiplied: many small products keep threads waiting
_HELD_OUT = 4  # every fourth sample judges the penalties
_MOST_PASSES = 24  # over the samples; layers beyond that share a pass
_MOST_BYTES = 1 << 30  # of the statistics of one pass


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What a refit did to a layer.

    Attributes:
        layer: Name of its node, or of what it gives.
        before: Error of its output on the calibration samples after pruning, as a share of its energy.
        after: The same after the refit; never more, but where weights are made zero.
    """

    layer: str
    before: float
    after: float


def refit_layers(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    given: Mapping[str, NDArray[np.bool_]],
    changed: Sequence[str],
    samples: Sequence[Arrays],
    seed: int = 0,
    sweeps: int = 1,
    make: FitMaker | None = None,
) -> tuple[onnx.ModelProto, tuple[Refit, ...]]:
    """Refit the layers of a pruned graph.

    Args:
        original: The graph before pruning.
        pruned: After it, with the same names; left as it is.
        given: Which channels of the outputs of layers are left, by name of the output; others have all.
        changed: Outputs of the layers to refit, in the order of the graph.
        samples: Inputs; all of them are used.
        seed: Of the positions that are looked at.
        sweeps: How often to go through the layers. From the second time on, what the original network has
            cut off at zero is only asked to stay below it.
        make: Makes the problem of a layer; by default plain least squares over all of its weights.

    Returns:
        The refitted graph, and what the first sweep did to each layer.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(pruned)
    done: list[Refit] = []
    places = _places(copy, [n for n in changed if n in linear_layers(copy)])
    pending = [(sweep, name) for sweep in range(sweeps) for name in places]
    while pending:
        layers = linear_layers(copy)
        fits: list[LayerFit] = []
        share = -(-len(changed) // _MOST_PASSES)
        used = 0
        while pending and len(fits) < share:
            sweep, name = pending[0]
            layer = layers[name]
            size = LayerFit.bytes_of(layer)
            if size > _MOST_BYTES:
                pending.pop(0)  # too wide to solve: it stays as pruning left it
                continue
            if fits and used + size > _MOST_BYTES:
                break
            used += size
            pending.pop(0)
            place, rectified = places[name]
            fits.append((make or LayerFit)(layer, place, rectified and sweep > 0, given.get(name)))
        if fits:
            _collect(original, copy, fits, samples, seed)
            done += [_apply(copy, fit) for fit in fits]
    return copy, tuple({report.layer: report for report in reversed(done)}.values())[::-1]


class Sums:
    """What least squares needs to know of a set of rows."""

    def __init__(self, parts: int, width: int, outputs: int) -> None:
        self.rows = 0
        self.x, self.r = np.zeros((parts, width)), np.zeros((parts, outputs))
        self.xx, self.xr = np.zeros((parts, width, width)), np.zeros((parts, width, outputs))
        self.rr = np.zeros((parts, outputs))
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def add(self, x: NDArray[np.float32], r: NDArray[np.float32]) -> None:
        self._waiting.append((x, r))
        if sum(len(rows) for rows, _ in self._waiting) >= _ROWS_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Sum up the rows that wait."""
        if not self._waiting:
            return
        x, r = (np.concatenate(rows) for rows in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self.rows += len(x)
        self.x += x.sum(axis=0, dtype=np.float64)
        self.r += r.sum(axis=0, dtype=np.float64)
        by_part, residuals = np.ascontiguousarray(x.transpose(1, 0, 2)), r.transpose(1, 0, 2)
        self.xx += by_part.transpose(0, 2, 1) @ by_part
        self.xr += by_part.transpose(0, 2, 1) @ residuals
        self.rr += np.square(r).sum(axis=0, dtype=np.float64)

    def __add__(self, other: Sums) -> Sums:
        total = Sums(self.x.shape[0], self.x.shape[1], self.r.shape[1])
        total.rows = self.rows + other.rows
        for name in ("x", "r", "xx", "xr", "rr"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def moments(self, shift: bool) -> NDArray[np.float64]:
        """Return X X' of each part, [parts, width, width]; about the means where a bias absorbs those."""
        if not shift:
            return self.xx
        return np.asarray(self.xx - self.x[:, :, None] * self.x[:, None, :] / max(1, self.rows), np.float64)

    def solve(self, penalty: float, shift: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the change of the weights, [parts, outputs, width], and of the bias, [parts, outputs]."""
        xx, xr, n = self.moments(shift), self.xr, max(1, self.rows)
        if shift:
            xr = xr - self.x[:, :, None] * self.r[:, None, :] / n
        width = xx.shape[1]
        scale = np.trace(xx, axis1=1, axis2=2) / width
        ridge = penalty * np.where(scale > 0, scale, 1.0)
        solved = np.linalg.solve(xx + ridge[:, None, None] * np.eye(width), xr).transpose(0, 2, 1)
        change = np.asarray(solved, np.float64)
        return change, self.bias(change, shift)

    def bias(self, change: NDArray[np.float64], shift: bool) -> NDArray[np.float64]:
        """Return the change of the bias that goes best with a change of the weights; none without one."""
        if not shift:
            return np.zeros_like(self.r)
        moved = np.einsum("pow,pw->po", change, self.x)
        return np.asarray((self.r - moved) / max(1, self.rows), np.float64)

    def error(self, change: NDArray[np.float64], bias: NDArray[np.float64]) -> float:
        """Return what is left of the squared residuals after a change."""
        fitted = 2 * change * self.xr.swapaxes(1, 2) - change * (change @ self.xx)
        moved = np.einsum("pow,pw->po", change, self.x)
        shifted = 2 * bias * (self.r - moved) - self.rows * bias**2
        return float(self.rr.sum() - fitted.sum() - shifted.sum())


class LayerFit:
    """One layer's least-squares problem, whose statistics come sample by sample.

    Args:
        layer: As pruning left it.
        place: Name of the tensor that is compared: what it gives, or the sum that this goes to.
        rectified: Whether what is below zero there need only stay there.
        kept: Which channels of the original's output are left; None for all.
    """

    def __init__(self, layer: Linear, place: str, rectified: bool, kept: NDArray[np.bool_] | None) -> None:
        self.layer, self.kept = layer, kept
        self._matrix = layer.matrix()
        parts, outputs, width = self._matrix.shape
        self.place, self.rectified = place, rectified
        self.fitting, self.judging = Sums(parts, width, outputs), Sums(parts, width, outputs)
        self._wanted = Sums(parts, 0, outputs)

    @staticmethod
    def bytes_of(layer: Linear) -> int:
        """Return what the statistics of a layer take, and the solving."""
        parts, outputs, width = layer.matrix().shape
        return int(8 * parts * width * (4 * width + 3 * outputs))

    def add(
        self, x: NDArray[Any], y: NDArray[Any], found: NDArray[Any], number: int, seed: int, samples: int
    ) -> None:
        """Take in one sample: x and what is found of the pruned network, y of the original one."""
        layer = self.layer
        picked = picked_positions(
            layer.positions(found), number, seed, samples=samples, width=self._matrix.shape[2]
        )
        if self.kept is not None:
            y = np.compress(self.kept, y, axis=y.ndim - 1 if layer.node.op_type in ("Gemm", "MatMul") else 1)
        wanted, own = layer.outputs(y, picked), layer.outputs(found, picked)
        self._wanted.add(wanted[:, :, :0], wanted)
        if self.rectified:
            wanted = np.where(wanted > 0, wanted, np.minimum(own, 0))
        sums = self.judging if number % _HELD_OUT == _HELD_OUT - 1 else self.fitting
        sums.add(layer.inputs(x, picked), wanted - own)

    def solve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
        """Return the change of weights and bias, which may be none, and squared errors before and after."""
        total = self.total()
        shift, nothing = self.layer.can_shift, (np.zeros_like(self._matrix), np.zeros_like(self.fitting.r))
        before = total.error(*nothing)
        penalty = self.penalty(shift)
        if penalty is None:
            return *nothing, before, before
        change, bias = total.solve(penalty, shift)
        after = total.error(change, bias)
        return (change, bias, before, after) if after < before else (*nothing, before, before)

    def total(self) -> Sums:
        """Return the statistics of all samples that were taken in."""
        for sums in (self.fitting, self.judging, self._wanted):
            sums.settle()
        return self.fitting + self.judging

    def penalty(self, shift: bool) -> float | None:
        """Return the penalty that does best on samples that it was not fitted to; None where none helps."""
        if not self.judging.rows:
            return _PENALTIES[-2]
        found = {p: self.judging.error(*self.fitting.solve(p, shift)) for p in _PENALTIES}
        best = min(found, key=lambda p: found[p])
        unchanged = float(self.judging.rr.sum())
        return best if found[best] < unchanged else None

    @property
    def energy(self) -> float:
        """Squared deviations of the original's outputs from their mean."""
        wanted = self._wanted
        return float((wanted.rr - np.square(wanted.r) / max(1, wanted.rows)).sum())

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The weights as pruning left them."""
        return self._matrix


FitMaker = Callable[[Linear, str, bool, NDArray[np.bool_] | None], LayerFit]


def _collect(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    fits: Sequence[LayerFit],
    samples: Sequence[Arrays],
    seed: int,
) -> None:
    places = list(dict.fromkeys(f.place for f in fits))
    takes = list(dict.fromkeys(f.layer.node.input[0] for f in fits))
    graph_inputs = {i.name for i in pruned.graph.input}
    inner = [n for n in dict.fromkeys((*takes, *places)) if n not in graph_inputs]
    with (
        ReferenceProgram(_up_to(original, places), optimize=True) as first,
        ReferenceProgram(_up_to(pruned, inner), optimize=True) as second,
    ):
        for number, sample in enumerate(samples):
            wanted, found = first.run(sample), {**sample, **second.run(sample)}
            for fit in fits:
                fit.add(
                    found[fit.layer.node.input[0]],
                    wanted[fit.place],
                    found[fit.place],
                    number,
                    seed,
                    len(samples),
                )


def _up_to(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return what a model does to compute some tensors; inputs that they do not need stay inputs."""
    cut = with_outputs(model, names)
    needed, nodes = set(names), []
    for node in reversed(cut.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _taken(node)
    kept = list(reversed(nodes))
    weights = [t for t in cut.graph.initializer if t.name in needed]
    outputs = [o for o in cut.graph.output if o.name in set(names)]
    graph = onnx.GraphProto(
        name=cut.graph.name, node=kept, input=cut.graph.input, initializer=weights, output=outputs
    )
    return onnx.ModelProto(
        ir_version=cut.ir_version, opset_import=cut.opset_import, functions=cut.functions, graph=graph
    )


def _taken(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                names |= _taken(inner)
    return names


def _places(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Return for outputs of layers where to compare them, and whether what is negative there is cut.

    Where a layer is the last to give to a sum, it makes up for the errors of the others too.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    order: dict[str, int] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.input:
            users.setdefault(name, []).append(node)
        for name in node.output:
            order[name] = number
    constants = {t.name for t in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    found = {}
    for name in names:
        place = name
        takers = users.get(name, [])
        if len(takers) == 1 and takers[0].op_type == "Add" and name not in outputs:
            other = next((n for n in takers[0].input if n != name), "")
            if other and other not in constants and order.get(other, -1) < order[name]:
                place = takers[0].output[0]
        after = users.get(place, [])
        found[name] = place, bool(after) and place not in outputs and all(n.op_type == "Relu" for n in after)
    return found


def _apply(model: onnx.ModelProto, fit: LayerFit) -> Refit:
    """Write a fit's change into the graph, and return what it did."""
    change, bias, before, after = fit.solve()
    layer, energy = fit.layer, max(fit.energy, 1e-30)
    name = layer.node.name or layer.node.output[0]
    if np.any(change) or np.any(bias):
        weights = {t.name: t for t in model.graph.initializer}
        _write(weights[layer.node.input[1]], layer.unmatrix(fit.matrix + change))
        _shift(model, layer, bias.ravel(), weights)
    return Refit(layer=name, before=before / energy, after=max(0.0, after) / energy)


def _shift(
    model: onnx.ModelProto, layer: Linear, shift: NDArray[np.float64], weights: Mapping[str, onnx.TensorProto]
) -> None:
    if not layer.can_shift or not np.any(shift):
        return
    if layer.bias_name is not None:
        tensor = weights[layer.bias_name]
        array = numpy_helper.to_array(tensor)
        _write(tensor, (array.astype(np.float64) + shift).astype(array.dtype))
        return
    name = f"{layer.node.output[0]}/refitted_bias"
    model.graph.initializer.append(numpy_helper.from_array(shift.astype(layer.weight.dtype), name))
    node = next(n for n in model.graph.node if layer.node.output[0] in n.output)
    del node.input[2:]
    node.input.append(name)


def _write(tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
