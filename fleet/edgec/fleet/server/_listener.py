"""A listening socket that gives one address only so many connections."""

from __future__ import annotations

import socket
import weakref
from collections import Counter
from contextlib import suppress
from typing import Any

from edgec.errors import FleetError
from edgec.errors.addresses import cannot_listen

# Connections of one address at once: a network behind one address has fewer, whose devices ask now and then.
PER_ADDRESS = 256
# A proxy on this machine speaks for everybody, and has limits of its own.
_PROXIES = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class Listener(socket.socket):
    """Counts connections from the moment they are accepted, so that those that never finish TLS count, too.

    asyncio's own event loop calls `accept` of it, and closes what that returns.

    Attributes:
        tls: Whether connections begin with a handshake: one too many then hears no 503, it only ends.
    """

    def __init__(self, host: str, port: int, per_address: int = PER_ADDRESS) -> None:
        """Listen.

        Args:
            host: Address of this machine.
            port: 0 for any that is free.
            per_address: How many connections an address may have at once; 0 for any number.

        Raises:
            FleetError: The address is taken, or is none of this machine (``reason`` ``address``).
        """
        super().__init__(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.tls = False
        self._per_address = per_address
        self._open: Counter[str] = Counter()
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it, and asyncio sets it only where a socket was made for IPPROTO_TCP by name:
        # without, each body waits for the acknowledgement of its head, 40 ms.
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.bind((host, port))
            self.listen(512)
        except OSError as e:
            self.close()
            raise FleetError(cannot_listen(host, port, e), "address") from e

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection and where it comes from.

        Raises:
            ConnectionAbortedError: It was one too many of its address, and is closed; there may be others.
        """
        accepted, address = super().accept()
        peer = str(address[0])
        if self._per_address and peer not in _PROXIES and self._open[peer] >= self._per_address:
            with accepted, suppress(OSError):
                accepted.setblocking(False)
                if not self.tls:
                    accepted.send(_FULL)
            raise ConnectionAbortedError(f"{peer} has {self._per_address} connections already")
        self._open[peer] += 1
        return _Counted(accepted, self._open, peer), address


class _Counted(socket.socket):
    """A connection that is counted until it is closed, or nobody has it any more."""

    def __init__(self, accepted: socket.socket, counts: Counter[str], peer: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        # Counts once, however often it is closed.
        self._uncount = weakref.finalize(self, _uncount, counts, peer)

    def close(self) -> None:
        super().close()
        self._uncount()


def _uncount(counts: Counter[str], peer: str) -> None:
    counts[peer] -= 1
    if counts[peer] <= 0:
        del counts[peer]
