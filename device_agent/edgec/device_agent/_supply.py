"""Where files of the repository come from: its web servers, its copies on a disk, and the broker."""

from __future__ import annotations

import re
import secrets
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock

from edgec.device_agent._http import HttpSource
from edgec.device_agent._sources import ChunkSource, DirectorySource, Source
from edgec.errors import AgentError, LinkError, TransferError
from edgec.protocol import Chunk, ChunkRequest, client_context

_ANSWER_S = 30.0
_DIGEST = re.compile(r"(?:.*/)?([0-9a-f]{64})\.[^/]*")


def is_url(source: str) -> bool:
    """Whether a source is on a web server, and no directory."""
    return source.startswith(("https://", "http://"))


class ChunkRequests:
    """Asks for pieces of files over the broker, and gives answers to who asked. Safe from several threads.

    Args:
        send: Publishes a request; raises LinkError where that cannot be done.
    """

    def __init__(self, send: Callable[[ChunkRequest], None]) -> None:
        self._send = send
        self._lock = Lock()
        self._asked: dict[str, tuple[Event, list[Chunk]]] = {}

    def source(self, location: str) -> Source | None:
        """Return the broker as a source of a file; None where its name tells no digest."""
        found = _DIGEST.fullmatch(location)
        if found is None:
            return None
        digest = found[1]
        return ChunkSource(f"broker: {location}", lambda at, size: self._ask(location, digest, at, size))

    def answer(self, chunk: Chunk) -> None:
        """Take an answer in; nobody's is passed over."""
        with self._lock:
            asked = self._asked.get(chunk.id)
        if asked is not None:
            asked[1].append(chunk)
            asked[0].set()

    def _ask(self, location: str, digest: str, at: int, size: int) -> bytes:
        request = ChunkRequest(id=secrets.token_hex(12), path=location, sha256=digest, offset=at, length=size)
        done, chunks = Event(), list[Chunk]()
        with self._lock:
            self._asked[request.id] = (done, chunks)
        try:
            self._send(request)
            if not done.wait(_ANSWER_S):
                raise LinkError(f"nobody has answered within {_ANSWER_S:g} s")
        finally:
            with self._lock:
                self._asked.pop(request.id, None)
        chunk = chunks[0]
        if chunk.error is not None:
            reason = {"not_found": "not_found", "range": "range", "cancelled": "refused"}.get(
                chunk.error, "unavailable"
            )
            raise TransferError(f"the fleet gives no chunk: {chunk.error}", reason)
        if chunk.offset != at:
            raise TransferError(f"a chunk at {chunk.offset} came where {at} was asked for", "length")
        return chunk.data


def source_context(authority: Path | None) -> ssl.SSLContext | None:
    """Return who may vouch for sources: those of the system, and the ones in a file; None for the system's.

    Raises:
        AgentError: The file cannot be read, or holds no certificates.
    """
    if authority is None:
        return None
    context = client_context()
    try:
        context.load_verify_locations(cafile=str(authority))
    except OSError as e:
        raise AgentError(f"{authority} has no certificates that can be read: {e.strerror or e}") from e
    return context


def sources_of(
    location: str, bases: Sequence[str], *, allow_http: bool, context: ssl.SSLContext | None = None
) -> list[Source]:
    """Return the sources of a file, the best first.

    Args:
        location: Of the file in the repository.
        bases: URLs and directories where the repository is.
        allow_http: Whether ``http://`` is allowed.
        context: Of `source_context`.
    """
    found: list[Source] = []
    for base in bases:
        if not is_url(base):
            found.append(DirectorySource(Path(base), location))
            continue
        try:
            url = f"{base.rstrip('/')}/{location}"
            found.append(HttpSource(url, context=context, allow_http=allow_http))
        except ValueError:  # no URL of ours; others may be
            continue
    return found
