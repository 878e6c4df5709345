"""Which channels a model misses least once the rest has taken over: backward elimination by least squares.

For a layer y = W x with the covariance G of x, leaving out the columns c and fitting the others anew loses
tr(W_c [G^-1]_cc^-1 W_c'); what is left is then W - W_c [G^-1]_cc^-1 [G^-1]_c:, and G^-1 loses as much of
itself: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (NIPS 1992),
for whole channels. A channel that others can replace costs nothing, however large it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.compiler.pruning.groups import Groups, Members
from edgec.compiler.pruning.linear import Linear
from edgec.compiler.pruning.sampling import picked_positions
from edgec.compiler.pruning.trace import Contraction

Arrays = Mapping[str, NDArray[Any]]

# Columns that are looked at together: inverting is cubic in them. Wider layers are cut into parts, between
# which nothing is taken over as far as the choice goes; the refit knows no such limit.
_WIDEST = 1152
_ROWS_AT_ONCE = 4096  # that are multiplied: many small products keep threads waiting
_RIDGE = 1e-3  # of the mean diagonal of G: what few samples do not show is not relied on


class Elimination:
    """The order in which the groups of a cluster go, found as far as it is asked for.

    Args:
        members: The groups.
        takers: Of the layers that take them, what is known.
    """

    def __init__(self, members: Members, takers: Sequence[Taker]) -> None:
        self._left = members.tolist()
        self._takers = takers
        self._order: list[int] = []
        self._costs: list[float] = []

    def first(self, count: int) -> tuple[Members, NDArray[np.float64]]:
        """Return the `count` groups that go first, and what each costs, as shares of outputs' energy."""
        while len(self._order) < count:
            prices = np.zeros(len(self._left))
            for taker in self._takers:
                prices += taker.prices(self._left)
            best = int(np.argmin(prices))
            group = self._left.pop(best)
            for taker in self._takers:
                taker.remove(group)
            self._order.append(group)
            self._costs.append(float(prices[best]))
        return np.array(self._order[:count], np.int64), np.array(self._costs[:count])


class Taker:
    """A layer that takes groups of one cluster: its weights and the inverse covariance of their columns.

    Args:
        blocks: Columns of each group.
        covariance: ``float64[parts, columns, columns]``.
        matrix: Weights, ``float64[parts, outputs, columns]``.
        scale: What the cost is multiplied by.
    """

    def __init__(
        self,
        blocks: Mapping[int, NDArray[np.int64]],
        covariance: NDArray[np.float64],
        matrix: NDArray[np.float64],
        scale: float,
    ) -> None:
        self._blocks, self._scale = dict(blocks), scale
        width = covariance.shape[1]
        mean = np.trace(covariance, axis1=1, axis2=2) / max(1, width)
        ridge = _RIDGE * np.where(mean > 0, mean, 1.0)
        self._inverse = np.linalg.inv(covariance + ridge[:, None, None] * np.eye(width))
        self._matrix = matrix.copy()

    def prices(self, groups: Sequence[int]) -> NDArray[np.float64]:
        """Return what leaving out each of some groups costs now; 0 for those that the layer does not take."""
        found = np.zeros(len(groups))
        own = [i for i, group in enumerate(groups) if group in self._blocks]
        by_size: dict[int, list[int]] = {}
        for i in own:
            by_size.setdefault(len(self._blocks[groups[i]]), []).append(i)
        for places in by_size.values():
            columns = np.array([self._blocks[groups[i]] for i in places])  # [groups, size]
            inverse = self._inverse[:, columns[:, :, None], columns[:, None, :]]
            weights = self._matrix[:, :, columns].transpose(0, 2, 3, 1)  # [parts, groups, size, outputs]
            squares = weights @ weights.swapaxes(2, 3)  # small: solving for all outputs would take longer
            within = 1 / inverse if columns.shape[1] == 1 else np.linalg.inv(inverse)
            lost = (squares * within).sum(axis=(0, 2, 3))
            found[places] = np.maximum(0.0, lost) * self._scale
        return found

    def remove(self, group: int) -> None:
        """Leave a group out, and have the others take over."""
        columns = self._blocks.pop(group, None)
        if columns is None:
            return
        across = self._inverse[:, columns, :]
        solved = np.linalg.solve(across[:, :, columns], across)  # [parts, size, columns]
        self._matrix -= self._matrix[:, :, columns] @ solved
        self._inverse -= across.swapaxes(1, 2) @ solved


def eliminations(
    model: onnx.ModelProto,
    groups: Groups,
    layers: Mapping[str, Linear],
    samples: Sequence[Arrays],
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Elimination]:
    """Return for each cluster the order in which its groups go.

    Costs are shares of the variance of all of a layer's output, summed over the layers that take a group.

    Args:
        model: The graph that was traced.
        groups: Its groups.
        layers: Its layers, by name of their output.
        samples: Inputs.
        weights: What a layer's share counts for, by name of its output; 1 where it is missing.
        seed: Of the positions that are looked at.
    """
    meters = [m for c in groups.trace.contractions if (m := _meter(c, groups, layers)) is not None]
    given = {i.name for i in model.graph.input}
    names = list(dict.fromkeys(m.layer.node.input[0] for m in meters))
    wanted = [n for n in names if n not in given] + [m.layer.node.output[0] for m in meters]
    if meters:
        with ReferenceProgram(with_outputs(model, wanted), optimize=True) as program:
            for number, sample in enumerate(samples):
                values = {**sample, **program.run(sample)}
                for meter in meters:
                    x, y = values[meter.layer.node.input[0]], values[meter.layer.node.output[0]]
                    picked = picked_positions(
                        meter.layer.positions(y), number, seed, samples=len(samples), width=meter.width
                    )
                    meter.add(x, picked)
    given_weights = weights or {}
    found = []
    for cluster in groups.clusters:
        takers = [
            taker
            for meter in meters
            for taker in meter.takers(cluster.members, given_weights.get(meter.layer.node.output[0], 1.0))
        ]
        found.append(Elimination(cluster.members, takers))
    return found


class _Meter:
    """The covariance of what one layer takes, in parts of columns that are looked at together.

    Args:
        layer: The layer.
        members: Group of each of its columns; -1 for those that stay.
    """

    def __init__(self, layer: Linear, members: NDArray[np.int64]) -> None:
        self.layer = layer
        self._matrix = matrix = layer.matrix()
        self._members = members
        self._parts = _parts(members)
        self._rows, self._energy = 0, 0.0
        self._sums, self._output = np.zeros((matrix.shape[0], matrix.shape[2])), np.zeros(matrix.shape[:2])
        self._squares = [np.zeros((matrix.shape[0], len(p), len(p))) for p in self._parts]
        self._waiting: list[NDArray[np.float32]] = []

    @property
    def width(self) -> int:
        """Columns of the layer."""
        return len(self._members)

    def add(self, x: NDArray[Any], picked: NDArray[np.int64]) -> None:
        self._waiting.append(self.layer.inputs(x, picked))
        if sum(map(len, self._waiting)) >= _ROWS_AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting).transpose(1, 0, 2)  # [parts, rows, columns]
        self._waiting.clear()
        self._rows += rows.shape[1]
        self._sums += rows.sum(axis=1)
        for square, columns in zip(self._squares, self._parts, strict=True):
            part = rows[:, :, columns]
            square += part.swapaxes(1, 2) @ part
        y = rows @ self._matrix.swapaxes(1, 2).astype(np.float32)  # [parts, rows, outputs]
        self._energy += float(np.square(y).sum(dtype=np.float64))
        self._output += y.sum(axis=1)

    def takers(self, members: Members, weight: float) -> list[Taker]:
        """Return what backward elimination of some groups needs to know."""
        self._sum_up()
        whole = self._energy - float(np.square(self._output).sum()) / max(1, self._rows)
        if whole <= 0:
            return []
        found, mean = [], self._sums / max(1, self._rows)
        for square, columns in zip(self._squares, self._parts, strict=True):
            blocks = _blocks(self._members[columns], set(members.tolist()))
            if blocks:
                centre = mean[:, columns]
                spread = square - self._rows * centre[:, :, None] * centre[:, None, :]
                found.append(Taker(blocks, spread, self._matrix[:, :, columns], weight / whole))
        return found


def _parts(members: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return columns that are looked at together, those of a group always in one part."""
    order = np.argsort(members, kind="stable")
    starts = np.flatnonzero(np.diff(members[order], prepend=-2) != 0).tolist()
    parts: list[list[int]] = [[]]
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        block = order[start:end].tolist()
        if parts[-1] and len(parts[-1]) + len(block) > _WIDEST:
            parts.append([])
        if len(block) <= _WIDEST or members[block[0]] >= 0:
            parts[-1] += block
    return [np.array(p, np.int64) for p in parts if p]


def _blocks(members: NDArray[np.int64], wanted: set[int]) -> dict[int, NDArray[np.int64]]:
    return {
        group: np.flatnonzero(members == group) for group in np.unique(members).tolist() if group in wanted
    }


def _meter(contraction: Contraction, groups: Groups, layers: Mapping[str, Linear]) -> _Meter | None:
    layer = layers.get(str(contraction.node.outputs[0].name))
    if layer is None or contraction.taken is None or (layer.groups > 1 and _is_depthwise(layer)):
        return None
    members = groups.of(contraction.taken)[: len(contraction.taken) // layer.groups]
    columns = np.repeat(members, int(np.prod(layer.kernel, dtype=np.int64)))
    return _Meter(layer, columns) if np.any(columns >= 0) else None


def _is_depthwise(layer: Linear) -> bool:
    axis = 0 if layer.node.op_type == "ConvTranspose" else 1
    return bool(layer.weight.shape[axis] == (layer.groups if axis == 0 else 1))
