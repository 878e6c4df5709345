"""A circuit breaker: a server that fails is left alone for a while, and then tried with one request."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from threading import Lock

_MOST_BACK_OFF = 8


class Breaker:
    """Says whether a server may be asked. Safe from several threads.

    Closed, it lets all pass. After `failures` within `window_s` it is open for about `open_s`, then
    half-open: one request passes. Its success closes it, its failure opens it for twice as long, up to eight
    times. Times are drawn between half and one and a half of what is said, so that devices do not all come
    back at once.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        window_s: float = 30.0,
        open_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Make one that is closed.

        Args:
            failures: That open it.
            window_s: Time within which they count.
            open_s: How long it stays open the first time.
            clock: Monotonic, in seconds.
            uniform: Draws a number between two.
        """
        self._most, self._window_s, self._open_s = failures, window_s, open_s
        self._clock, self._uniform = clock, uniform
        self._lock = Lock()
        self._failed: deque[float] = deque(maxlen=failures)
        self._until: float | None = None  # None while closed
        self._held = float("-inf")
        self._probing = False
        self._factor = 1

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        with self._lock:
            if self._until is None:
                return "closed"
            return "open" if self._clock() < self._until else "half-open"

    def allow(self) -> bool:
        """Return whether a request may be sent; whoever sends it says what became of it."""
        with self._lock:
            now = self._clock()
            if now < self._held:
                return False
            if self._until is None:
                return True
            if now < self._until or self._probing:
                return False
            self._probing = True
            return True

    def succeeded(self) -> None:
        """Note that the server answered."""
        with self._lock:
            self._failed.clear()
            self._until, self._probing, self._factor = None, False, 1

    def failed(self) -> None:
        """Note that the server did not answer, or not usefully."""
        with self._lock:
            now = self._clock()
            if self._until is not None:
                if self._probing:
                    self._factor = min(2 * self._factor, _MOST_BACK_OFF)
                    self._open(now)
                return
            self._failed.append(now)
            if len(self._failed) == self._most and now - self._failed[0] <= self._window_s:
                self._open(now)

    def release(self) -> None:
        """Note that a request that was allowed has ended, whatever it says of the server."""
        with self._lock:
            self._probing = False

    def hold(self, seconds: float) -> None:
        """Send nothing for a while, as the server asks by ``Retry-After``; that is no failure."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds * self._uniform(1.0, 1.5))
            self._probing = False

    def _open(self, now: float) -> None:
        self._until = now + self._open_s * self._factor * self._uniform(0.5, 1.5)
        self._probing = False
        self._failed.clear()
