"""How often something may be done: so many at once, and one more every so many seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something may be done.

    Attributes:
        burst: At once, after a rest.
        every_s: After that, one in so many seconds.
    """

    burst: int
    every_s: float


class TokenBucket:
    """Counts what is done, and says when it is too much. Safe from several threads.

    Args:
        rate: How often.
        clock: Monotonic, in seconds.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._lock = Lock()
        self._tokens, self._at = float(rate.burst), clock()

    def take(self) -> float:
        """Return 0 and count one where that is allowed; else in how many seconds it will be."""
        with self._lock:
            now = self._clock()
            gained = max(now - self._at, 0.0) / self._rate.every_s
            self._tokens, self._at = min(self._tokens + gained, float(self._rate.burst)), now
            if self._tokens < 1:
                return (1 - self._tokens) * self._rate.every_s
            self._tokens -= 1
            return 0.0
