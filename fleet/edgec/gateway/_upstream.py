"""Requests passed on to another server of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from edgec.errors import RequestError, ServingError
from edgec.gateway._bodies import Body, Limits
from edgec.gateway._counters import Counters
from edgec.gateway._lines import Line, LineError, Lines
from edgec.gateway._options import GatewayOptions
from edgec.protocol import client_context
from edgec.runtime.fallback import Breaker
from edgec.serving import DEADLINE, BusyError, ClientGoneError, Receive, Send, read_terms

T = TypeVar("T")
_HEALTH_EVERY_S = 5.0
_CONNECT_S = 5.0
_MOST_SAID = 1000
# A request that is given up in less says nothing of the upstream.
_FAIR_S = 1.0
_UP = (
    b"content-type", b"content-encoding", b"inference-header-content-length", b"edgec-model-digest",
    b"edgec-source-digest", b"traceparent", b"tracestate",
)  # fmt: skip
_DOWN = (
    b"content-type", b"content-encoding", b"inference-header-content-length", b"edgec-model-digest",
    b"edgec-source-digest", b"retry-after", b"content-length",
)  # fmt: skip


class Upstream:
    """A server behind this one. For one event loop."""

    def __init__(self, options: GatewayOptions) -> None:
        """Connect to nobody yet.

        Raises:
            MissingExtraError: The extra ``gateway`` is not installed.
            ServingError: The authorities to trust cannot be read.
        """
        assert options.upstream is not None
        try:
            tls = client_context(cafile=options.upstream_ca)
        except OSError as e:  # ssl.SSLError is one
            raise ServingError(f"cannot use the authorities in {options.upstream_ca}: {e}") from e
        self._lines = Lines(options.upstream, tls)
        self._options = options
        self._base = urlsplit(options.upstream).path.rstrip("/").encode()
        self._always = b"Host: %b\r\nAccept-Encoding: identity\r\n" % self._lines.authority.encode()
        if options.upstream_key:
            self._always += b"Authorization: Bearer %b\r\n" % options.upstream_key.encode()
        self._breaker = Breaker()
        self._counters = Counters()
        self._in_flight = 0
        self.is_up = False
        self._watching: asyncio.Task[None] | None = None

    async def start(self, counters: Counters) -> None:
        """Ask whether it is ready, now and then every few seconds."""
        self._counters = counters
        await self._look()
        self._watching = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        """Close its connections."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._lines.close()

    async def forward(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass on a request; the answer is sent piece by piece.

        Raises:
            RequestError: It is malformed or too large; or the upstream cannot answer, or not in time: 503.
            ClientGoneError: The client went away.
        """
        headers = dict(scope["headers"])
        if scope["method"] not in ("GET", "POST"):
            raise RequestError(f"expected GET or POST, got {scope['method']}", status=405)
        deadline = read_terms(headers).deadline
        until = time.monotonic() + self._options.upstream_timeout_s if deadline is None else deadline
        body = Body(receive, headers, self._options.server.max_body_bytes)
        self._admit(until)
        start, given_s = time.perf_counter(), until - time.monotonic()
        self._change(1)
        try:
            with Limits(body, until):
                await body.begin()
                await self._pass(scope, headers, body, deadline, send)
        except ClientGoneError:
            self._counters.add("upstream_abandoned_total")
            raise
        except asyncio.TimeoutError as e:
            self._counters.add("upstream_late_total")
            if given_s >= _FAIR_S and body.has_ended:
                self._fail()
            if body.is_answered:  # in part: the client's connection ends
                raise ClientGoneError from e
            raise BusyError("the upstream did not answer in time") from e
        finally:
            self._breaker.release()
            self._change(-1)
            self._counters.add("upstream_seconds_total", time.perf_counter() - start)

    def _admit(self, until: float) -> None:
        """Raise BusyError where a request cannot be answered."""
        reason = ""
        if until <= time.monotonic():
            reason = "no time is left until the deadline"
        elif self._in_flight >= self._options.upstream_requests:
            reason = f"{self._in_flight} requests are with the upstream already"
        elif not self._breaker.allow():
            reason = "the upstream failed lately, and is left alone for a while"
        if reason:
            self._counters.add("upstream_refused_total")
            raise BusyError(reason)

    async def _pass(
        self,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        body: Body,
        deadline: float | None,
        send: Send,
    ) -> None:
        self._counters.add("upstream_requests_total")
        line = await self._ask(self._head(scope, headers, body), body, deadline)
        try:
            if line.status >= 500:
                await self._refuse(line)
            self._breaker.succeeded()
            await self._pass_down(line, body, send)
        except LineError as e:
            self._fail()
            if body.is_answered:  # in part: the client's connection ends
                raise ClientGoneError from e
            raise BusyError("the upstream's answer was cut off") from e
        finally:
            self._lines.give_back(line)

    def _head(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], body: Body) -> bytes:
        """Return the head of a request, without its deadline and its end."""
        query = scope["query_string"]
        lines = [
            b"%b %b%b%b HTTP/1.1\r\n%b"
            % (
                scope["method"].encode(),
                self._base,
                scope["raw_path"],
                b"?" + query if query else b"",
                self._always,
            )
        ]
        lines += [b"%b: %b\r\n" % (name, headers[name]) for name in _UP if name in headers]
        size = body.size
        if size is None:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif size or scope["method"] == "POST":
            lines.append(b"Content-Length: %d\r\n" % size)
        return b"".join(lines)

    async def _ask(self, head: bytes, body: Body, deadline: float | None) -> Line:
        """Return a connection with the head of its answer; one that breaks is tried once more."""
        for last in (False, True):
            line = None
            try:
                line = await self._connected(fresh=last)
                left = b""
                if deadline is not None:
                    left = b"%b: %d\r\n" % (DEADLINE, max(1, int((deadline - time.monotonic()) * 1e3)))
                await line.send(head + left + b"\r\n", body.data(), chunked=body.size is None)
                await line.head()
            except BaseException as e:
                if line is not None:
                    self._lines.give_back(line)
                if not isinstance(e, (LineError, OSError)) or isinstance(e, asyncio.TimeoutError):
                    raise
                if last or not body.is_kept:
                    self._fail()
                    raise BusyError(f"the upstream cannot be reached: {str(e)[:200]}") from e
            else:
                return line
        raise AssertionError("two tries end in an answer or an error")

    async def _connected(self, *, fresh: bool) -> Line:
        line = None if fresh else self._lines.idle()
        if line is not None:
            return line
        connecting = asyncio.ensure_future(self._lines.connect())
        try:
            return await _within(connecting, _CONNECT_S)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._lines.discard)
            raise

    async def _refuse(self, line: Line) -> None:
        """Raise BusyError: whatever 5xx it was, for a device it means to ask again later."""
        said = await _said(line)
        after = line.headers.get(b"retry-after", b"")
        seconds = float(after) if after.isdigit() and len(after) < 5 else 1.0
        if line.status == 503:
            self._breaker.hold(0.0)
        else:
            self._fail()
        raise BusyError(f"the upstream answers with status {line.status}: {said}", retry_after_s=seconds)

    async def _pass_down(self, line: Line, body: Body, send: Send) -> None:
        if line.status >= 400 and b"json" not in line.headers.get(b"content-type", b""):
            raise RequestError(f"the upstream answers: {await _said(line)}", status=line.status)
        headers = [(name, line.headers[name]) for name in _DOWN if name in line.headers]
        piece = await line.piece()
        body.is_answered = True
        await send({"type": "http.response.start", "status": line.status, "headers": headers})
        while not line.has_ended:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await line.piece()
        await send({"type": "http.response.body", "body": piece})

    def _fail(self) -> None:
        self._counters.add("upstream_failures_total")
        self._breaker.failed()

    def _change(self, by: int) -> None:
        self._in_flight += by
        self._counters.set("upstream_in_flight", self._in_flight)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        try:
            self.is_up = await _within(asyncio.ensure_future(self._is_ready()), _CONNECT_S)
        except (LineError, OSError):
            self.is_up = False
        self._counters.set("upstream_up", self.is_up)

    async def _is_ready(self) -> bool:
        line = await self._lines.connect()
        try:
            head = b"GET %b/v2/health/ready HTTP/1.1\r\n%b\r\n" % (self._base, self._always)
            await line.send(head, b"", chunked=False)
            await line.head()
            await _said(line)
            return line.status == 200
        finally:
            self._lines.give_back(line)


async def _within(work: asyncio.Future[T], seconds: float) -> T:
    """Return what comes of some work in time, else cancel it.

    Not ``asyncio.wait_for``, which before Python 3.12 forgets a cancellation that comes at the same moment.

    Raises:
        LineError: It took longer.
    """
    try:
        await asyncio.wait({work}, timeout=seconds)
        if not work.done():
            raise LineError(f"nothing within {seconds:g} s")
        return work.result()
    finally:
        work.cancel()


async def _said(line: Line) -> str:
    """Return the begin of the text of an answer."""
    text = b""
    while not line.has_ended and len(text) < _MOST_SAID:
        text += await line.piece()
    return text[:300].decode(errors="replace")
