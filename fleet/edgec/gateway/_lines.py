"""Connections to an upstream: HTTP/1.1 on httptools, one request at a time on each, kept for the next.

A library for HTTP does much more than passing bytes on, and takes longer for it than a small model: this
parses the head of an answer, and hands its body on as it comes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from edgec.errors.extras import needs_extra

_LARGEST_HEAD = 2**16
# Reading stops while more than this waits for a client that reads slowly.
_MOST_WAITING = 2**20
# Answers up to this size are handed on when they are whole: each piece would be a turn of the event loop.
_GATHERED_BYTES = 2**20
_MOST_IDLE = 64


class LineError(Exception):
    """A connection broke, or what came was no HTTP."""


class Line(asyncio.Protocol):
    """One connection. Its answer: `head`, then pieces until there is none. For one event loop."""

    def __init__(self) -> None:
        """Connect to nobody yet."""
        import httptools

        self._make_parser = httptools.HttpResponseParser
        self._parse_errors = httptools.HttpParserError, httptools.HttpParserUpgrade
        self._parser: Any = None
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._error: Exception | None = None
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._parser = self._make_parser(self)
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = self._head_bytes = 0
        self._has_head = self._complete = self._paused = False
        self._keeps = self._is_cut = self._gathers = False

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._error is None and not self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """Whether its answer has ended, and another request may be sent."""
        return self._complete and self._keeps and not self._is_cut and self.is_open

    @property
    def has_ended(self) -> bool:
        """Whether all of the answer was taken."""
        return self._complete and not self._pieces

    async def send(self, head: bytes, body: bytes | AsyncIterator[bytes], *, chunked: bool) -> None:
        """Send a request.

        Args:
            head: With the empty line at its end.
            body: Whole, or in pieces; the rest is not sent once an answer comes.
            chunked: Whether pieces are sent as chunks, since their size is not known beforehand.

        Raises:
            LineError: The connection broke.
        """
        self._begin()
        if isinstance(body, bytes):
            self._transport.writelines([head, body] if body else [head])
            return
        # Until all is written, whatever ends this: the next request would be read as the rest of the body.
        self._is_cut = True
        self._transport.write(head)
        async for piece in body:
            self._transport.writelines([b"%x\r\n" % len(piece), piece, b"\r\n"] if chunked else [piece])
            await self._writable.wait()
            if self._error is not None:
                raise self._error
            if self._has_head:
                return
        if chunked:
            self._transport.write(b"0\r\n\r\n")
        self._is_cut = False

    async def head(self) -> None:
        """Return when `status` and `headers` of the answer are there.

        Raises:
            LineError: The connection broke, or what came was no HTTP.
        """
        while not self._has_head:
            await self._wait()

    async def piece(self) -> bytes:
        """Return what has come of the body; empty when it has ended.

        Raises:
            LineError: It was cut off.
        """
        while not self._pieces and not self._complete:
            await self._wait()
        if not self._pieces:
            return b""
        piece = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def fail(self, error: Exception) -> None:
        """Cut it off; who waits for it gets the error."""
        if self._error is None:
            self._error = error
        self._transport.abort()
        self._writable.set()
        self._wake()

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        ends_so = b"content-length" not in self.headers and b"transfer-encoding" not in self.headers
        if exc is None and self._has_head and not self._complete and ends_so:
            self._complete = True
        if self._error is None:
            self._error = LineError(f"closed{f': {exc}' if exc else ''}")
        self._writable.set()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._complete:  # it would be taken as the answer to the next request
            self.fail(LineError("more came than the answer"))
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except self._parse_errors as e:
            self.fail(LineError(f"no HTTP: {e}"))
            return
        if not self._has_head and self._head_bytes > _LARGEST_HEAD:
            self.fail(LineError(f"the head of an answer is larger than {_LARGEST_HEAD} bytes"))
            return
        if self._waiting_bytes > _MOST_WAITING and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        if not self._gathers or self._complete:
            self._wake()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; called by the parser."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """See the head as complete, unless it only says that the answer will come; called by the parser."""
        if self._complete:  # a second answer in one piece with the first
            self._keeps = False
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            return
        self.status, self._has_head = status, True
        self._keeps = self._parser.should_keep_alive()
        size = self.headers.get(b"content-length", b"")
        self._gathers = size.isdigit() and len(size) < 8 and int(size) <= _GATHERED_BYTES

    def on_body(self, body: bytes) -> None:
        """Keep a piece; called by the parser."""
        if self._complete:
            return
        self._pieces.append(body)
        self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        """End the answer; called by the parser."""
        if self._has_head:
            self._complete = True

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Lines:
    """Connections to one server; those that are not in use are kept. For one event loop."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        """Connect to nobody yet.

        Args:
            url: Of the server.
            tls: Settings, where the URL has TLS.

        Raises:
            MissingExtraError: The extra ``gateway`` is not installed.
        """
        with needs_extra("a gateway with an upstream", "gateway"):
            import httptools
        assert httptools
        parts = urlsplit(url)
        assert parts.hostname is not None
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        self._tls = tls if secure else None
        self._idle: list[Line] = []
        #: What requests say in ``Host``.
        self.authority = parts.netloc.rpartition("@")[2]

    def idle(self) -> Line | None:
        """Return a connection that was used before; None where there is none."""
        while self._idle:
            line = self._idle.pop()
            if line.is_open:
                return line
        return None

    async def connect(self) -> Line:
        """Return a new connection.

        Raises:
            OSError: The server cannot be reached.
        """
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(Line, self._host, self._port, ssl=self._tls)
        return line

    def give_back(self, line: Line) -> None:
        """Keep a connection for the next request, or close it where its answer has not ended."""
        if line.is_reusable and len(self._idle) < _MOST_IDLE:
            self._idle.append(line)
        elif line.is_open:
            line.fail(LineError("not needed any more"))

    def discard(self, connecting: asyncio.Future[Line]) -> None:
        """Close a connection that nobody wants any more, as soon as it is made."""
        if not connecting.cancelled() and connecting.exception() is None:
            self.give_back(connecting.result())

    async def close(self) -> None:
        """Close those that are idle."""
        for line in self._idle:
            line.fail(LineError("closed"))
        self._idle.clear()
        await asyncio.sleep(0)  # they close in the next turn of the loop
