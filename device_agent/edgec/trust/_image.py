"""The image repository: which artifacts exist, signed offline by a threshold of people."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact, Manifest, atomic_write
from edgec.errors import OutputError, TrustError
from edgec.trust._assignment import ChunkMap, Delta, ImageTarget, image_target, is_artifact, location
from edgec.trust._catalogue import ImageCatalogue
from edgec.trust._metadata import MAX_INTEGER, PREFIX, checked_name, expiry, field
from edgec.trust._provenance import make_provenance, verify_provenance
from edgec.trust._repository import RootRoles
from edgec.trust._tuf import DelegatedRole, Delegations, Metadata, TargetFile, Targets

_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class DeltaFile:
    """A patch to publish with an artifact.

    Attributes:
        from_sha256: Digest of the artifact that it applies to, in hex.
        path: Of the patch.
        method: How it was made, as ``edgec.delta`` calls it.
    """

    from_sha256: str
    path: Path
    method: str


class ImageRepository(ImageCatalogue):
    """Artifacts of all models, on a directory that any web server can serve.

    The keys of role ``targets`` sign for a role per model, so that a device reads what concerns its
    models only; the key of role ``online`` signs snapshot and timestamp. Everything is made in
    ``staged/`` first; `release` puts it in force once it has all signatures, in an order that leaves
    a repository that verifies wherever it is stopped.
    """

    def initialise(self, *, root_threshold: int = 2, targets_threshold: int = 1) -> None:
        """Stage the first root and an empty catalogue.

        Raises:
            TrustError: There are too few keys (``reason`` ``threshold``), or a repository is here already.
        """
        if self.root_files() or self.staged():
            raise TrustError(f"{self.directory} has an image repository already", "exists")
        self.stage_root(self.planned_roles(root_threshold, targets_threshold))
        now = self.clock()
        targets = Targets(
            version=1,
            expires=expiry(now, self.lifetimes.targets),
            delegations=Delegations({}, {}),
            unrecognized_fields=field(self.kind, now),
        )
        self.stage("targets", Metadata(targets))

    def planned_roles(self, root_threshold: int, targets_threshold: int) -> RootRoles:
        """Return keys and threshold of each role of the root, from the keys that there are."""
        root, targets, online = (
            tuple(key.key for key in self.keys.of_role(role)) for role in ("root", "targets", "online")
        )
        return {
            "root": (root, root_threshold),
            "targets": (targets, targets_threshold),
            "snapshot": (online, 1),
            "timestamp": (online, 1),
        }

    # Publishing

    def publish(
        self,
        artifact: Path,
        *,
        hardware: Sequence[str] = (),
        deltas: Sequence[DeltaFile] = (),
        chunks: Path | None = None,
    ) -> ImageTarget:
        """Verify an artifact, copy it into the repository and stage its signed entry.

        Nothing is in force before `release`. Publishing the same file again changes nothing, but that a file
        which is missing or damaged is written again.

        Args:
            artifact: Path of an ``.edgec`` file.
            hardware: Targets that it may run on; the one it was compiled for if empty.
            deltas: Patches that lead to it; those of an earlier call stay.
            chunks: File with the digests of its chunks.

        Raises:
            ArtifactError: It is damaged.
            TrustError: Its names cannot be published, or this version is there already with other content.
            OutputError: A file cannot be written.
        """
        with Artifact.open(artifact) as opened:
            opened.verify()
            manifest, content_digest = opened.manifest, opened.content_digest
        length, sha256 = _measure(artifact)
        path = _target_path(manifest)
        role = self._edited_model(manifest.model)
        if (known := role.signed.targets.get(path)) is not None and known.hashes["sha256"] != sha256:
            raise TrustError(
                f"{path} is published already with other content; compile the model with a new version",
                "exists",
            )
        published = [image_target(t) for t in role.signed.targets.values() if is_artifact(t)]
        before = next((t for t in published if t.path == path), None)
        kept, mapped = (before.deltas, before.chunks) if before else ((), None)
        fresh = tuple(self._add_delta(path, delta) for delta in deltas)
        replaced = {delta.from_sha256 for delta in fresh}
        target = ImageTarget(
            path=path,
            length=length,
            sha256=sha256,
            model=manifest.model,
            version=manifest.model_version,
            release=_release_number(published, manifest.model_version),
            hardware=tuple(hardware) or (manifest.target,),
            content_digest=content_digest,
            engine={key: getattr(manifest.engine, key) for key in ("name", "version", "device", "precision")},
            rollback_floor=max((other.rollback_floor for other in published), default=0),
            deltas=(*(delta for delta in kept if delta.from_sha256 not in replaced), *fresh),
            chunks=self._add_chunks(path, chunks) if chunks else mapped,
        )
        self._copy(artifact, target.location, sha256)
        if known is not None and image_target(known) == target:
            return target
        role.signed.targets[path] = _entry(target)
        self._add_provenance(role, target, manifest)
        self._stage_changed(PREFIX + manifest.model, role)
        return target

    def set_rollback_floor(self, model: str, version: str) -> int:
        """Stage that no device may install a release of `model` older than `version` any more.

        Returns:
            The number of the release.

        Raises:
            TrustError: There is no such version, or the floor is above it already: it never sinks.
        """
        role = self._edited_model(model)
        targets = [image_target(t) for t in role.signed.targets.values() if is_artifact(t)]
        releases = {target.version: target.release for target in targets}
        if version not in releases:
            known = ", ".join(sorted(releases)) or "none"
            raise TrustError(f"{model} has no version {version!r}; published: {known}", "not_found")
        floor = max((target.rollback_floor for target in targets), default=0)
        if releases[version] < floor:
            raise TrustError(f"the rollback floor of {model} is above {version} and never sinks", "rollback")
        for target in targets:
            role.signed.targets[target.path] = _entry(replace(target, rollback_floor=releases[version]))
        self._stage_changed(PREFIX + model, role)
        return releases[version]

    def withdraw(self, path: str) -> None:
        """Stage that an artifact is no longer there; devices refuse it, also in the midst of an update.

        Raises:
            TrustError: There is no such artifact.
        """
        model = path.partition("/")[0]
        role = self._edited_model(model)
        if path not in role.signed.targets:
            raise TrustError(f"{path} is not published", "not_found")
        for name in (path, f"{path}.intoto.json"):
            role.signed.targets.pop(name, None)
        self._stage_changed(PREFIX + model, role)

    def delegate(self, model: str, key_names: Sequence[str], threshold: int = 1) -> None:
        """Stage that `model` is signed by these keys from now on, in place of any before.

        Raises:
            TrustError: A name is unknown, or there are fewer keys than `threshold`.
        """
        checked_name(model, "the name of the model")
        keys = [self.keys.named(key_name).key for key_name in key_names]
        if not 1 <= threshold <= len(keys):
            raise TrustError(f"{threshold} of {len(keys)} keys cannot sign; name more keys", "threshold")
        targets = self._edited("targets")
        self._delegate(targets, model, keys, threshold)
        self._stage_changed("targets", targets)

    def revoke(self, model: str) -> None:
        """Stage that nobody signs for `model` any more: none of its artifacts can be installed.

        Raises:
            TrustError: There is no such model.
        """
        targets = self._edited("targets")
        roles = targets.signed.delegations.roles
        if PREFIX + model not in roles:
            raise TrustError(f"there is no model {model!r} to revoke", "not_found")
        for keyid in list(roles[PREFIX + model].keyids):
            targets.signed.revoke_key(keyid, PREFIX + model)
        del roles[PREFIX + model]
        self.unstage(PREFIX + model)
        self._stage_changed("targets", targets)

    # Editing

    def _edited(self, role: str) -> Any:
        """Return a role to change, as its next version: staged or in force; None if there is none."""
        metadata, staged = self.role(role), self.staged().get(role)
        version = metadata.signed.version if metadata is not None else 0
        if staged is not None and staged.signed.version > version:
            metadata = staged
        if metadata is not None:
            metadata.signed.version = version + 1
        return metadata

    def _edited_model(self, model: str) -> Any:
        checked_name(model, "the name of the model")
        role = self._edited(PREFIX + model)
        targets = self._edited("targets")
        if targets is None:
            raise TrustError(f"{self.directory} is no repository; run  edgec repo init", "not_found")
        if PREFIX + model not in targets.signed.delegations.roles:
            root = self._newest_root()
            role_of_root = root.roles["targets"]
            self._delegate(
                targets, model, [root.keys[i] for i in role_of_root.keyids], role_of_root.threshold
            )
            self._stage_changed("targets", targets)
            if role is not None:
                # What was revoked does not come back with what is published next.
                role.signed.targets.clear()
        if role is None:
            role = Metadata(Targets(version=1, unrecognized_fields=field(self.kind, self.clock())))
        return role

    def _newest_root(self) -> Any:
        staged = self.staged().get("root")
        return staged.signed if staged is not None and not self.root_files() else self.root

    def _delegate(self, targets: Any, model: str, keys: Sequence[Any], threshold: int) -> None:
        role = DelegatedRole(
            name=PREFIX + model, keyids=[], threshold=threshold, terminating=True, paths=[f"{model}/*"]
        )
        targets.signed.delegations.roles[role.name] = role
        for key in keys:
            targets.signed.add_key(key, role.name)

    def _stage_changed(self, role: str, metadata: Any) -> None:
        now = self.clock()
        metadata.signed.expires = expiry(now, self.lifetimes.targets)
        metadata.signed.unrecognized_fields.update(field(self.kind, now))
        metadata.signatures.clear()
        self.stage(role, metadata)

    def delegate_again(self, models: Sequence[str], keys: Sequence[Any], threshold: int) -> None:
        """Stage the catalogue, with `models` signed by `keys` from now on, and those models anew."""
        targets = self._edited("targets")
        for model in models:
            for keyid in list(targets.signed.delegations.roles[PREFIX + model].keyids):
                targets.signed.revoke_key(keyid, PREFIX + model)
            self._delegate(targets, model, keys, threshold)
        self._stage_changed("targets", targets)
        for model in models:
            self.stage_again(PREFIX + model)

    def stage_again(self, role: str) -> None:
        """Stage a role as it is, to be signed anew: with other keys, or for longer."""
        metadata = self._edited(role)
        if metadata is not None:
            self._stage_changed(role, metadata)

    def _add_provenance(self, role: Any, target: ImageTarget, manifest: Manifest) -> None:
        delegator = self.delegators(PREFIX + target.model)[-1]
        keyids = list(delegator.delegations.roles[PREFIX + target.model].keyids)
        facts = {"model": target.model, "version": target.version, "target": manifest.target}
        file = target.path.rpartition("/")[2]
        data = make_provenance(file, target.sha256, facts, manifest.provenance, self.keys.signers(keyids))
        verify_provenance(data, target.sha256, [delegator.delegations.keys[i] for i in keyids])
        path, digest = f"{target.path}.intoto.json", hashlib.sha256(data).hexdigest()
        self._write(location(path, digest), data)
        custom = {"kind": "provenance", "subject": target.path}
        role.signed.targets[path] = TargetFile(len(data), {"sha256": digest}, path, {"custom": custom})

    def _add_delta(self, path: str, delta: DeltaFile) -> Delta:
        length, sha256 = _measure(delta.path)
        entry = Delta(
            from_sha256=delta.from_sha256,
            path=location(f"{path}.from-{delta.from_sha256[:16]}", sha256),
            length=length,
            sha256=sha256,
            method=delta.method,
        )
        self._copy(delta.path, entry.path, sha256)
        return entry

    def _add_chunks(self, path: str, chunks: Path) -> ChunkMap:
        length, sha256 = _measure(chunks)
        entry = ChunkMap(path=location(f"{path}.chunks", sha256), length=length, sha256=sha256)
        self._copy(chunks, entry.path, sha256)
        return entry

    def _copy(self, source: Path, file: str, sha256: str) -> None:
        path = self.directory / file
        if path.is_file() and _measure(path)[1] == sha256:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as out, source.open("rb") as data:
            shutil.copyfileobj(data, out, _CHUNK)
        if _measure(path)[1] != sha256:
            path.unlink()
            raise OutputError(f"{source} changed while it was published; publish it again")


def _entry(target: ImageTarget) -> Any:
    return TargetFile(target.length, {"sha256": target.sha256}, target.path, {"custom": target.custom()})


def _target_path(manifest: Manifest) -> str:
    checked_name(manifest.model, "the name of the model")
    file = f"{manifest.model}-{manifest.model_version}-{manifest.target}.edgec"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,149}", file):
        raise TrustError(
            f"{file!r} cannot be the name of a file: the version of the model may have letters, digits, "
            "'_', '.', '+', '-'; compile it with such a version",
            "name",
        )
    return f"{manifest.model}/{file}"


def _release_number(others: Sequence[ImageTarget], version: str) -> int:
    same = [other.release for other in others if other.version == version]
    release = same[0] if same else max((other.release for other in others), default=0) + 1
    if release > MAX_INTEGER:
        raise TrustError("the model has used up its release numbers", "rollback")
    return release


def _measure(path: Path) -> tuple[int, str]:
    digest, length = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                length += len(chunk)
    except OSError as e:
        raise TrustError(f"cannot read {path}: {e.strerror}", "not_found") from e
    return length, digest.hexdigest()
