"""Requests passed on to another server of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from edgec.errors import MissingExtraError, RequestError, ServingError
from edgec.gateway._counters import Counters
from edgec.gateway._options import GatewayOptions
from edgec.gateway._replies import Reply
from edgec.runtime.fallback import Breaker
from edgec.serving import DEADLINE, BusyError, ClientGoneError, Receive, Send, read_terms

T = TypeVar("T")
# Bodies up to this size are kept, so that a request whose connection breaks can be sent again.
_KEPT_BYTES = 2**20
_PIECE = 2**18
# A body above the limit is read on and thrown away up to this multiple of it, so that the client, which is
# still sending, gets to read the answer.
_PATIENCE = 2
_HEALTH_EVERY_S = 5.0
_CONNECT_S = 5.0
# A request that is given up in less says nothing of the upstream.
_FAIR_S = 1.0
_UP = (
    b"content-type", b"content-encoding", b"inference-header-content-length", b"edgec-model-digest",
    b"edgec-source-digest", b"traceparent", b"tracestate",
)  # fmt: skip
_DOWN = (
    "content-type", "content-encoding", "inference-header-content-length", "edgec-model-digest",
    "edgec-source-digest", "retry-after",
)  # fmt: skip


class Upstream:
    """A server behind this one. For one event loop."""

    def __init__(self, options: GatewayOptions) -> None:
        """Connect to nobody yet.

        Raises:
            MissingExtraError: The extra ``gateway`` is not installed.
            ServingError: The authorities to trust cannot be read.
        """
        try:
            import aiohttp
            import yarl
        except ModuleNotFoundError as e:
            raise MissingExtraError("a gateway with an upstream", e.name, "gateway") from e
        self._aiohttp, self._yarl = aiohttp, yarl
        assert options.upstream is not None
        self._url = options.upstream.rstrip("/")
        self._options = options
        self._headers = {"Accept-Encoding": "identity"}
        if options.upstream_key:
            self._headers["Authorization"] = f"Bearer {options.upstream_key}"
        try:
            self._tls = ssl.create_default_context(cafile=options.upstream_ca)
        except OSError as e:  # ssl.SSLError is one
            raise ServingError(f"cannot use the authorities in {options.upstream_ca}: {e}") from e
        self._breaker = Breaker()
        self._counters = Counters()
        self._in_flight = 0
        self.is_up = False
        self._client: Any = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, counters: Counters) -> None:
        """Ask whether it is ready, now and then every few seconds."""
        self._counters = counters
        self._client = self._aiohttp.ClientSession(
            connector=self._aiohttp.TCPConnector(limit=0, ssl=self._tls),
            timeout=self._aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            cookie_jar=self._aiohttp.DummyCookieJar(),
        )
        await self._look()
        self._watching = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        """Close its connections."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._client.close()

    async def forward(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> Reply | None:
        """Pass on a request; the answer is sent piece by piece.

        Returns:
            None where it was sent.

        Raises:
            RequestError: It is malformed or too large; or the upstream cannot answer, or not in time: 503.
            ClientGoneError: The client went away.
        """
        headers = dict(scope["headers"])
        if scope["method"] not in ("GET", "POST"):
            raise RequestError(f"expected GET or POST, got {scope['method']}", status=405)
        deadline = read_terms(headers).deadline
        until = time.monotonic() + self._options.upstream_timeout_s if deadline is None else deadline
        body = _Body(receive, headers, self._options.server.max_body_bytes)
        self._admit(until)
        start, given_s = time.perf_counter(), until - time.monotonic()
        self._change(1)
        try:
            await body.begin()
            work = self._send_on(scope, headers, body, until, deadline is not None, send)
            await _unless_gone(asyncio.wait_for(work, max(0.0, until - time.monotonic())), body)
            return None
        except ClientGoneError:
            self._counters.add("upstream_abandoned_total")
            raise
        except asyncio.TimeoutError as e:
            self._counters.add("upstream_late_total")
            if given_s >= _FAIR_S:
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

    async def _send_on(
        self,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        body: _Body,
        until: float,
        says_deadline: bool,
        send: Send,
    ) -> None:
        self._counters.add("upstream_requests_total")
        response = await self._ask(scope, headers, body, until, says_deadline)
        try:
            if response.status >= 500:
                await self._refuse(response)
            self._breaker.succeeded()
            await self._pass_down(response, body, send)
        except self._aiohttp.ClientError as e:
            self._fail()
            if body.is_answered:  # in part: the client's connection ends
                raise ClientGoneError from e
            raise BusyError("the upstream's answer was cut off") from e
        finally:
            response.release()

    async def _ask(
        self,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        body: _Body,
        until: float,
        says_deadline: bool,
    ) -> Any:
        """Return the response, once its head is there; a broken connection is tried once more."""
        sent = {**self._headers, **{k.decode(): headers[k].decode("latin-1") for k in _UP if k in headers}}
        query = scope["query_string"].decode("latin-1")
        url = self._url + scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        for last in (False, True):
            if says_deadline:
                sent[DEADLINE.decode()] = str(max(1, int((until - time.monotonic()) * 1e3)))
            try:
                return await self._client.request(
                    scope["method"],
                    self._yarl.URL(url, encoded=True),
                    data=body.data(),
                    headers=sent,
                    allow_redirects=False,
                )
            except self._aiohttp.ClientError as e:
                if body.error is not None:
                    raise body.error from e
                if last or not body.is_kept:
                    self._fail()
                    raise BusyError(f"the upstream cannot be reached: {type(e).__name__}") from e
        raise AssertionError("two tries end in an answer or an error")

    async def _refuse(self, response: Any) -> None:
        """Raise BusyError: whatever 5xx it was, for a device it means to ask again later."""
        said = (await response.content.read(1000)).decode(errors="replace")
        after = response.headers.get("retry-after", "")
        seconds = float(after) if after.isascii() and after.isdigit() and len(after) < 5 else 1.0
        if response.status == 503:
            self._breaker.hold(0.0)
        else:
            self._fail()
        raise BusyError(
            f"the upstream answers with status {response.status}: {said[:300]}", retry_after_s=seconds
        )

    async def _pass_down(self, response: Any, body: _Body, send: Send) -> None:
        headers = [
            (name.encode(), response.headers[name].encode("latin-1"))
            for name in _DOWN
            if name in response.headers
        ]
        if response.status >= 400 and "json" not in response.headers.get("content-type", ""):
            said = (await response.content.read(1000)).decode(errors="replace")
            raise RequestError(f"the upstream answers: {said[:300]}", status=response.status)
        size = response.headers.get("content-length")
        if size is not None:
            headers.append((b"content-length", size.encode()))
        body.is_answered = True
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for piece in response.content.iter_chunked(_PIECE):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

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
        timeout = self._aiohttp.ClientTimeout(total=_CONNECT_S)
        try:
            async with self._client.get(
                f"{self._url}/v2/health/ready", headers=self._headers, timeout=timeout
            ) as response:
                self.is_up = response.status == 200
        except (self._aiohttp.ClientError, asyncio.TimeoutError):
            self.is_up = False
        self._counters.set("upstream_up", self.is_up)


class _Body:
    """The body of a request: kept where it is small, else passed on as it comes."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> None:
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > _PATIENCE * limit):
            raise _too_large(limit)
        size = int(declared) if declared.isdigit() else None
        self._is_too_large = size is not None and size > limit
        self.is_kept = size is not None and size <= _KEPT_BYTES
        self.is_answered = False
        self.error: RequestError | ClientGoneError | None = None
        self._is_empty = size == 0 or (size is None and b"transfer-encoding" not in headers)
        self._receive, self._limit = receive, limit
        self._kept = b""
        self._ended = asyncio.Event()

    async def begin(self) -> None:
        """Read it, where it is to be kept."""
        if self._is_too_large:
            while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                pass
            raise _too_large(self._limit)
        if self._is_empty:
            self.is_kept = True
            self._ended.set()
        elif self.is_kept:
            self._kept = b"".join([piece async for piece in self._pieces()])

    def data(self) -> Any:
        """Return what to send."""
        if self.is_kept:
            return self._kept or None
        return self._pieces()

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
                self.error = ClientGoneError()
                raise self.error
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > self._limit:
                self.error = _too_large(self._limit)
                raise self.error
            if piece:
                yield piece
        self._ended.set()


async def _unless_gone(work: Coroutine[Any, Any, T], body: _Body) -> T:
    """Return what `work` gives; it is cancelled when the client goes away.

    Raises:
        ClientGoneError: It did.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(body.gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body is larger than {limit} bytes", status=413)
