"""Artifacts, releases and the quarantine."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from edgec.artifact import atomic_write
from edgec.errors import FleetError
from edgec.fleet.client._part import NOTHING, Part, at, wanted_of
from edgec.fleet.views import ArtifactDetail, QuarantinedView, QuarantineWanted, ReleaseDetail, ReleaseView

_PIECE = 2**20


class Releases(Part):
    """Artifacts, releases and the quarantine."""

    def upload(
        self,
        path: Path,
        *,
        hardware: Sequence[str] = (),
        override: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ArtifactDetail:
        """Upload an artifact.

        Args:
            path: Its file.
            hardware: Classes of hardware that it may run on; its target's if empty.
            override: Why it is to be taken although it did not pass.
            progress: Called with the bytes of each piece that was sent; begins anew where it is sent again.
        """
        digest = base64.b64encode(_digest(path)).decode()
        return self.http.change(
            ArtifactDetail,
            "POST",
            "/api/v1/artifacts",
            query={"hardware": list(hardware), "override": override},
            upload=lambda: _pieces(path, progress),
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(path.stat().st_size),
                "Content-Digest": f"sha-256=:{digest}:",
            },
            timeout_s=300,
        )

    def artifact(self, digest: str) -> ArtifactDetail:
        """Return an artifact, with the report of its compilation."""
        return self.http.get(ArtifactDetail, at("artifacts", digest))

    def download(self, digest: str, path: Path) -> None:
        """Write the file of an artifact to a path, whole or not at all.

        Raises:
            FleetError: The server refuses, or what came has another digest.
            OutputError: It cannot be written.
        """
        found = sha256()
        with self.http.download(at("artifacts", digest, "file")) as pieces, atomic_write(path) as out:
            for piece in pieces:
                found.update(piece)
                out.write(piece)
            if found.hexdigest() != digest:
                raise FleetError(f"expected the artifact {digest}, got {found.hexdigest()}", "reply")

    def releases(self, model: str | None = None) -> Iterator[ReleaseView]:
        """Yield releases by model, newest first."""
        return self.pages(ReleaseView, "/api/v1/releases", {"model": model})

    def release(self, model: str, version: str) -> ReleaseDetail:
        """Return a release, with its artifacts."""
        return self.http.get(ReleaseDetail, at("releases", model, version))

    def quarantined(self) -> Iterator[QuarantinedView]:
        """Yield what may not be installed."""
        return self.pages(QuarantinedView, "/api/v1/quarantine", {})

    def quarantine(self, digest: str, reason: str) -> QuarantinedView:
        """Say that an artifact may not be installed any more."""
        wanted = wanted_of(QuarantineWanted, reason=reason)
        return self.http.change(QuarantinedView, "POST", at("quarantine", digest), wanted)

    def release_quarantine(self, digest: str, reason: str) -> None:
        """Say that an artifact may be installed again."""
        wanted = wanted_of(QuarantineWanted, reason=reason)
        self.http.change(NOTHING, "POST", at("quarantine", digest, "release"), wanted)


def _digest(path: Path) -> bytes:
    digest = sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as e:
        raise FleetError(f"{path} cannot be read: {e.strerror}", "invalid") from e
    return digest.digest()


def _pieces(path: Path, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
            if progress is not None:
                progress(len(piece))
