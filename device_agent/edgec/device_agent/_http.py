"""Ranges of a file from a web server that may be broken, or lie."""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from edgec.device_agent._line import Failure, Line
from edgec.device_agent._sources import Reader
from edgec.protocol import client_context

_MOST_REDIRECTS = 5
_SLICE_S = 0.25
_PIECE = 65536
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_REDIRECTS = (301, 302, 303, 307, 308)
_LATER = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524)


class HttpSource:
    """A file on a web server.

    Redirects are followed, at most five, never from HTTPS to HTTP. Answers that are compressed or chunked are
    refused: their length is not known before they end.

    Args:
        url: ``https://...``
        context: For TLS, with a client certificate where one is needed; None for the system's defaults.
        headers: Sent to the host of `url` only, a token for example.
        allow_http: Whether ``http://`` is allowed, in `url` and in redirects from there.
    """

    def __init__(
        self,
        url: str,
        *,
        context: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        allow_http: bool = False,
    ) -> None:
        self.name = url
        self._context, self._headers, self._allow_http = context, dict(headers or {}), allow_http
        problem = self._problem(urlsplit(url))
        if problem:
            raise ValueError(f"{url!r}: {problem}")

    def _problem(self, url: SplitResult) -> str | None:
        allowed = ("https", "http") if self._allow_http else ("https",)
        if url.scheme not in allowed:
            return f"expected {' or '.join(allowed)}, not {url.scheme[:20]!r}"
        try:
            missing = not url.hostname or url.port == 0
        except ValueError:
            missing = True
        return "it has no host, or no valid port" if missing or url.username is not None else None

    @contextmanager
    def open(self, first: int, stop: int, total: int, validator: str | None, line: Line) -> Iterator[Reader]:
        """Ask for a range, following redirects; see `Source`."""
        wanted = _Wanted(first, stop, total, validator)
        url = urlsplit(self.name)
        for _ in range(_MOST_REDIRECTS + 1):
            with self._connected(url, line) as wire:
                response = self._answer(url, wire, wanted)
                if response.status not in _REDIRECTS:
                    yield _reader(response, wanted, self.name)
                    return
                url = self._redirected(url, response)
        raise Failure(f"{self.name}: more than {_MOST_REDIRECTS} redirects", "gone", "redirects")

    def _redirected(self, url: SplitResult, response: http.client.HTTPResponse) -> SplitResult:
        try:
            to = urlsplit(urljoin(url.geturl(), response.headers.get("Location", "")))
        except ValueError as e:
            raise Failure(f"{self.name}: a redirect to no URL: {e}", "gone", "redirects") from e
        problem = self._problem(to)
        if problem is None and (url.scheme, to.scheme) == ("https", "http"):
            problem = "from HTTPS to HTTP"
        if problem or not response.headers.get("Location"):
            raise Failure(f"{self.name}: a redirect that is not followed: {problem}", "gone", "redirects")
        return to

    @contextmanager
    def _connected(self, url: SplitResult, line: Line) -> Iterator[_Wire]:
        line.request()
        line.check()
        sock: socket.socket | None = None
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            sock = socket.create_connection((url.hostname or "", port), timeout=line.limits.connect_s)
            if url.scheme == "https":
                sock = self._secured(sock, url.hostname or "", line)
            yield _Wire(sock, line)
        except http.client.RemoteDisconnected as e:
            raise Failure(f"{self.name}: the server closed the connection", "later", "link") from e
        except http.client.HTTPException as e:
            said = f"{type(e).__name__} {e}".strip()[:200]
            raise Failure(f"{self.name}: no answer in HTTP: {said}", "lie", "range") from e
        except (OSError, UnicodeError) as e:  # UnicodeError: a host name that IDNA refuses
            raise Failure(f"{self.name}: {e}", "later", "link") from e
        finally:
            if sock is not None:
                sock.close()

    def _secured(self, sock: socket.socket, host: str, line: Line) -> ssl.SSLSocket:
        context = self._context or client_context()
        try:
            secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            secured.settimeout(_SLICE_S)
            end = line.clock() + line.limits.connect_s
            while True:
                line.check()
                with suppress(TimeoutError):
                    secured.do_handshake()
                    return secured
                if line.clock() > end:
                    raise TimeoutError("the TLS handshake takes too long")
        except BaseException:
            secured.close()
            raise

    def _answer(self, url: SplitResult, wire: _Wire, wanted: _Wanted) -> http.client.HTTPResponse:
        home = urlsplit(self.name)
        own = (url.scheme, url.netloc) == (home.scheme, home.netloc)
        # HTTPConnection writes the request, HTTPResponse reads the answer, both over `wire`.
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        connection.sock = wire.face()
        path = url.path or "/"
        connection.putrequest("GET", f"{path}?{url.query}" if url.query else path, skip_accept_encoding=True)
        headers = {
            "Range": f"bytes={wanted.first}-{wanted.stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": "edgec",
            "Connection": "close",
            **(self._headers if own else {}),
        }
        if wanted.validator is not None and not wanted.validator.startswith("W/"):
            headers["If-Range"] = wanted.validator
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse()


@dataclass(frozen=True)
class _Wanted:
    first: int
    stop: int
    total: int
    validator: str | None


class _Wire:
    """A socket whose every read looks at the watchdog and is accounted for."""

    def __init__(self, sock: socket.socket, line: Line) -> None:
        self._sock, self._line = sock, line
        sock.settimeout(line.limits.connect_s)

    def face(self) -> Any:
        """Return what http.client needs of a socket."""
        return self

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self._sock.sendall(data)
        self._sock.settimeout(_SLICE_S)

    def makefile(self, mode: str, buffering: int = -1) -> io.BufferedReader:
        """Return a file to read the answer from."""
        del mode, buffering
        return io.BufferedReader(_Raw(self._sock, self._line), _PIECE)

    def close(self) -> None:
        """Do nothing: whoever opened the socket closes it, after the answer was read."""


class _Raw(io.RawIOBase):
    def __init__(self, sock: socket.socket, line: Line) -> None:
        super().__init__()
        self._sock, self._line = sock, line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._line.check()
            with suppress(TimeoutError):
                size = self._sock.recv_into(buffer)
                self._line.count(size)
                return size


class _HttpReader:
    def __init__(
        self, response: http.client.HTTPResponse, skip: int, length: int, validator: str | None, name: str
    ) -> None:
        self.validator = validator
        self._response, self._skip, self._left, self._name = response, skip, length, name

    def read(self, size: int) -> bytes:
        while self._skip:
            self._skip -= len(self._some(min(self._skip, _PIECE)))
        if not self._left:
            return b""
        data = self._some(min(size, self._left))
        self._left -= len(data)
        return data

    def _some(self, size: int) -> bytes:
        data = self._response.read1(size)
        if not data:
            raise Failure(f"{self._name}: the answer ends early", "later", "link")
        return data


def _reader(response: http.client.HTTPResponse, wanted: _Wanted, name: str) -> _HttpReader:
    """Return a reader of an answer whose head is as it must be.

    Raises:
        Failure: It is not.
    """
    if response.status not in (200, 206):
        raise _refusal(response, name)
    headers = response.headers
    for header in ("Content-Range", "Content-Length", "ETag"):
        if len(headers.get_all(header, [])) > 1:
            raise _lie(name, f"more than one {header}")
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity" or headers.get("Transfer-Encoding") is not None:
        raise _lie(name, f"an answer in a coding that nobody asked for: {coding[:40]}")
    validator = headers.get("ETag")
    if validator is not None and not 0 < len(validator) <= 200:
        raise _lie(name, "an ETag of a strange length")
    if response.status == 200:
        return _whole(headers.get("Content-Length"), response, wanted, validator, name)
    start, end = _content_range(headers.get("Content-Range"), wanted, name)
    said = headers.get("Content-Length")
    if said is not None and said != str(end + 1 - start):
        raise _lie(name, f"{said[:20]} bytes for the range {start} to {end}")
    return _HttpReader(response, 0, end + 1 - start, validator, name)


def _whole(
    said: str | None,
    response: http.client.HTTPResponse,
    wanted: _Wanted,
    validator: str | None,
    name: str,
) -> _HttpReader:
    """A server without ranges, or one whose file has changed, sends all of it."""
    if said != str(wanted.total):
        raise Failure(
            f"{name}: the file has {(said or 'an unknown number of')[:20]} bytes, not {wanted.total}",
            "lie",
            "length",
        )
    return _HttpReader(response, wanted.first, wanted.stop - wanted.first, validator, name)


def _content_range(said: str | None, wanted: _Wanted, name: str) -> tuple[int, int]:
    match = _RANGE.fullmatch((said or "").strip())
    if match is None:
        raise _lie(name, f"Content-Range {(said or 'missing')[:60]!r}")
    start, end = int(match[1]), int(match[2])
    if match[3] not in ("*", str(wanted.total)):
        raise Failure(f"{name}: the file has {match[3]} bytes, not {wanted.total}", "lie", "length")
    if start != wanted.first or not start <= end < wanted.stop:
        raise _lie(name, f"bytes {start} to {end} where {wanted.first} to {wanted.stop - 1} were asked for")
    return start, end


def _lie(name: str, what: str) -> Failure:
    return Failure(f"{name}: the server answers with {what}", "lie", "range")


def _refusal(response: http.client.HTTPResponse, name: str) -> Failure:
    status = response.status
    said = f"{name}: the server answers {status} {response.reason[:60]}"
    if status in (404, 410):
        return Failure(said, "gone", "not_found")
    if status in _LATER:
        return Failure(said, "later", "unavailable", _retry_after(response))
    if status == 416:
        return Failure(f"{said}: its file is another", "lie", "length")
    if 200 <= status < 400:
        return Failure(said, "lie", "range")
    return Failure(said, "gone", "refused")


def _retry_after(response: http.client.HTTPResponse) -> float:
    """Return how many seconds a server asks to wait; 0 where it says nothing that makes sense.

    A date is compared with the server's own, for a device's clock may be anything.
    """
    said = response.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit() and len(said) < 10:
        return float(said)
    try:
        until, now = (parsedate_to_datetime(text) for text in (said, response.headers.get("Date", "")))
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError, IndexError):  # what the parser raises, and naive against aware dates
        return 0.0
