"""Connections on which nothing comes are closed."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A request has so long to say what it asks; more than a slow line takes for a few hundred bytes.
HEAD_S = 30.0
# Its body may take any time as long as something comes; an upload that stalls is answered before.
SILENCE_S = 90.0


class PatientProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """HTTP of uvicorn that ends connections whose client says nothing, or never comes to an end of its head.

    uvicorn itself waits for a first request for ever.

    Attributes:
        head_s: How long the head of a request may take, the pause before it included.
        silence_s: How long nothing of a body may come.
    """

    head_s = HEAD_S
    silence_s = SILENCE_S

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._since: float = self.loop.time()
        self._heard = self._since
        self._next = self.loop.call_later(self.head_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._next.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._heard = self.loop.time()
        if not self.transport.is_closing():
            super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Answer without an upgrade and say nothing: uvicorn would fill the log on behalf of anybody."""

    def _look(self) -> None:
        left = self._left_s(self.loop.time())
        if left <= 0:
            self.transport.close()
        else:
            self._next = self.loop.call_later(left, self._look)

    def _left_s(self, now: float) -> float:
        """Return how long the client may still take."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return float(self._since + self.head_s - now)
        # Where the server answers, or has not asked for the body yet, the client may only wait.
        if not cycle.more_body or cycle.waiting_for_100_continue or self.flow.read_paused:
            return self.head_s
        return float(self._heard + self.silence_s - now)
