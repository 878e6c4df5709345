"""Checks of orders, and the work of updates, by devices that share processors and an interpreter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

# Checks that run at once.
_CHECKS = 4
# Orders that come within so long of each other are all heard before the first of them is checked, but none
# waits longer than the most for others.
_TOGETHER_S, _MOST_S = 0.25, 1.5


class Works:
    """Runs pieces of work, each in a thread as an agent's own would be; one that is free is used again.

    Args:
        most: At a time; beyond that they wait for each other.
    """

    def __init__(self, most: int) -> None:
        """Prepare; no thread is started before the first piece."""
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="edgec-simulation-work")

    def run(self, work: Callable[[], None]) -> None:
        """Run a piece of work now, in another thread."""
        _submit(self._pool, work)

    def close(self) -> None:
        """Begin no other piece."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Checks:
    """Runs checks of what a fleet asks for, a few at a time, and in the order in which they were asked for.

    Real devices hear and check their orders beside each other. Here those that have heard would keep
    processors and interpreter from those that are about to, and with them the broker that tells all of them.
    """

    def __init__(self) -> None:
        """Prepare; no thread is started before the first check."""
        self._pool = ThreadPoolExecutor(_CHECKS, thread_name_prefix="edgec-simulation-check")
        self._over = threading.Event()
        self._asked_at = 0.0

    def run(self, check: Callable[[], None]) -> None:
        """Run a check soon, in another thread."""
        self._asked_at = asked_at = time.monotonic()
        _submit(self._pool, partial(self._run, check, asked_at))

    def close(self) -> None:
        """Begin no other check."""
        self._over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, check: Callable[[], None], asked_at: float) -> None:
        while (due := min(self._asked_at + _TOGETHER_S, asked_at + _MOST_S)) > (now := time.monotonic()):
            if self._over.wait(due - now):
                return
        check()


def _submit(pool: ThreadPoolExecutor, work: Callable[[], None]) -> None:
    done = pool.submit(work)
    # What it raises is a bug in the agent: it is logged, and not kept where nobody looks.
    done.add_done_callback(lambda done: done.cancelled() or done.result())
