"""Artifacts that come over HTTP: a piece at a time, in as much memory as a piece needs."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from typing import Annotated, Any, BinaryIO, cast

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Header, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edgec.errors import EdgecError, FleetError
from edgec.fleet.api._limits import ApiLimits
from edgec.fleet.api._once import Once, as_reply, once_of, to_response
from edgec.fleet.api._problems import ApiError
from edgec.fleet.service import Fleet
from edgec.fleet.store._tokens import Token
from edgec.fleet.views import ArtifactDetail

# The one path whose bodies are large.
UPLOADS = "/api/v1/artifacts"
# Who sends nothing for so long gives up the place to another upload.
_PATIENCE_S = 60.0
ContentDigest = Annotated[
    str | None,
    Header(
        alias="Content-Digest",
        max_length=200,
        description="``sha-256=:BASE64:`` of the body (RFC 9530); needed where there is an Idempotency-Key.",
    ),
]


class _Body(io.RawIOBase):
    """The body of a request as a file, for another thread than the one that receives it."""

    def __init__(self, pieces: AsyncIterator[bytes], wanted: bytes | None) -> None:
        self._pieces, self._wanted = pieces, wanted
        self._held = memoryview(b"")
        self._digest, self._ended = sha256(), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and not self._ended:
            self._next()
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _next(self) -> None:
        try:
            piece = anyio.from_thread.run(_piece, self._pieces)
        except ClientDisconnect as e:
            raise FleetError("the upload ended before its end; send it again", "invalid") from e
        self._digest.update(piece)
        self._held = memoryview(piece)
        self._ended = not piece
        if self._ended and self._wanted not in (None, self._digest.digest()):
            raise FleetError("the body is not what Content-Digest says; send it again", "invalid")


async def receive_artifact(
    request: Request,
    fleet: Fleet,
    limits: ApiLimits,
    who: Token,
    hardware: Sequence[str],
    override: str | None,
    *,
    digest: str | None,
    key: str | None,
) -> Response:
    """Take the artifact that is the body of a request into the registry; see `Registry.upload`.

    Raises:
        ApiError: The body is too large, or what should tell its digest does not.
        EdgecError: It cannot be taken in.
    """
    wanted = _digest_of(digest)
    if key is not None and wanted is None:
        raise ApiError(
            422,
            "invalid",
            "with an Idempotency-Key, an upload must say its Content-Digest",
            next_step="send both",
        )
    once = once_of(request, fleet, key, wanted or b"")
    body = _Body(aiter(request.stream()), wanted)
    limiter: CapacityLimiter = request.app.state.uploads
    # A thread that the client makes wait must not be one that others wait for.
    return await anyio.to_thread.run_sync(
        lambda: _take(fleet, limits, once, who, hardware, override, body), limiter=limiter
    )


def _take(
    fleet: Fleet,
    limits: ApiLimits,
    once: Once,
    who: Token,
    hardware: Sequence[str],
    override: str | None,
    body: _Body,
) -> Response:
    kept = once.begun()
    if kept is not None:
        _drain(body, limits.artifact_bytes)
        return to_response(kept)
    try:
        record = fleet.registry.upload(
            cast(BinaryIO, io.BufferedReader(body, 2**20)),
            now=fleet.clock(),
            actor=who.name,
            hardware_names=hardware,
            override=override,
            max_bytes=limits.artifact_bytes,
        )
    except (EdgecError, HTTPException):
        once.forget()
        raise
    reply = as_reply(ArtifactDetail.model_validate(record), 201)
    # The same upload again does nothing and has the same reply: nothing is lost between the two.
    once.ended(reply)
    fleet.wake()
    return to_response(reply)


def _drain(body: _Body, most: int) -> None:
    """Read what nobody needs, so that the client comes to hear the reply."""
    read: Callable[[int], bytes | None] = body.read
    while most > 0 and (piece := read(2**20)):
        most -= len(piece)


async def _piece(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the next piece; an empty one at the end."""
    with anyio.move_on_after(_PATIENCE_S):
        return await anext(pieces, b"")
    raise FleetError(f"nothing came for {_PATIENCE_S:g} s; send the upload again", "invalid")


def _digest_of(header: str | None) -> bytes | None:
    if header is None:
        return None
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                found = base64.b64decode(value[1:-1], validate=True)
            except binascii.Error:
                found = b""
            if len(found) == 32:
                return found
    raise ApiError(422, "invalid", f"expected Content-Digest: sha-256=:BASE64:, got {header!r}")
