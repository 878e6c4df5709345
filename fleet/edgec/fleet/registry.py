"""Releases: artifacts that were verified, signed and kept by digest; what did not pass is refused."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Row, select

from edgec.artifact import Artifact, Manifest, atomic_write
from edgec.delta import ChunkMap, make_delta
from edgec.errors import ArtifactError, FleetError, OutputError
from edgec.fleet._proof import failures, warnings_of
from edgec.fleet.store import Store
from edgec.fleet.store._audit import add_entry
from edgec.fleet.store._database import clean, upsert
from edgec.fleet.store._schema import artifacts, hardware, quarantine, releases
from edgec.trust import ImageRepository, ImageTarget, publish_artifact

_PIECE = 2**20
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}"
# Columns that drift and verdicts read themselves.
_REFERENCES = ("reference", "input_reference")
MAX_ARTIFACT_BYTES = 4 * 2**30


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """One artifact of a release.

    Attributes:
        sha256: Of the file, in hex.
        model: Name of the model.
        version: Of the model.
        number: Of the release within the model, from 1; larger is later.
        target: That it was compiled for.
        hardware: Classes of hardware that it may run on.
        path: In the image repository.
        length: In bytes.
        content_digest: Of all but measured figures.
        report: What was measured when it was compiled; None where it has no report.
        uploaded_at: When.
        uploaded_by: Who.
        override: Why it is here although it did not pass; None where it did.
        quarantined: Why it must not be installed; None where it may.
    """

    sha256: str
    model: str
    version: str
    number: int
    target: str
    hardware: tuple[str, ...]
    path: str
    length: int
    content_digest: str
    report: Mapping[str, Any] | None
    uploaded_at: float
    uploaded_by: str
    override: str | None
    quarantined: str | None

    @property
    def warnings(self) -> list[str]:
        """What was not held to anything, as its owner chose when it was compiled, in words for people."""
        return warnings_of(self.report, self.target)


class Registry:
    """Artifacts of all releases: their files in the image repository, what is known of them in the store."""

    def __init__(
        self, store: Store, image: ImageRepository, *, lock: AbstractContextManager[object] | None = None
    ) -> None:
        """Keep what is uploaded.

        Args:
            store: Of the fleet.
            image: Signs, with keys of role ``targets`` and ``online`` that must be at hand.
            lock: Held by the one thread that changes `image`; one of its own if None.
        """
        self._store = store
        self.image = image
        self._lock = lock or threading.RLock()

    def upload(
        self,
        file: BinaryIO,
        *,
        now: float,
        actor: str,
        hardware_names: Sequence[str] = (),
        override: str | None = None,
        max_bytes: int = MAX_ARTIFACT_BYTES,
    ) -> ArtifactRecord:
        """Take an artifact in: verify it, keep it by digest, sign it and put it in force.

        The same file again changes nothing, but for what is signed of it: where that is not what the registry
        has, it is signed anew. What is refused changes nothing. Stopped at any moment, nothing is in force
        that was not verified, and the next upload of the same file goes on.

        Args:
            file: Its bytes.
            now: Seconds by the fleet's clock.
            actor: Who.
            hardware_names: Classes of hardware that it may run on; if empty, those that it has here, or
                else the one it was compiled for.
            override: Why it is taken although it did not pass parity or budget; for people.
            max_bytes: What is larger is refused.

        Raises:
            FleetError: It did not pass and there is no reason to take it (``reason`` ``refused``), is too
                large (``too_large``), a name of hardware is none (``invalid``), or the release has another
                artifact for this target, or this one for other hardware (``conflict``).
            ArtifactError: It is damaged.
            TrustError: It cannot be published; a published version never changes.
            OutputError: It cannot be written.
        """
        names = _checked_names(hardware_names)
        part = self._receive(file, max_bytes)
        try:
            try:
                with Artifact.open(part) as opened:
                    opened.verify()
                    manifest, report = opened.manifest, opened.report
            except ArtifactError as e:
                # Where the server keeps what comes is nothing to who sent it.
                e.args = (str(e).replace(str(part), "the file that was sent"), *e.args[1:])
                raise
            # The same file again was judged when it came first.
            known = self._find(artifacts.c.sha256 == part.name.partition(".")[0])
            problems = [] if known else failures(manifest, report, part.stat().st_size)
            if problems and not (override and override.strip()):
                raise FleetError(
                    f"{manifest.model} {manifest.model_version} for {manifest.target} did not pass: "
                    f"{'; '.join(problems)}; compile it anew, or give a reason to take it",
                    "refused",
                )
            with self._lock, self.image.locked():
                runs_on = self._runs_on(part, manifest, names)
                target = publish_artifact(
                    self.image,
                    part,
                    make_delta=make_delta,
                    make_map=lambda path: ChunkMap.of_file(path).to_bytes(),
                    hardware=runs_on,
                )
                self.image.release()
                reason = clean(override.strip()) if problems and override else None
                self._write(target, manifest, report, now, actor, reason)
        finally:
            part.unlink(missing_ok=True)
        return self.get(target.sha256)

    def get(self, digest: str) -> ArtifactRecord:
        """Return what is known of an artifact.

        Raises:
            FleetError: There is none of this digest (``reason`` ``not_found``).
        """
        found = self._find(artifacts.c.sha256 == digest)
        if not found:
            raise FleetError(f"there is no artifact {digest!r}", "not_found")
        return found[0]

    def release(self, model: str, version: str) -> list[ArtifactRecord]:
        """Return the artifacts of a release, by target; none where there is no such release."""
        return self._find((artifacts.c.model == model) & (artifacts.c.version == version))

    def releases(self, model: str | None = None) -> list[tuple[str, str, int]]:
        """Return model, version and number of releases, newest first."""
        query = select(releases).order_by(releases.c.model, releases.c.number.desc())
        if model is not None:
            query = query.where(releases.c.model == model)
        with self._store.database.read() as connection:
            return [(r.model, r.version, r.number) for r in connection.execute(query)]

    def by_hardware(self, model: str, version: str) -> dict[str, str]:
        """Return the digest of a release's artifact by class of hardware: for `rollouts.Plan.artifacts`.

        Raises:
            FleetError: There is no such release.
        """
        found = {name: record.sha256 for record in self.release(model, version) for name in record.hardware}
        if not found:
            raise FleetError(f"there is no release {version!r} of {model!r}", "not_found")
        return found

    def path(self, digest: str) -> Path:
        """Return where the file of an artifact is.

        Raises:
            FleetError: There is none of this digest.
        """
        path = self.get(digest).path
        return self.image.directory / self.image.targets()[path].location

    def _receive(self, file: BinaryIO, max_bytes: int) -> Path:
        """Write what comes to a file of its digest beside the repository, synced to disk."""
        folder = self.image.directory / "incoming"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"cannot make the directory {folder}: {e.strerror}") from e
        digest, size = sha256(), 0
        part = folder / f"{os.urandom(8).hex()}.part"
        with atomic_write(part) as out:
            while piece := file.read(_PIECE):
                size += len(piece)
                if size > max_bytes:
                    raise FleetError(f"the artifact has more than {max_bytes} bytes", "too_large")
                digest.update(piece)
                out.write(piece)
        whole = part.with_name(f"{digest.hexdigest()}.{part.name.removesuffix('.part')}.edgec")
        part.rename(whole)
        return whole

    def _runs_on(self, part: Path, manifest: Manifest, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the hardware to sign an artifact for; empty for its target.

        Refused before anything is signed: another file for the same model, version and target, and the same
        file for other hardware. Releases never change.
        """
        digest = part.name.partition(".")[0]
        for record in self.release(manifest.model, manifest.model_version):
            if record.sha256 == digest:
                return self._kept_names(record, names)
            if record.target == manifest.target:
                raise FleetError(
                    f"{manifest.model} {manifest.model_version} has another artifact for {manifest.target} "
                    "already; compile it with a new version",
                    "conflict",
                )
        return names

    def _kept_names(self, record: ArtifactRecord, names: tuple[str, ...]) -> tuple[str, ...]:
        if names and set(names) != set(record.hardware):
            raise FleetError(
                f"it is in the fleet already, for {', '.join(record.hardware)}, and a release never "
                "changes; compile it with a new version (--model-version), and upload that",
                "conflict",
            )
        signed = self.image.targets(record.model).get(record.path)
        # Another order is no difference, and nothing to sign anew.
        if signed is not None and set(signed.hardware) == set(record.hardware):
            return signed.hardware
        return record.hardware

    def _write(
        self,
        target: ImageTarget,
        manifest: Manifest,
        report: Mapping[str, Any] | None,
        now: float,
        actor: str,
        override: str | None,
    ) -> None:
        row = {
            "sha256": target.sha256,
            "model": target.model,
            "version": target.version,
            "number": target.release,
            "target": manifest.target,
            "path": target.path,
            "length": target.length,
            "content_digest": target.content_digest,
            "reference": {name: dict(values) for name, values in manifest.reference.items()},
            "input_reference": {
                name: {statistic: dict(values) for statistic, values in statistics.items()}
                for name, statistics in manifest.input_reference.items()
            },
            "report": None if report is None else dict(report),
            "uploaded_at": now,
            "uploaded_by": clean(actor),
            "override": override,
        }
        release = {
            "model": target.model,
            "version": target.version,
            "number": target.release,
            "created_at": now,
        }
        runs_on = [
            {"sha256": target.sha256, "name": name, "model": target.model, "number": target.release}
            for name in target.hardware
        ]
        with self._store.database.write() as connection:
            if connection.execute(
                select(artifacts.c.path).where(artifacts.c.sha256 == target.sha256)
            ).first():
                return
            upsert(connection, releases, [release], update=False)
            upsert(connection, artifacts, [row], update=False)
            upsert(connection, hardware, runs_on, update=False)
            body = {"path": target.path, "hardware": list(target.hardware), "override": override}
            add_entry(connection, now, actor, "artifact.upload", target.sha256, body)

    def _find(self, condition: Any) -> list[ArtifactRecord]:
        query = select(artifacts, quarantine.c.reason.label("quarantined"))
        query = query.outerjoin(quarantine, quarantine.c.digest == artifacts.c.sha256)
        query = query.where(condition).order_by(artifacts.c.target)
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
            names = select(hardware).where(hardware.c.sha256.in_([row.sha256 for row in rows]))
            found: dict[str, list[str]] = {}
            for row in connection.execute(names.order_by(hardware.c.name)):
                found.setdefault(row.sha256, []).append(row.name)
        return [_record(row, tuple(found.get(row.sha256, ()))) for row in rows]


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    wrong = [name for name in names if not re.fullmatch(_NAME, name)]
    if wrong:
        raise FleetError(
            f"expected names of hardware such as 'rpi5', got {', '.join(map(repr, wrong)):.200}; they have "
            "letters, digits, '_', '.', '+', '-', 64 at most",
            "invalid",
        )
    return tuple(dict.fromkeys(names))


def _record(row: Row[Any], names: tuple[str, ...]) -> ArtifactRecord:
    values = {key: value for key, value in row._asdict().items() if key not in _REFERENCES}
    return ArtifactRecord(hardware=names, **values)
