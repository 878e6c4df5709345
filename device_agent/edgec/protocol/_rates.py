"""How often each of many may ask: a token bucket for each, for servers of devices and of people."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

_MOST_BUCKETS = 100_000


class Rates:
    """A bucket per name that fills at `rate` up to `burst`; a request takes one. For one event loop.

    The buckets that were asked longest ago go where there are too many: they are full by then, or nearly.
    """

    def __init__(self, rate: float | None, burst: float, clock: Callable[[], float]) -> None:
        """Give each name a full bucket.

        Args:
            rate: Per second; None for no limit.
            burst: What a bucket holds.
            clock: Monotonic, in seconds.
        """
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, name: str) -> float:
        """Take one; return 0, or how long until there is one."""
        if self._rate is None:
            return 0.0
        held, now = self._held(name, self._rate)
        if held < 1:
            self._keep(name, held, now)
            return (1 - held) / self._rate
        self._keep(name, held - 1, now)
        return 0.0

    def left_s(self, name: str) -> float:
        """Return 0 where there is one to take, or how long until there is; take none."""
        if self._rate is None:
            return 0.0
        return max(0.0, (1 - self._held(name, self._rate)[0]) / self._rate)

    def _held(self, name: str, rate: float) -> tuple[float, float]:
        """Return what a bucket holds, and the time."""
        now = self._clock()
        held, since = self._buckets.get(name, (self._burst, now))
        return min(self._burst, held + (now - since) * rate), now

    def _keep(self, name: str, held: float, now: float) -> None:
        self._buckets[name] = held, now
        self._buckets.move_to_end(name)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
