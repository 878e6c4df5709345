"""Answers as a whole: sent, caught, made of errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from edgec.errors import RequestError
from edgec.serving import App, BusyError, Receive, Send

Headers: TypeAlias = "list[tuple[bytes, bytes]]"
Reply: TypeAlias = "tuple[int, Headers, bytes]"


async def reply(send: Send, answer: Reply) -> None:
    """Send an answer."""
    status, headers, body = answer
    headers = [field for field in headers if field[0] != b"content-length"]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refusal(error: RequestError) -> Reply:
    """Return an error as an answer."""
    headers: Headers = [(b"content-type", b"application/json")]
    if isinstance(error, BusyError):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (401, 413, 429):
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    return error.status, headers, json.dumps({"error": str(error)}).encode()


async def captured(app: App, scope: Mapping[str, Any], receive: Receive) -> Reply:
    """Return what an application answers, uncompressed."""
    status, headers, parts = 503, [], []

    async def keep(message: dict[str, Any]) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        else:
            parts.append(message.get("body", b""))

    plain = [field for field in scope["headers"] if field[0] != b"accept-encoding"]
    await app({**scope, "headers": plain}, receive, keep)
    return status, headers, b"".join(parts)
