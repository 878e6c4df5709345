"""A call in a thread, which an event loop waits for, or gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from edgec.runtime._interrupt import Interrupt

T = TypeVar("T")


class Running(Generic[T]):
    """A call in a thread. What asyncio has for that takes four futures for each, where this takes one.

    Attributes:
        answer: What it gives, unless it was given up before.
        has_ended: Whether `answer` is from the call.
        took_s: How long it took; None where it has not ended, or was given up before it had begun.
    """

    def __init__(
        self, call: Callable[[], T], leave: Callable[[float | None, bool], None], *, stoppable: bool
    ) -> None:
        """Run nothing yet; `leave` is called when a call that was given up has ended."""
        self._loop = asyncio.get_running_loop()
        self._call, self._leave = call, leave
        self._interrupt = Interrupt() if stoppable else None
        self.answer: asyncio.Future[T] = self._loop.create_future()
        self.has_ended = False
        self.took_s: float | None = None

    @property
    def stoppable(self) -> bool:
        """Whether it can be stopped while it runs."""
        return self._interrupt is not None

    def work(self) -> None:
        """Run the call; in a thread."""
        interrupt, start = self._interrupt, time.perf_counter()
        try:
            if interrupt is None:
                result = self._call()
            else:
                with interrupt:
                    result = self._call()
        except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs to who waits
            end = partial(self._end, e, self.answer.set_exception)
        else:
            end = partial(self._end, result, self.answer.set_result)
        if interrupt is None or interrupt.was_begun:
            self.took_s = time.perf_counter() - start
        self._loop.call_soon_threadsafe(end)

    def give_up(self, error: Exception) -> None:
        """Stop the call, where the engine can; who waits gets the error."""
        if not self.has_ended:
            if not self.answer.done():
                self.answer.set_exception(error)
            if self._interrupt is not None:
                self._interrupt.ask()

    def _end(self, what: Any, settle: Callable[[Any], object]) -> None:
        if self.answer.done():  # given up, or whoever waited was cancelled
            self._leave(self.took_s, False)
        else:
            self.has_ended = True
            settle(what)
