"""A bad network between a client and a broker: it can be cut, and it can go silent."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes on to a port of this machine, for as long as it is told to.

    Attributes:
        port: To connect to.
        connections: That were accepted so far.
    """

    def __init__(self, target: int) -> None:
        """Start to listen."""
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent = self._refusing = self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """End every connection without a word of MQTT."""
        for pair in list(self._pairs):
            self._end(pair)

    def silence(self, silent: bool = True) -> None:
        """Keep connections open, and pass nothing on."""
        self._silent = silent

    def refuse(self, refusing: bool = True) -> None:
        """End new connections at once."""
        self._refusing = refusing

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
        self.cut()
        self._server.close()

    def _run(self) -> None:
        while not self._closed:
            pairs = [] if self._silent else list(self._pairs)
            ends = {end: other for a, b in pairs for end, other in ((a, b), (b, a)) if end.fileno() >= 0}
            try:
                readable, _, _ = select.select([self._server, *ends], [], [], 0.02)
            except (ValueError, OSError):
                continue
            for end in readable:
                if end is self._server:
                    self._accept()
                else:
                    self._pass_on(end, ends[end])

    def _accept(self) -> None:
        client, _ = self._server.accept()
        if self._refusing:
            client.close()
            return
        self.connections += 1
        try:
            self._pairs.append((client, socket.create_connection(("127.0.0.1", self._target))))
        except OSError:
            client.close()

    def _pass_on(self, end: socket.socket, other: socket.socket) -> None:
        try:
            data = end.recv(65_536)
            if data:
                return other.sendall(data)
        except OSError:
            pass
        for pair in list(self._pairs):
            if end in pair:
                self._end(pair)
        return None

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with suppress(ValueError):
            self._pairs.remove(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
