"""Which groups go: over all layers, those that cost the least output energy per multiply-accumulate saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.pruning.elimination import Elimination
from edgec.compiler.pruning.groups import Cluster, Groups, Members
from edgec.errors import CompileError, UnsupportedModelError

_REASONS_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What stays.

    Attributes:
        kept: By group.
        macs: Multiply-accumulates that are left.
        layers: For each cluster that got smaller, its name, its channels before, and after.
    """

    kept: NDArray[np.bool_]
    macs: float
    layers: tuple[tuple[str, int, int], ...]


def allocate(groups: Groups, orders: Sequence[Elimination], ratio: float) -> Allocation:
    """Choose the groups to drop until a share of the multiply-accumulates is saved.

    The next to go is always the step, some channels of one layer, that loses the least energy per
    multiply-accumulate it saves; what a step saves depends on what went before. Every layer keeps an eighth
    of its channels.

    Args:
        groups: What can go.
        orders: Of each cluster: in which order its groups go, and what each costs.
        ratio: Share of the multiply-accumulates to save, above 0 and below 1.

    Raises:
        CompileError: The ratio cannot be reached.
        UnsupportedModelError: Nothing can be pruned.
    """
    if not 0 < ratio < 1:
        raise CompileError(f"a pruning ratio lies between 0 and 1, and {ratio:g} does not: 0.3 saves 30 %")
    if not groups.clusters:
        raise UnsupportedModelError(_nothing(groups))
    budget = (1 - ratio) * groups.macs
    search = _Search(groups, orders)
    while search.macs > budget:
        if not search.step():
            raise CompileError(_unreachable(groups, ratio, search))
    search.give_back(budget)
    return search.result()


class _Search:
    """The choice so far."""

    def __init__(self, groups: Groups, orders: Sequence[Elimination]) -> None:
        self._groups, self._orders = groups, orders
        self._kept = np.ones(groups.count, np.bool_)
        self._gone = [0] * len(groups.clusters)
        self._costs = np.array([cost.of(self._kept) for cost in groups.costs])
        self._touched = [self._layers(c) for c in groups.clusters]
        self._prices: dict[int, float] = {}
        self._steps: list[tuple[float, int, Members]] = []

    @property
    def macs(self) -> float:
        return float(self._costs.sum())

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self._kept

    def step(self) -> bool:
        """Take the cheapest step; return whether there was one."""
        for index in range(len(self._gone)):
            if index not in self._prices:
                self._prices[index] = self._price(index)
        best = min(self._prices, key=lambda i: self._prices[i])
        if not np.isfinite(self._prices[best]):
            return False
        going, _ = self._next(best)
        self._steps.append((self._prices[best], best, going))
        self._mark(best, going, False)
        changed = set(self._touched[best])
        self._prices = {i: p for i, p in self._prices.items() if not changed & set(self._touched[i])}
        return True

    def give_back(self, budget: float) -> None:
        """Undo the steps that the budget is kept without, the dearest first, each layer's last one first."""
        blocked: set[int] = set()
        for _, _, index, going in sorted(
            ((price, number, index, going) for number, (price, index, going) in enumerate(self._steps)),
            key=lambda step: step[:2],
            reverse=True,
        ):
            if index in blocked or going[-1] != self._last(index):
                continue
            self._mark(index, going, True)
            if self.macs > budget:
                self._mark(index, going, False)
                blocked.add(index)

    def _last(self, index: int) -> int:
        order, _ = self._orders[index].first(self._gone[index])
        return int(order[-1])

    def _mark(self, index: int, groups: Members, kept: bool) -> None:
        self._kept[groups] = kept
        self._gone[index] += -len(groups) if kept else len(groups)
        for layer in self._touched[index]:
            self._costs[layer] = self._groups.costs[layer].of(self._kept)

    def result(self) -> Allocation:
        layers = tuple(
            (cluster.name, len(cluster.members), len(cluster.members) - gone)
            for cluster, gone in zip(self._groups.clusters, self._gone, strict=True)
            if gone
        )
        return Allocation(kept=self._kept, macs=self.macs, layers=layers)

    def _layers(self, cluster: Cluster) -> list[int]:
        first = cluster.members[0]
        return [i for i, cost in enumerate(self._groups.costs) if any(first in axis for axis in cost.axes)]

    def _next(self, index: int) -> tuple[Members, float]:
        """Return what goes next of a cluster, and its cost; nothing at its limit.

        A multiple of the cluster's unit is left.
        """
        cluster, gone = self._groups.clusters[index], self._gone[index]
        left = len(cluster.members) - gone
        count = left % cluster.unit or cluster.unit
        if left - count < cluster.least:
            return np.array([], np.int64), np.inf
        order, costs = self._orders[index].first(gone + count)
        return order[gone:], float(costs[gone:].sum())

    def _price(self, index: int) -> float:
        going, cost = self._next(index)
        if not len(going):
            return np.inf
        self._kept[going] = False
        saved = sum(self._costs[i] - self._groups.costs[i].of(self._kept) for i in self._touched[index])
        self._kept[going] = True
        return cost / saved if saved > 0 else np.inf


def _nothing(groups: Groups) -> str:
    if not groups.costs:
        return (
            "nothing can be pruned: the model has no Conv, ConvTranspose, Gemm or MatMul; leave --prune out"
        )
    reasons = list(groups.frozen[:_REASONS_TOLD])
    more = len(groups.frozen) - len(reasons)
    told = "; ".join(reasons) + (f"; and {more} more" if more else "")
    return f"nothing can be pruned: every layer's channels must stay ({told}): leave --prune out"


def _unreachable(groups: Groups, ratio: float, search: _Search) -> str:
    reached = 1 - search.macs / groups.macs
    at_limit = ", ".join(
        f"{name} ({after} of {before} left)" for name, before, after in search.result().layers[:3]
    )
    why = f"; what else costs is held by: {'; '.join(groups.frozen[:_REASONS_TOLD])}" if groups.frozen else ""
    return (
        f"{ratio:.0%} of the multiply-accumulates cannot be pruned: more than {reached:.0%} would remove "
        f"whole layers, such as {at_limit}{why}; ask for {int(reached * 100) / 100:.2f} or less"
    )
