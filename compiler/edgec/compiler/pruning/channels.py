"""Channels of tensors, and which of them stand or fall together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""One number per channel of an axis; channels whose numbers are the same, or were tied, go together."""


class Channels:
    """Numbers of channels, with a union-find over them.

    Tarjan, "Efficiency of a good but not linear set union algorithm", J. ACM 22 (1975), without ranks.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        """Return the numbers of `count` channels that nothing is known of."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def tie(self, first: Ids, second: Ids) -> None:
        """Make the n-th channel of one axis go with the n-th of the other; both are of the same length."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            one, other = self.find(a), self.find(b)
            if one != other:
                low, high = min(one, other), max(one, other)
                self._parent[high] = low

    def find(self, channel: int) -> int:
        """Return the number that stands for all that go with a channel."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def freeze(self, ids: Ids, reason: str) -> None:
        """Keep channels, and all that go with them now or later, for a reason; the first reason stays."""
        for channel in ids.tolist():
            self._frozen.setdefault(channel, reason)

    def all_roots(self) -> Ids:
        """Return for every number the one that stands for its group."""
        return np.array([self.find(i) for i in range(len(self._parent))], np.int64)

    def frozen(self) -> dict[int, str]:
        """Return the groups that must stay, by the number that stands for them, with the reason."""
        found: dict[int, str] = {}
        for channel, reason in self._frozen.items():
            found.setdefault(self.find(channel), reason)
        return found
