"""The catalogue of the image repository as it is in force, and how a new one comes into force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgec.errors import TrustError
from edgec.trust._assignment import ImageTarget, image_target, is_artifact
from edgec.trust._metadata import IMAGE, PREFIX, expiry, field, meta_file, parse
from edgec.trust._repository import SignedRepository
from edgec.trust._tuf import Metadata, Snapshot, Timestamp


class ImageCatalogue(SignedRepository):
    """What the image repository offers; `ImageRepository` changes it."""

    kind = IMAGE
    # The timestamp in force, and the artifacts that it stands for.
    _seen: tuple[bytes | None, dict[str, ImageTarget]] = (None, {})

    # What is there

    def snapshot(self) -> Any:
        """Return the snapshot in force; None before the first release."""
        data = self.read("image/timestamp.json")
        if data is None:
            return None
        version = parse(data, "image/timestamp.json").signed.snapshot_meta.version
        return self._parsed(f"image/{version}.snapshot.json")

    def role(self, role: str) -> Any:
        """Return metadata of ``targets`` or of a model's role that is in force; None where there is none."""
        snapshot = self.snapshot()
        if snapshot is None or f"{role}.json" not in snapshot.signed.meta:
            return None
        return self._parsed(f"image/{snapshot.signed.meta[f'{role}.json'].version}.{role}.json")

    def models(self) -> list[str]:
        """Return the names of the models in force, sorted."""
        targets = self.role("targets")
        roles = targets.signed.delegations.roles if targets is not None else {}
        return sorted(role.removeprefix(PREFIX) for role in roles)

    def targets(self, model: str | None = None) -> dict[str, ImageTarget]:
        """Return the artifacts in force by path, of one model or of all; oldest release first."""
        timestamp = self.read("image/timestamp.json")
        if timestamp != self._seen[0]:
            self._seen = (timestamp, self._read_targets())
        return {path: target for path, target in self._seen[1].items() if model in (None, target.model)}

    def _read_targets(self) -> dict[str, ImageTarget]:
        models = self.models()
        roles = [self.role(PREFIX + name) for name in models]
        found = [
            image_target(target)
            for role in roles
            if role is not None
            for target in role.signed.targets.values()
            if is_artifact(target)
        ]
        return {target.path: target for target in sorted(found, key=lambda t: (t.model, t.release, t.path))}

    def metadata_for(self, models: Sequence[str]) -> dict[str, bytes]:
        """Return the metadata that a device needs to check artifacts of `models`, by file name."""
        snapshot = self.snapshot()
        if snapshot is None:
            raise TrustError(f"nothing is in force in {self.directory}; run  edgec repo publish", "not_found")
        roles = ["targets", *(PREFIX + model for model in models)]
        versions = {role: snapshot.signed.meta[f"{role}.json"].version for role in roles}
        names = [f"image/{version}.root.json" for version in self.root_files() if version > 1]
        names += ["image/timestamp.json", f"image/{snapshot.signed.version}.snapshot.json"]
        names += [f"image/{version}.{role}.json" for role, version in versions.items()]
        return {name: self._needed(name) for name in names}

    # In force

    def release(self, *, renew: bool = False) -> list[str]:
        """Put in force what has all its signatures; needs the key of role ``online``.

        Root first, then targets, snapshot and timestamp, each a new file renamed into place: what a
        reader sees in between is the repository as it was.

        Args:
            renew: Sign snapshot and timestamp again even where nothing changed.

        Returns:
            The roles that are new in force; snapshot and timestamp are not listed.

        Raises:
            TrustError: The online key is missing.
        """
        # A root with another online key takes effect after metadata that both have signed.
        new_root = "root" in self.staged() and self.signatures("root", self.staged()["root"]).complete
        first = not self.root_files()
        released = ["root"] if first and self.release_root() else []
        if first and not released:
            return []
        changed = self._complete_targets()
        if changed or renew or new_root or self.snapshot() is None:
            self._put_in_force(changed)
        if not first and self.release_root():
            released.append("root")
        return released + sorted(changed)

    def waiting(self) -> dict[str, Any]:
        """Return `Signatures` of what waits for some, by role."""
        return {role: self.signatures(role, metadata) for role, metadata in self.staged().items()}

    def delegators(self, role: str) -> list[Any]:
        """Return metadata that says who signs `role`: what is in force, then what is in preparation."""
        if not role.startswith(PREFIX):
            return super().delegators(role)
        staged = self.read("staged/image/targets.json")
        found = [self.role("targets"), None if staged is None else parse(staged, "the staged targets")]
        return [metadata.signed for metadata in found if metadata is not None]

    def _judges(self, role: str, metadata: Any) -> list[Any]:
        if role.startswith(PREFIX):
            # A model and the delegation to it become valid together.
            return [d for d in self.delegators(role)[-1:] if role in d.delegations.roles]
        return super()._judges(role, metadata)

    def _complete_targets(self) -> dict[str, bytes]:
        staged = {role: metadata for role, metadata in self.staged().items() if role != "root"}
        fresh: dict[str, bytes] = {}
        for role, metadata in staged.items():
            if not self.signatures(role, metadata).complete:
                # A model and the delegation to it become valid together.
                return {}
            fresh[role] = metadata.to_bytes()
        return fresh

    def _put_in_force(self, changed: Mapping[str, bytes]) -> None:
        now, old = self.clock(), self.snapshot()
        meta = dict(old.signed.meta) if old is not None else {}
        for role, data in changed.items():
            version = parse(data, role).signed.version
            self._write(f"image/{version}.{role}.json", data)
            meta[f"{role}.json"] = meta_file(version, data)
        if "targets.json" not in meta:
            raise TrustError(
                "the catalogue waits for signatures: run  edgec keys sign  with the targets keys", "signature"
            )
        version = old.signed.version + 1 if old is not None else 1
        expires = expiry(now, self.lifetimes.online)
        snapshot = Metadata(
            Snapshot(version=version, expires=expires, meta=meta, unrecognized_fields=field(self.kind, now))
        )
        data = self._signed("snapshot", snapshot)
        self._write(f"image/{version}.snapshot.json", data)
        past = self.read("image/timestamp.json")
        timestamp = Timestamp(
            version=parse(past, "image/timestamp.json").signed.version + 1 if past else 1,
            expires=expires,
            snapshot_meta=meta_file(version, data),
            unrecognized_fields=field(self.kind, now),
        )
        self._write("image/timestamp.json", self._signed("timestamp", Metadata(timestamp)))
        for role in changed:
            self.unstage(role)
        self._remove_old("image", "snapshot", version)

    def _signed(self, role: str, metadata: Any) -> bytes:
        self.sign_with_ring(role, metadata)
        if not self.signatures(role, metadata).complete:
            raise TrustError(
                f"the {role} cannot be signed: the private key of role 'online' is not in "
                f"{', '.join(map(str, self.keys.directories))}",
                "key",
            )
        return bytes(metadata.to_bytes())

    def _parsed(self, file: str) -> Any:
        return parse(self._needed(file), file)

    def _needed(self, file: str) -> bytes:
        data = self.read(file)
        if data is None:
            raise TrustError(f"{self.directory / file} is missing: the repository is damaged", "not_found")
        return data
