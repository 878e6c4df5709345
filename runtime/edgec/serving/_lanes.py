"""Who runs when: each model has a lane of bounded width, with a bounded queue before it.

A model that answers faster than a thread can be woken runs on the event loop itself; all others run in
threads, so that the loop goes on reading and writing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from math import ceil
from statistics import median
from typing import Any, TypeVar

from edgec.errors import RequestError
from edgec.serving._calls import Running
from edgec.serving._margin import Margin
from edgec.serving._metrics import ModelMetrics

T = TypeVar("T")
# Returns when the client of a request went away.
Gone = Callable[[], Coroutine[Any, Any, object]]
RETRY_AFTER_S = 1
_LONGEST_RETRY_S = 60
# Calls that take less are not watched while they run: that takes a while itself.
_WATCHED_S = 0.001
_WEIGHT = 0.1  # of the latest inference in what one is expected to take


class BusyError(RequestError):
    """A request cannot be answered now, or not in time; it was not begun.

    Attributes:
        retry_after_s: When it may be, in whole seconds.
    """

    def __init__(self, message: str, status: int = 503, retry_after_s: float = RETRY_AFTER_S) -> None:
        super().__init__(message, status)
        self.retry_after_s = min(max(RETRY_AFTER_S, ceil(retry_after_s)), _LONGEST_RETRY_S)


class ClientGoneError(Exception):
    """The client went away while its request waited; there is nobody to answer."""


class Lane:
    """Lets `width` calls run at once, `queue` more wait, and refuses the rest. For one event loop.

    Args:
        executor: Whose threads run the calls; it may be shared by lanes.
        width: Calls that run at once.
        queue: Calls that may wait.
        metrics: Where it is counted.
        service_s: What a call takes, about.

    Attributes:
        service_s: What calls took lately, in seconds.
    """

    def __init__(
        self, executor: Executor, width: int, queue: int, metrics: ModelMetrics, service_s: float = 0.0
    ) -> None:
        self._executor = executor
        self._width = width
        self._queue = queue
        self._metrics = metrics
        self.service_s = service_s
        self._spread_s = service_s / 2  # how far calls are from that, in the mean; at first as in RFC 6298
        self._margin = Margin(time.monotonic)
        self._waiting: deque[asyncio.Future[None]] = deque()

    def expected_s(self) -> float:
        """Return how long a call that comes now would take, its wait included; rarely is it longer."""
        if not self._metrics.in_flight:  # else nothing would run, and teach better, where that seems too long
            return self.reserve_s()
        if self._metrics.in_flight < self._width:
            return self._likely_s()
        return self._likely_s() + self.service_s * (len(self._waiting) + 1) / self._width

    def reserve_s(self) -> float:
        """Return how long before its deadline a call has to begin."""
        return self.service_s + self._margin.seconds()

    def admit(self, deadline: float | None) -> None:
        """Do nothing if a call that comes now can be answered in time.

        Args:
            deadline: On the clock `time.monotonic`; None for whenever.

        Raises:
            BusyError: It cannot.
        """
        if deadline is None:
            return
        expected, left = self.expected_s(), deadline - time.monotonic()
        if expected > left:
            self._metrics.refused += 1
            raise BusyError(
                f"the model is busy: an answer would take about {expected * 1e3:.1f} ms, and "
                f"{max(left, 0) * 1e3:.1f} ms are left until the deadline",
                retry_after_s=expected - self.service_s,
            )

    async def run(
        self,
        call: Callable[[], T],
        gone: Gone,
        timeout_s: float | None,
        deadline: float | None = None,
    ) -> T:
        """Run a call in a thread when its turn comes.

        Args:
            call: What to run.
            gone: Returns when the client went away; asked until the call begins, while it runs where that
                takes long enough, and once when it has ended.
            timeout_s: Longest wait; None for as long as it takes.
            deadline: Of the answer, on the clock `time.monotonic`; None for whenever.

        Raises:
            BusyError: The queue is full, the wait was too long, or the deadline cannot be kept.
            ClientGoneError: The client went away.
        """
        self.admit(deadline)
        if _ends_at_once(gone()):
            self._metrics.abandoned += 1
            raise ClientGoneError
        if self._metrics.in_flight >= self._width:
            await self._wait(gone, self._patience(timeout_s, deadline))
        else:
            self._metrics.in_flight += 1
        running = Running(call, self._leave, stoppable=self.service_s >= _WATCHED_S)
        self._executor.submit(running.work)
        try:
            if not running.stoppable:
                return await running.answer
            return await self._watched(running, gone, deadline)
        finally:
            heard = running.has_ended and not _ends_at_once(gone())
            if deadline is not None:
                self._learn(heard, deadline)
            if running.has_ended:
                self._leave(running.took_s, heard)

    async def drained(self) -> None:
        """Return when nothing runs and nothing waits."""
        while self._metrics.in_flight or self._waiting:
            await asyncio.sleep(0.005)

    async def _watched(self, running: Running[T], gone: Gone, deadline: float | None) -> T:
        """Return what a call gives; when nobody waits for it, it is stopped, where the engine can.

        Raises:
            ClientGoneError: The client went away.
            BusyError: The deadline has passed.
        """
        leaving: asyncio.Future[object] | None = None

        def left(_: asyncio.Future[Any]) -> None:
            running.give_up(ClientGoneError())

        def watch() -> None:
            nonlocal leaving
            leaving = asyncio.ensure_future(gone())
            leaving.add_done_callback(left)

        loop, timer = asyncio.get_running_loop(), None
        # Not at once: what the loop does now, the call waits for, since Python runs one thread at a time.
        begin = loop.call_later(_WATCHED_S, watch)
        if deadline is not None:
            late = _overloaded("the inference took longer than its deadline allows")
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), running.give_up, late)
        try:
            return await running.answer
        finally:
            begin.cancel()
            if leaving is not None:
                leaving.remove_done_callback(left)
                leaving.cancel()
            if timer is not None:
                timer.cancel()
            if not running.has_ended:
                self._metrics.stopped += 1
                running.give_up(ClientGoneError())

    def _learn(self, heard: bool, deadline: float) -> None:
        # Clients that went away long before their deadline did so for another reason.
        if heard or time.monotonic() > deadline - self._likely_s():
            self._margin.learn(heard, self.service_s)

    def _likely_s(self) -> float:
        """Return what a call rarely exceeds, as TCP has it for round trips (RFC 6298, with a factor of 2)."""
        return self.service_s + 2 * self._spread_s + self._margin.seconds()

    def _patience(self, timeout_s: float | None, deadline: float | None) -> float | None:
        """Return how long a call may wait; what it takes itself has to be left then."""
        if deadline is None:
            return timeout_s
        left = max(0.0, deadline - time.monotonic() - self._likely_s())
        return left if timeout_s is None else min(left, timeout_s)

    async def _wait(self, gone: Gone, timeout_s: float | None) -> None:
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
                raise _overloaded("the request waited longer than its own timeout or deadline allows")
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

    def _leave(self, took_s: float | None, heard: bool) -> None:
        if took_s is not None:
            self._spread_s += _WEIGHT * (abs(took_s - self.service_s) - self._spread_s)
            self.service_s += _WEIGHT * (took_s - self.service_s)
            self._metrics.computed(took_s, heard=heard)
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


def _ends_at_once(asked: Coroutine[Any, Any, object]) -> bool:
    """Return whether a coroutine has nothing to wait for: it is begun, and given up where it waits."""
    try:
        asked.send(None)
    except StopIteration:
        return True
    asked.close()
    return False


def _overloaded(why: str) -> BusyError:
    return BusyError(f"the model is busy: {why}; try again later")
