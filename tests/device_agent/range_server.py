"""A web server of one file, over real sockets, that answers right unless it is told how to lie."""

from __future__ import annotations

import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """A request: what was asked for, its headers, and which one it was, from 1."""

    path: str
    headers: Mapping[str, str]
    number: int
    content: bytes
    send: Callable[[bytes], None]
    first: int = 0
    stop: int = 0

    def __post_init__(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        assert match is not None, self.headers
        self.first, self.stop = int(match[1]), min(int(match[2]) + 1, len(self.content))

    @property
    def part(self) -> bytes:
        """The bytes that were asked for."""
        return self.content[self.first : self.stop]

    @property
    def range(self) -> str:
        """The right Content-Range."""
        return f"bytes {self.first}-{self.stop - 1}/{len(self.content)}"

    def head(self, status: str = "206 Partial Content", **headers: object) -> None:
        """Send the head of an answer."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1"))

    def answer(self, body: bytes | None = None, **headers: object) -> None:
        """Send a right answer, with another body or other headers."""
        body = self.part if body is None else body
        right = {"Content_Range": self.range, "Content_Length": self.stop - self.first}
        self.head("206 Partial Content", **{**right, **headers})
        self.send(body)


Behaviour = Callable[[Asked], None]


def honest(asked: Asked) -> None:
    """Answer right."""
    asked.answer()


@dataclass
class RangeServer:
    """A server that runs.

    Attributes:
        content: Of the file.
        behave: How it answers.
        asked: The requests so far.
        sent: Bytes sent so far, heads included.
    """

    content: bytes
    behave: Behaviour = honest
    port: int = 0
    scheme: str = "http"
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Of the file."""
        return f"{self.scheme}://localhost:{self.port}/file"


class _Handler(socketserver.StreamRequestHandler):
    server: Any

    def handle(self) -> None:
        state: RangeServer = self.server.state
        # What a client does that goes away early.
        with suppress(OSError, ssl.SSLError):
            line = self.rfile.readline(65536).decode("latin-1").split()
            if len(line) < 2:
                return
            headers = {}
            while (raw := self.rfile.readline(65536).strip()) != b"":
                name, _, value = raw.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            asked = Asked(line[1], headers, len(state.asked) + 1, state.content, self._send)
            state.asked.append(asked)
            state.behave(asked)

    def _send(self, data: bytes) -> None:
        state: RangeServer = self.server.state
        if state.over.is_set():
            raise ConnectionError("the test is over")
        self.connection.sendall(data)
        state.sent += len(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64
    state: RangeServer
    context: ssl.SSLContext | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


@contextmanager
def serving(
    content: bytes, behave: Behaviour = honest, *, context: ssl.SSLContext | None = None
) -> Iterator[RangeServer]:
    """Run a server until the block ends."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.context = context
        state = RangeServer(content, behave, server.server_address[1], "https" if context else "http")
        server.state = state
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.004}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.over.set()
            server.shutdown()
            thread.join()
