"""Waiting for a broker that is slow, but not for one that takes nothing any more."""

from __future__ import annotations

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
    meanwhile: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until all publications are done, or none was for so long: a slow broker takes as long as it takes.

    Args:
        publications: In the order in which they were sent, which is the one that brokers answer in.
        quiet_s: How long to wait on from the last one that was done.
        meanwhile: Called about once a second, for what must not wait so long.
        stopping: Whether what is done no longer gives the others more time.
        monotonic: Seconds.
    """
    waiting = [p for p in publications if not p.done]
    moved_at = monotonic()
    while waiting and (left := moved_at + quiet_s - monotonic()) > 0:
        with suppress(LinkError):
            waiting[-1].wait(min(left, _SLICE_S))
        still = [p for p in waiting if not p.done]
        if len(still) < len(waiting) and not stopping():
            moved_at = monotonic()
        waiting = still
        if waiting:
            meanwhile()
