"""How much earlier than it seems an inference has to begin, for its answer to be heard."""

from __future__ import annotations

from collections.abc import Callable

_STEP = 0.5  # of an inference
_UNHEARD = 0.005
_MOST = 8.0  # inferences
_HALF_LIFE_S = 10.0


class Margin:
    """Learns from answers that came too late: what a server cannot see is the way to it and back.

    A step up for each answer that nobody heard, and a small one down for each that was heard, come to rest
    where the share of those that nobody heard is the ratio of the steps (Robbins and Monro, 1951). It goes
    by itself, too, so that clients which hang up for other reasons do not shut out the others for long.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none; `clock` is monotonic, in seconds."""
        self._clock = clock
        self._held_s, self._since = 0.0, clock()

    def seconds(self) -> float:
        """Return it."""
        if not self._held_s:
            return 0.0
        return float(self._held_s * 0.5 ** ((self._clock() - self._since) / _HALF_LIFE_S))

    def learn(self, heard: bool, service_s: float) -> None:
        """Note what became of an answer of an inference that takes `service_s`."""
        change = -_STEP * _UNHEARD if heard else _STEP
        self._held_s = min(max(0.0, self.seconds() + change * service_s), _MOST * service_s)
        self._since = self._clock()
