"""Files for devices that reach nothing but the broker: asked for and sent in pieces."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edgec.errors import LinkError, ProtocolError
from edgec.protocol._link import MqttLink
from edgec.protocol._settings import Inbound, Outgoing, Subscription
from edgec.protocol._telemetry import Chunk, ChunkRequest
from edgec.protocol._topics import REQUEST, Topics

_log = logging.getLogger(__name__)
CHUNK_SERVICE = "chunk"
_EXPIRY_S = 60


class ChunkServer:
    """Answers requests for pieces of the files in a repository's ``targets/``.

    The link must subscribe to `ChunkServer.subscriptions`. A device may ask for every file there: what it
    installs is what is signed for it.
    """

    def __init__(self, link: MqttLink, topics: Topics, directory: Path) -> None:
        """Serve a repository.

        Args:
            link: Started; of an identity that may write to devices and read their requests.
            topics: Of the tenant.
            directory: Of the repository, as `edgec.trust.ImageRepository` has it.
        """
        self._link, self._topics = link, topics
        self._root = Path(os.path.realpath(directory)) / "targets"
        self.sent_bytes = 0

    @staticmethod
    def subscriptions(topics: Topics) -> tuple[Subscription, ...]:
        """Return what the link must subscribe to."""
        return tuple(Subscription(filter=f) for f in topics.for_fleet() if f"/up/{REQUEST}/" in f)

    def take(self, inbound: Inbound) -> bool:
        """Answer a message if it asks for a piece of a file; return whether it does."""
        try:
            address = self._topics.parse(inbound.topic)
            if address is None or (address.kind, address.name) != (REQUEST, CHUNK_SERVICE):
                return False
            request = ChunkRequest.from_bytes(inbound.payload)
        except ProtocolError as e:
            _log.warning("%s sends what is no request: %s", inbound.topic, e)
            return False
        chunk = self.answer(request)
        message = Outgoing(
            topic=self._topics.response(address.device),
            payload=chunk.to_bytes(),
            expiry_s=_EXPIRY_S,
            content_type="application/cbor",
            correlation=request.id.encode(),
        )
        try:
            self._link.publish(message)
        except LinkError as e:
            # It asks again.
            _log.warning("a chunk for %s is not sent: %s", address.device, e)
        else:
            self.sent_bytes += len(chunk.data)
        return True

    def answer(self, request: ChunkRequest) -> Chunk:
        """Return the piece that is asked for, or why there is none."""
        try:
            with open(self._place(request), "rb") as file:
                total = os.fstat(file.fileno()).st_size
                if request.offset >= max(total, 1):
                    return Chunk(id=request.id, offset=request.offset, total=0, error="range")
                file.seek(request.offset)
                data = file.read(request.length)
        except OSError:
            return Chunk(id=request.id, offset=request.offset, total=0, error="not_found")
        return Chunk(id=request.id, offset=request.offset, total=total, data=data)

    def _place(self, request: ChunkRequest) -> Path:
        """Return the file that a request means, by its place in the repository or its path as a target."""
        folder, _, name = request.path.removeprefix("targets/").rpartition("/")
        prefix = f"{request.sha256}."
        place = self._root / folder / (name if name.startswith(prefix) else prefix + name)
        real = Path(os.path.realpath(place))
        if not real.is_relative_to(self._root) or not real.is_file():
            raise FileNotFoundError(request.path)
        return real
