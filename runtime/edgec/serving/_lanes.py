"""Who runs when: each model has a lane of bounded width, with a bounded queue before it.

A model that answers faster than a thread can be woken runs on the event loop itself; all others run in
threads, so that the loop goes on reading and writing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from statistics import median
from typing import Any, TypeVar

from edgec.errors import RequestError
from edgec.serving._metrics import ModelMetrics

T = TypeVar("T")
RETRY_AFTER_S = 1


class ClientGoneError(Exception):
    """The client went away while its request waited; there is nobody to answer."""


class Lane:
    """Lets `width` calls run at once, `queue` more wait, and refuses the rest. For one event loop.

    Args:
        executor: Whose threads run the calls; it may be shared by lanes.
        width: Calls that run at once.
        queue: Calls that may wait.
        metrics: Where it is counted.
    """

    def __init__(self, executor: Executor, width: int, queue: int, metrics: ModelMetrics) -> None:
        self._executor = executor
        self._width = width
        self._queue = queue
        self._metrics = metrics
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(
        self, call: Callable[[], T], gone: Callable[[], Awaitable[object]], timeout_s: float | None
    ) -> T:
        """Run a call in a thread when its turn comes.

        Args:
            call: What to run.
            gone: Returns when the client went away; asked only while the call waits.
            timeout_s: Longest wait; None for as long as it takes.

        Raises:
            RequestError: The queue is full, or the wait was too long: status 503.
            ClientGoneError: The client went away before its turn; nothing was run.
        """
        if self._metrics.in_flight >= self._width:
            await self._wait(gone, timeout_s)
        else:
            self._metrics.in_flight += 1
        running = asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            # Shielded: a thread cannot be stopped, and its place is taken until it is done.
            return await asyncio.shield(running)
        finally:
            if running.done():
                self._leave(running)
            else:
                running.add_done_callback(self._leave)

    async def drained(self) -> None:
        """Return when nothing runs and nothing waits."""
        while self._metrics.in_flight or self._waiting:
            await asyncio.sleep(0.005)

    async def _wait(self, gone: Callable[[], Awaitable[object]], timeout_s: float | None) -> None:
        """Wait for a place; when it returns, the place is taken."""
        if len(self._waiting) >= self._queue:
            self._metrics.refused += 1
            raise _overloaded(f"{self._queue} requests wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._metrics.queued += 1
        leaving = asyncio.ensure_future(gone())
        try:
            both: set[asyncio.Future[Any]] = {turn, leaving}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                if leaving.done():
                    self._metrics.abandoned += 1
                    raise ClientGoneError
                self._metrics.refused += 1
                raise _overloaded("the request waited longer than its own timeout")
        except BaseException:
            self._withdraw(turn)
            raise
        finally:
            self._metrics.queued -= 1
            leaving.cancel()

    def _withdraw(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # its turn came at the same moment: pass the place on
            self._pass_on()
        else:
            self._waiting.remove(turn)

    def _leave(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # looked at, or asyncio reports it as lost
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._metrics.in_flight -= 1


async def hop_seconds(executor: Executor, times: int = 50) -> float:
    """Return what it costs to run nothing in a thread: the median, in seconds."""
    loop, taken = asyncio.get_running_loop(), []
    for _ in range(times):
        start = time.perf_counter()
        await loop.run_in_executor(executor, _nothing)
        taken.append(time.perf_counter() - start)
    return median(taken)


def _nothing() -> None:
    pass


def _overloaded(why: str) -> RequestError:
    return RequestError(f"the model is busy: {why}; try again later", status=503)
