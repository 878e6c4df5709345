"""Groups of channels that can go, the layers they belong to, and what goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.pruning.channels import Ids
from edgec.compiler.pruning.trace import Contraction, Trace

Members = NDArray[np.int64]
"""Groups of the channels of an axis; -1 for those that must stay."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a layer costs, as a function of what is kept.

    Attributes:
        name: Of the node.
        macs: Multiply-accumulates with everything kept.
        axes: Groups of the channels that its cost is proportional to, per axis.
    """

    name: str
    macs: int
    axes: tuple[Members, ...]

    def of(self, kept: NDArray[np.bool_]) -> float:
        """Return its multiply-accumulates where `kept` says which groups stay."""
        share = 1.0
        for members in self.axes:
            share *= float(np.mean(kept[members] | (members < 0)))
        return self.macs * share


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Groups that are interchangeable: they run through the same axes of the same tensors.

    Attributes:
        name: Of the layer that gives them, and how many others do.
        members: The groups.
        unit: How many go at once, so that what is left fits the engine's vectors.
        least: How many must stay.
    """

    name: str
    members: Members
    unit: int
    least: int


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What can be pruned.

    Attributes:
        count: Number of groups.
        costs: Of all layers that multiply and accumulate.
        clusters: In the order of the graph.
        frozen: Why channels stay, each reason once, in the order of the graph.
        table: Group of every channel; -1 for those that must stay.
        trace: Of the graph.
    """

    count: int
    costs: tuple[Cost, ...]
    clusters: tuple[Cluster, ...]
    frozen: tuple[str, ...]
    table: Members
    trace: Trace

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference with everything kept."""
        return sum(cost.macs for cost in self.costs)

    def of(self, ids: Ids) -> Members:
        """Return the groups of the channels of an axis."""
        return np.asarray(self.table[ids])


# A layer keeps at least this share of its channels: fewer is another model, not a pruned one.
_LEAST_SHARE = 1 / 8


def find_groups(trace: Trace, align: int) -> Groups:
    """Return the groups of channels of a graph that can go.

    Args:
        trace: Of the graph.
        align: Multiples of how many channels an engine likes; layers of few channels go in smaller steps.
    """
    frozen = trace.channels.frozen()
    roots = trace.channels.all_roots()
    numbers: dict[int, int] = {}
    for contraction in trace.contractions:
        for ids in contraction.axes:
            for root in roots[ids].tolist():
                if root not in frozen:
                    numbers.setdefault(root, len(numbers))
    table = np.array([numbers.get(root, -1) for root in roots.tolist()], np.int64)
    signatures = _signatures(trace, table, len(numbers))
    together: dict[tuple[int, ...], list[int]] = {}
    for group, axes in enumerate(signatures):
        together.setdefault(tuple(axes), []).append(group)
    costs = tuple(
        Cost(name=c.name, macs=c.macs, axes=tuple(table[ids] for ids in c.axes)) for c in trace.contractions
    )
    clusters = [
        _cluster(trace.contractions, table, np.array(members, np.int64), align)
        for members in together.values()
        if len(members) > 1
    ]
    return Groups(
        count=len(numbers),
        costs=costs,
        clusters=tuple(clusters),
        frozen=tuple(dict.fromkeys(frozen.values())),
        table=table,
        trace=trace,
    )


def _signatures(trace: Trace, table: Members, count: int) -> list[list[int]]:
    """Return for each group the axes that it runs through: the same axes, the same kind of channel."""
    found: list[list[int]] = [[] for _ in range(count)]
    known: dict[bytes, int] = {}
    for axes in trace.axes.values():
        for ids in axes:
            if ids is None:
                continue
            members = table[ids]
            key = members.tobytes()
            if key in known:
                continue
            known[key] = number = len(known)
            for group in np.unique(members[members >= 0]).tolist():
                found[group].append(number)
    return found


def _cluster(contractions: Sequence[Contraction], table: Members, members: Members, align: int) -> Cluster:
    givers = [c for c in contractions if c.given is not None and np.any(table[c.given] == members[0])]
    name = givers[0].name if givers else "a tensor of weights"
    if len(givers) > 1:
        name += f" and {len(givers) - 1} others"
    count = len(members)
    # Heads are large already; only single channels are taken in steps.
    alone = not givers or int(np.sum(table[_given(givers[0])] == members[0])) == 1
    unit = _unit(count, align) if alone else 1
    return Cluster(name=name, members=members, unit=unit, least=max(1, int(np.ceil(count * _LEAST_SHARE))))


def _given(contraction: Contraction) -> Ids:
    assert contraction.given is not None
    return contraction.given


def _unit(count: int, align: int) -> int:
    """Return the largest power of two up to `align` that goes into a layer at least four times."""
    unit = 1
    while unit * 2 <= align and unit * 8 <= count:
        unit *= 2
    return unit
