"""What the devices of a fleet run, and the files of it, over the fleet's REST API; standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact, atomic_write
from edgec.errors import FleetError
from edgec.protocol import client_context, fleet_address

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[!-~]{1,4096}")
_LARGEST_REPLY = 16 * 2**20
_LARGEST_ARTIFACT = 4 * 2**30
_PIECE = 2**20
_RUNNING = "/api/v1/running"


@dataclass(frozen=True)
class Seen:
    """What a fleet runs.

    Attributes:
        devices: How many devices run an artifact, try it or are told to have it, by its digest.
        quarantined: Digests of those that may not run anywhere.
    """

    devices: Mapping[str, int]
    quarantined: frozenset[str]


class FleetSource:
    """A fleet as a gateway sees it: it only reads. For one thread at a time."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: Path | None = None,
        models: Sequence[str] = (),
        timeout_s: float = 30.0,
    ) -> None:
        """Know a fleet; nothing is sent yet.

        Args:
            url: ``https://fleet.example:8443``.
            token: With the role viewer, or any other.
            ca: Who may vouch for the server, PEM; the system's authorities if None.
            models: Names of those to look at; all if empty.
            timeout_s: For each step of a request.

        Raises:
            FleetError: The URL, the token or the certificates are none, or the token would go unencrypted.
        """
        self._host, self._port, self._secure = _checked(url)
        if not _TOKEN.fullmatch(token):
            raise FleetError("expected a token of the fleet, as edgec fleet up has printed it", "invalid")
        self.url, self._token, self._timeout_s = url.rstrip("/"), token, timeout_s
        self._models = frozenset(models)
        self._tag: str | None = None
        self._seen: Seen | None = None
        try:
            self._tls = client_context(cafile=ca)
        except OSError as e:  # ssl.SSLError is one
            raise FleetError(f"{ca} has no certificates that can be read: {e}", "invalid") from e

    def look(self) -> Seen:
        """Return what devices run now; where nothing has changed, the fleet sends nothing.

        Raises:
            FleetError: The server refuses, cannot be reached, or is none.
        """
        known = {} if self._tag is None else {"If-None-Match": self._tag}
        with closing(self._connect()) as connection:
            reply = self._get(connection, _RUNNING, known)
            if reply.status == 304 and self._seen is not None:
                return self._seen
            data = self._read(reply, _LARGEST_REPLY + 1)
        if len(data) > _LARGEST_REPLY:
            raise FleetError(f"the fleet sent more than {_LARGEST_REPLY} bytes", "reply")
        self._seen, self._tag = _seen(data, self._models), reply.headers.get("ETag")
        return self._seen

    def fetch(self, digest: str, path: Path) -> None:
        """Write an artifact to a path, verified, whole or not at all.

        Raises:
            FleetError: The server refuses or cannot be reached, or what came is something else.
            ArtifactError: It is damaged all the same.
            OutputError: It cannot be written.
        """
        found, size = sha256(), 0
        with closing(self._connect()) as connection, atomic_write(path) as out:
            reply = self._get(connection, f"/api/v1/artifacts/{digest}/file")
            while piece := self._read(reply, _PIECE):
                size += len(piece)
                if size > _LARGEST_ARTIFACT:
                    raise FleetError(
                        f"the artifact {digest} is larger than {_LARGEST_ARTIFACT} bytes", "reply"
                    )
                found.update(piece)
                out.write(piece)
            if found.hexdigest() != digest:
                raise FleetError(f"expected the artifact {digest}, got {found.hexdigest()}", "reply")
        with Artifact.open(path) as opened:
            opened.verify()

    def _connect(self) -> HTTPConnection:
        if self._secure:
            return HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)
        return HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _get(
        self, connection: HTTPConnection, target: str, headers: Mapping[str, str] | None = None
    ) -> HTTPResponse:
        """Return an answer: 200, or 304 where `headers` ask for that."""
        try:
            sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
            connection.request("GET", target, headers=sent)
            reply = connection.getresponse()
        except (OSError, HTTPException) as e:
            raise self._unreachable(e) from e
        if reply.status != 200 and not (reply.status == 304 and headers):
            said = self._read(reply, 500).decode(errors="replace")
            reason = "denied" if reply.status in (401, 403) else "reply"
            said = f"{self.url} answers {target} with status {reply.status}: {said}"
            if reply.status == 404 and target == _RUNNING:
                said += "; a server older than this gateway does not know that: update the server first"
            raise FleetError(said, reason)
        return reply

    def _read(self, reply: HTTPResponse, size: int) -> bytes:
        try:
            return reply.read(size)
        except (OSError, HTTPException) as e:
            raise self._unreachable(e) from e

    def _unreachable(self, error: Exception) -> FleetError:
        said = f"{type(error).__name__}: {error}"[:200]
        return FleetError(f"the fleet at {self.url} cannot be reached: {said}", "unreachable")


def _checked(url: str) -> tuple[str, int, bool]:
    parts = fleet_address(url)
    secure = parts.scheme == "https"
    return str(parts.hostname), parts.port or (443 if secure else 80), secure


def _seen(data: bytes, models: frozenset[str]) -> Seen:
    """Return what an answer says."""
    try:
        items = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise _no_fleet() from e
    if not isinstance(items, list):
        raise _no_fleet()
    devices: dict[str, int] = {}
    quarantined = set()
    for item in items:
        if not isinstance(item, dict) or type(item.get("devices")) is not int:
            raise _no_fleet()
        digest, model = _text(item, "digest", _DIGEST), _text(item, "model")
        if item.get("quarantined") is not False:
            quarantined.add(digest)
        if not models or model in models:
            devices[digest] = item["devices"]
    return Seen(devices, frozenset(quarantined))


def _text(item: Mapping[str, Any], key: str, like: re.Pattern[str] | None = None) -> str:
    value = item.get(key)
    if not isinstance(value, str) or (like is not None and not like.fullmatch(value)):
        raise _no_fleet()
    return value


def _no_fleet() -> FleetError:
    return FleetError("the reply is none of a fleet; is it an edgec fleet?", "reply")
