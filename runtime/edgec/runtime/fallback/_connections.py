"""HTTP/1.1 to one server: connections that are kept, and requests that can be given up at any moment."""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection
from threading import Lock
from typing import NamedTuple
from urllib.parse import urlsplit

_IDLE_S = 30.0
_LONGEST_PAUSE_S = 0.02


class Response(NamedTuple):
    """What a server answered; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TooLargeError(Exception):
    """A response is larger than what is read of one."""


class Attempt:
    """A request under way. Its owner may give it up from another thread: whatever it waits for then ends."""

    def __init__(self, deadline: float) -> None:
        """Begin.

        Args:
            deadline: On the clock `time.monotonic`.
        """
        self.deadline = deadline
        self._lock = Lock()
        self._handle: socket.socket | None = None
        self._given_up = False

    @property
    def left_s(self) -> float:
        """Time that is left.

        Raises:
            TimeoutError: None is.
        """
        left = self.deadline - time.monotonic()
        if left <= 0 or self._given_up:
            raise TimeoutError("the deadline has passed")
        return left

    def uses(self, handle: socket.socket | None) -> None:
        """Note the connection that it waits for."""
        with self._lock:
            self._handle = handle
            if self._given_up and handle is not None:
                _shut(handle)

    def give_up(self) -> None:
        """End it; nobody waits for it any more."""
        with self._lock:
            self._given_up = True
            if self._handle is not None:
                _shut(self._handle)


class _Connection:
    """One connection, plain or TLS.

    `handle` is a second name of its socket: shut down, it ends whatever another thread does with the
    connection, also inside a TLS handshake, and without touching the state of the TLS layer.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, attempt: Attempt) -> None:
        self.idle_since = 0.0
        raw = _connected(host, port, attempt)
        self.handle = raw.dup()
        self._http = HTTPConnection(host, port)
        self._http.auto_open = 0
        self._http.sock = raw
        attempt.uses(self.handle)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                secured = tls.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
                self._http.sock = secured
                secured.settimeout(attempt.left_s)
                secured.do_handshake()
        except BaseException:
            self.close()
            raise

    def exchange(
        self, path: str, headers: Mapping[str, str], body: bytes | None, attempt: Attempt, most: int
    ) -> tuple[Response, bool]:
        """Send a request; return the response, and whether the connection can be used again."""
        assert self._http.sock is not None
        self._http.sock.settimeout(attempt.left_s)
        self._http.request("GET" if body is None else "POST", path, body, dict(headers))
        response = self._http.getresponse()
        if response.length is not None and response.length > most:
            raise TooLargeError(f"the response has {response.length} bytes, at most {most} are read")
        data = response.read(most + 1)
        if len(data) > most:
            raise TooLargeError(f"the response has more than {most} bytes")
        if response.length:  # what read(n) does not tell: the server closed before the end
            raise ConnectionResetError("the response was cut off")
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, fields, data), response.isclosed() and not response.will_close

    def close(self) -> None:
        self._http.close()
        self.handle.close()


class Connections:
    """Connections to one server. Safe from several threads."""

    def __init__(self, url: str, tls: ssl.SSLContext | None, most_idle: int) -> None:
        """Connect to nobody yet.

        Args:
            url: ``http`` or ``https``, host, port and the path before ``/v2``.
            tls: Settings where it is https; None for the system's authorities.
            most_idle: Connections that are kept.
        """
        parts = urlsplit(url)
        assert parts.hostname
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self.prefix = parts.path.rstrip("/")
        self._tls = tls
        self._most_idle = most_idle
        self._lock = Lock()
        self._idle: list[_Connection] = []
        self._closed = False

    def ask(
        self, path: str, headers: Mapping[str, str], body: bytes | None, attempt: Attempt, most: int
    ) -> Response:
        """Send a request and return the response; once more where the connection fails.

        Args:
            path: After the prefix of the URL.
            headers: Besides those of HTTP itself.
            body: All of it; None for GET in place of POST.
            attempt: Its deadline, and how it is given up.
            most: Bytes of the response that are read.

        Raises:
            OSError: There is no connection, it broke, or the deadline has passed (TimeoutError).
            HTTPException: The server does not speak HTTP.
            TooLargeError: The response is too large.
        """
        reused = self._take()
        try:
            return self._exchange(reused, path, headers, body, attempt, most)
        except (TimeoutError, ssl.SSLCertVerificationError):
            raise
        except OSError:
            left = attempt.left_s
            if reused is None:
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, left / 4)))
            else:
                self._drop_idle()  # the server closed them all, as after a restart
        return self._exchange(None, path, headers, body, attempt, most)

    def close(self) -> None:
        """Close what is idle; requests under way end, and their connections with them."""
        with self._lock:
            self._closed = True
        self._drop_idle()

    def _exchange(
        self,
        connection: _Connection | None,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        attempt: Attempt,
        most: int,
    ) -> Response:
        if connection is None:
            connection = _Connection(self._host, self._port, self._context(), attempt)
        attempt.uses(connection.handle)
        try:
            response, reusable = connection.exchange(self.prefix + path, headers, body, attempt, most)
        except BaseException:
            attempt.uses(None)
            connection.close()
            raise
        attempt.uses(None)
        self._give_back(connection, reusable)
        return response

    def _context(self) -> ssl.SSLContext | None:
        if self._secure and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.hostname_checks_common_name = False
        return self._tls if self._secure else None

    def _take(self) -> _Connection | None:
        oldest = time.monotonic() - _IDLE_S
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.idle_since >= oldest:
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: _Connection, reusable: bool) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if reusable and not self._closed and len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _connected(host: str, port: int, attempt: Attempt) -> socket.socket:
    """Return a connected socket; all addresses of the host are tried in turn."""
    error: OSError = OSError(f"{host} has no address")
    for family, kind, number, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connecting = socket.socket(family, kind, number)
        try:
            attempt.uses(connecting)
            connecting.settimeout(attempt.left_s)
            connecting.connect(address)
            return connecting
        except OSError as e:
            attempt.uses(None)
            connecting.close()
            error = e
    raise error


def _shut(handle: socket.socket) -> None:
    with suppress(OSError):  # it is not connected, or was closed meanwhile
        handle.shutdown(socket.SHUT_RDWR)
