"""HTTP/1.1 as uvicorn has it on httptools, with the bounds that it leaves to a proxy in front of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

LARGEST_HEAD = 2**16
# Up to this size a body is handed on whole: each piece would be a turn of the loop, and a pause of reading.
_GATHERED_BYTES = 2**20


def bounded_protocol(receive_timeout_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, with bounds on the head of a request, and on the time it takes to arrive.

    uvicorn and httptools are imported here, not above, since only who serves has them.

    Args:
        receive_timeout_s: From the first byte of a request to its last, and of an idle new connection.
    """
    import httptools
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

    class BoundedProtocol(HttpToolsProtocol):  # type: ignore[misc,unused-ignore]
        """A connection; uvicorn names the arguments."""

        _head_bytes = 0
        _head_too_large = False
        _peer = ""
        _arriving: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._peer = _common_name(transport.get_extra_info("peercert"))
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._peer:
                scope: Any = self.scope  # a key of our own beside those of ASGI
                scope["edgec.peer"] = self._peer
            self._head_bytes = 0
            self._arm()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_body(self, body: bytes) -> None:
            if self.cycle.response_complete:
                return
            self.cycle.body += body
            if len(self.cycle.body) > _GATHERED_BYTES:
                self.flow.pause_reading()
                self.cycle.message_event.set()

        def on_message_complete(self) -> None:
            self._disarm()
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            status = 431 if self._head_too_large else 400
            error = f"the head of a request is at most {LARGEST_HEAD} bytes" if status == 431 else msg
            body = json.dumps({"error": error}).encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
            self.transport.close()

        def _count(self, size: int) -> None:
            self._head_bytes += size + 4
            if self._head_bytes > LARGEST_HEAD:
                self._head_too_large = True
                raise httptools.HttpParserError("head too large")

        def _arm(self) -> None:
            self._disarm()
            self._arriving = self.loop.call_later(receive_timeout_s, self.transport.close)

        def _disarm(self) -> None:
            if self._arriving is not None:
                self._arriving.cancel()
                self._arriving = None

    return BoundedProtocol


def _common_name(certificate: Any) -> str:
    """Return whom a verified certificate is of; empty where there is none."""
    subject = certificate.get("subject", ()) if certificate else ()
    names = [value for parts in subject for key, value in parts if key == "commonName"]
    return names[0] if len(names) == 1 else ""
