"""Waiting for a broker that is slow, but not for one that takes nothing any more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from edgec.errors import LinkError
from edgec.protocol import Publication

_SLICE_S = 1.0


def wait_for_all(
    publications: Sequence[Publication],
    quiet_s: float,
    *,
    most_s: float = math.inf,
    stopping: Callable[[], bool] = lambda: False,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until all publications are done, or none was for so long: a slow broker is given time.

    Args:
        publications: In the order in which they were sent, which is the one that brokers answer in.
        quiet_s: How long to wait on from the last one that was done.
        most_s: How long in all.
        stopping: Whether what is done no longer gives the others more time.
        monotonic: Seconds.
    """
    waiting = [p for p in publications if not p.done]
    moved_at = monotonic()
    end = moved_at + most_s
    while waiting and (left := min(moved_at + quiet_s, end) - monotonic()) > 0:
        with suppress(LinkError):
            waiting[-1].wait(min(left, _SLICE_S))
        still = [p for p in waiting if not p.done]
        if len(still) < len(waiting) and not stopping():
            moved_at = monotonic()
        waiting = still
