"""Commands that run until they are told to end."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """Notices SIGTERM and SIGINT without being called in the middle of anything."""

    def __enter__(self) -> Signals:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        # What Python calls is nothing; that there was a signal is in the socket.
        self._handlers = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def wait(self, timeout_s: float) -> bool:
        """Return whether there was a signal; wait for one at most so long."""
        return bool(select.select([self._read], [], [], timeout_s)[0])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._read.close()
        self._write.close()


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Let SIGTERM end a block as SIGINT does: what the block holds is given back, and the exit status is 143.

    Signals that come while it ends are passed over: they would leave half of it behind.
    """

    def end(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda *_: None)
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt

    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
