"""How much of what a layer gives comes from each group of its channels, on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.compiler.pruning.groups import Groups
from edgec.compiler.pruning.linear import Linear
from edgec.compiler.pruning.trace import Contraction

Arrays = Mapping[str, NDArray[Any]]

# Positions of one sample that are looked at: what a layer does at one place it does at all.
POSITIONS = 1024


def group_energies(
    model: onnx.ModelProto,
    groups: Groups,
    layers: Mapping[str, Linear],
    samples: Iterable[Arrays],
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return for each group the energy that the layers that take it would lose without it.

    For a layer y = W x with the covariance G of x, what group c adds to y varies by tr(W_c G_cc W_c'): its
    mean is what a bias makes up for. Energies are shares of the energy of all of y, summed over the layers
    that take the group. Only the diagonal blocks of G are kept in memory.

    Args:
        model: The graph that was traced.
        groups: Its groups.
        layers: Its layers, by name of their output.
        samples: Inputs.
        seed: Of the positions that are looked at.
    """
    meters = [m for c in groups.trace.contractions if (m := _meter(c, groups, layers)) is not None]
    if not meters:
        return np.zeros(groups.count)
    names = list(dict.fromkeys(m.layer.node.input[0] for m in meters))
    given = {i.name for i in model.graph.input}
    wanted = [n for n in names if n not in given] + [m.layer.node.output[0] for m in meters]
    with ReferenceProgram(with_outputs(model, wanted), optimize=True) as program:
        for number, sample in enumerate(samples):
            values = {**sample, **program.run(sample)}
            for meter in meters:
                x, y = values[meter.layer.node.input[0]], values[meter.layer.node.output[0]]
                meter.add(x, picked_positions(meter.layer.positions(y), number, seed))
    energy = np.zeros(groups.count)
    for meter in meters:
        meter.share(energy)
    return energy


def picked_positions(count: int, sample: int, seed: int) -> NDArray[np.int64]:
    """Return at which positions of a sample's output a layer is looked at, the same ones every time."""
    if count <= POSITIONS:
        return np.arange(count)
    rng = np.random.default_rng((seed, sample, count))
    return np.sort(rng.choice(count, POSITIONS, replace=False))


class _Meter:
    """The diagonal blocks of the covariance of what one layer takes.

    Args:
        layer: The layer.
        members: Group of each of its columns; -1 for those that stay.
    """

    def __init__(self, layer: Linear, members: NDArray[np.int64]) -> None:
        self.layer = layer
        self._blocks = _blocks(members)
        self._matrix = matrix = layer.matrix()
        parts = matrix.shape[0]
        self._rows, self._energy = 0, 0.0
        self._sums, self._output = np.zeros((parts, matrix.shape[2])), np.zeros(matrix.shape[:2])
        self._squares = [np.zeros((parts, *c.shape, c.shape[1])) for _, c in self._blocks]

    def add(self, x: NDArray[Any], picked: NDArray[np.int64]) -> None:
        rows = self.layer.inputs(x, picked)  # [rows, parts, columns]
        self._rows += len(rows)
        self._sums += rows.sum(axis=0)
        for square, (_, columns) in zip(self._squares, self._blocks, strict=True):
            part = rows[:, :, columns].transpose(1, 2, 3, 0)  # [parts, groups, columns, rows]
            square += part @ part.swapaxes(2, 3)
        y = rows.transpose(1, 0, 2) @ self._matrix.swapaxes(1, 2)  # [parts, rows, outputs]
        self._energy += float(np.square(y).sum())
        self._output += y.sum(axis=1)

    def share(self, energy: NDArray[np.float64]) -> None:
        """Add each group's share of the energy of the layer's output."""
        if not self._rows:
            return
        mean = self._sums / self._rows
        whole = self._energy - float(np.square(self._output).sum()) / self._rows
        if whole <= 0:
            return
        for square, (groups, columns) in zip(self._squares, self._blocks, strict=True):
            centre = mean[:, columns]
            spread = square - self._rows * centre[..., :, None] * centre[..., None, :]
            block = self._matrix[:, :, columns].transpose(0, 2, 1, 3)  # [parts, groups, outputs, columns]
            lost = ((block @ spread) * block).sum(axis=(0, 2, 3))
            energy[groups] += np.maximum(0.0, lost) / whole


def _blocks(members: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return groups, and for each of them its columns, by the number of these."""
    order = np.argsort(members, kind="stable")
    groups, counts = np.unique(members[members >= 0], return_counts=True)
    first = np.searchsorted(members[order], groups)
    found = []
    for size in np.unique(counts):
        chosen = counts == size
        found.append((groups[chosen], order[first[chosen][:, None] + np.arange(size)]))
    return found


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
