"""Bodies of requests that are passed on, and what ends one on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType

from edgec.errors import RequestError
from edgec.serving import ClientGoneError, Receive

# Bodies up to this size are kept, so that a request whose connection breaks can be sent again.
_KEPT_BYTES = 2**20
# A body above the limit is read on and thrown away up to this multiple of it, so that the client, which is
# still sending, gets to read the answer.
_PATIENCE = 2


class Body:
    """The body of a request: kept where it is small, else passed on as it comes."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> None:
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > _PATIENCE * limit):
            raise too_large(limit)
        size = int(declared) if declared.isdigit() else None
        if size is None and b"transfer-encoding" not in headers:
            size = 0
        self.size = size  #: in bytes; None where it comes in chunks
        self._is_too_large = size is not None and size > limit
        self.is_kept = size is not None and size <= _KEPT_BYTES
        self.is_answered = False
        self._receive, self._limit = receive, limit
        self._kept = b""
        self._ended = asyncio.Event()

    async def begin(self) -> None:
        """Read it, where it is to be kept."""
        if self._is_too_large:
            while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                pass
            raise too_large(self._limit)
        if self.size == 0:
            self._ended.set()
        elif self.is_kept:
            self._kept = b"".join([piece async for piece in self._pieces()])

    @property
    def has_ended(self) -> bool:
        """Whether all of it has arrived."""
        return self._ended.is_set()

    def data(self) -> bytes | AsyncIterator[bytes]:
        """Return what to send."""
        return self._kept if self.is_kept else self._pieces()

    async def gone(self) -> None:
        """Return when the client went away, after its request had arrived."""
        await self._ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _pieces(self) -> AsyncIterator[bytes]:
        more, size = True, 0
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > self._limit:
                raise too_large(self._limit)
            # Else the upstream would read the rest as a request, or the next request as the rest.
            if self.size is not None and (size > self.size or (size < self.size and not more)):
                raise RequestError(f"expected a body of {self.size} bytes, as content-length says")
            if piece:
                yield piece
        self._ended.set()


class Limits:
    """Within it, the present task ends at a deadline, or when its client goes away."""

    def __init__(self, body: Body, until: float) -> None:
        """Watch nothing yet; `until` is on the clock `time.monotonic`."""
        self._body, self._until = body, until
        self._error: Exception | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        left = max(0.0, self._until - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(left, self._end, task, asyncio.TimeoutError())
        self._leaving = asyncio.ensure_future(self._watch(task))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._leaving.cancel()
        if isinstance(error, asyncio.CancelledError) and self._error is not None:
            raise self._error from None

    async def _watch(self, task: asyncio.Task[object]) -> None:
        await self._body.gone()
        self._end(task, ClientGoneError())

    def _end(self, task: asyncio.Task[object], error: Exception) -> None:
        if self._error is None:
            self._error = error
            task.cancel()


def too_large(limit: int) -> RequestError:
    """Return what is said of a body above the limit."""
    return RequestError(f"the body is larger than {limit} bytes", status=413)
