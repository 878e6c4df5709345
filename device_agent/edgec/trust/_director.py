"""The director: which device shall run which artifact, signed online, one small chain per device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.artifact._fields import Fields
from edgec.errors import TrustError
from edgec.trust._assignment import DeviceBundle, ImageTarget
from edgec.trust._image import ImageRepository
from edgec.trust._keys import KeyRing
from edgec.trust._metadata import (
    DIRECTOR,
    MAX_INTEGER,
    Extra,
    checked_name,
    expiry,
    field,
    meta_file,
    parse,
)
from edgec.trust._repository import Clock, Lifetimes, RootRoles, SignedRepository
from edgec.trust._terms import Terms, terms_of
from edgec.trust._tuf import Metadata, Snapshot, TargetFile, Targets, Timestamp

# A message over MQTT has 128 KiB; the metadata is text in JSON in it, with quotes escaped.
MAX_BUNDLE_BYTES = 96 * 1024


class DirectorRepository(SignedRepository):
    """Assignments on the directory of an image repository: one targets role per device.

    All devices share root metadata; targets, snapshot and timestamp of a device are its own, in
    ``director/DEVICE/``, and name it, so that they are worth nothing elsewhere. 10,000 devices in one
    role would be 1.3 MB to each of them.
    """

    kind = DIRECTOR

    def __init__(
        self,
        image: ImageRepository,
        keys: KeyRing,
        *,
        lifetimes: Lifetimes | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Direct devices among the artifacts of `image`."""
        super().__init__(
            image.directory, keys, lifetimes=lifetimes or image.lifetimes, clock=clock or image.clock
        )
        self.image = image

    def initialise(self, *, root_threshold: int = 2) -> None:
        """Stage the first root.

        Raises:
            TrustError: There are too few keys (``reason`` ``threshold``), or a repository is here already.
        """
        if self.root_files() or self.staged():
            raise TrustError(f"{self.directory} has a director already", "exists")
        self.stage_root(self.planned_roles(root_threshold))

    def planned_roles(self, root_threshold: int) -> RootRoles:
        """Return keys and threshold of each role of the root, from the keys that there are."""
        root, director = (tuple(key.key for key in self.keys.of_role(role)) for role in ("root", "director"))
        online = (director, 1)
        return {"root": (root, root_threshold), "targets": online, "snapshot": online, "timestamp": online}

    def devices(self) -> list[str]:
        """Return the ids of the devices that have an assignment, sorted."""
        return sorted(path.parent.name for path in (self.directory / DIRECTOR).glob("*/timestamp.json"))

    def assigned(self, device: str) -> tuple[int, dict[str, str]]:
        """Return epoch and path by model of what is assigned to `device`; 0 and nothing if it is new."""
        current = self._current(device)
        if current is None:
            return 0, {}
        targets = current["targets"].signed
        models = {
            target.unrecognized_fields["custom"]["model"]: path for path, target in targets.targets.items()
        }
        return Extra(targets).epoch, models

    def expires(self, device: str) -> float:
        """Return when the metadata of `device` expires, in seconds since 1970; 0 if it has none."""
        current = self._current(device)
        return 0 if current is None else current["timestamp"].signed.expires.timestamp()

    def terms(self, device: str) -> dict[str, Terms]:
        """Return on which terms `device` is assigned what it is, by name of the model."""
        current = self._current(device)
        return {} if current is None else _terms(current["targets"].signed)

    def assign(
        self,
        device: str,
        models: Mapping[str, str],
        *,
        hardware: Iterable[str] | None = None,
        terms: Mapping[str, Terms] | None = None,
        retry: Collection[str] = (),
    ) -> DeviceBundle:
        """Say what `device` shall run from now on, in place of all before.

        What is the same as before keeps its epoch; anything else, older content too, is a new epoch.

        Args:
            device: Its id.
            models: Path of an artifact in the image repository, by name of the model.
            hardware: Targets that the device can run, if known: others are refused here already.
            terms: By name of the model; one that is not named keeps the terms of the artifact that it had.
            retry: Models whose artifact is to be tried although the device has found it bad; a new epoch.

        Returns:
            What to send it.

        Raises:
            TrustError: An artifact is not in force, of another model, below the rollback floor, or not
                for this hardware; or the director's key is missing. Nothing was written.
        """
        checked_name(device, "the id of the device")
        targets = self.checked(models, None if hardware is None else set(hardware), self.image.targets())
        epoch, before = self.assigned(device)
        current = self._current(device)
        signed = None if current is None else current["targets"].signed
        known = {} if signed is None else _terms(signed)
        same = {model for model, target in targets.items() if before.get(model) == target.path}
        agreed = {model: _kept(known.get(model), (terms or {}).get(model)) for model in same}
        agreed |= {model: terms[model] for model in targets if terms and model in terms and model not in same}
        unchanged = before == {model: target.path for model, target in targets.items()} and epoch > 0
        if unchanged and not retry and known == agreed and _same_files(signed, targets):
            return self.bundle(device)
        if epoch >= MAX_INTEGER:
            raise TrustError(f"the epochs of {device} are used up: rotate the director's key", "rollback")
        agreed |= {
            model: replace(agreed.get(model, Terms()), retry=epoch + 1) for model in targets if model in retry
        }
        self._write_device(device, epoch + 1, targets, terms=agreed)
        return self.bundle(device)

    def renew(self, device: str) -> DeviceBundle:
        """Sign the assignment of `device` again, with a new expiry and the same epoch.

        Raises:
            TrustError: It has none, or the director's key is missing.
        """
        epoch, _ = self.assigned(device)
        if not epoch:
            raise TrustError(f"{device} has no assignment to renew", "not_found")
        current = self._current(device)
        assert current is not None
        self._write_device(device, epoch, None, current["targets"].signed.targets)
        return self.bundle(device)

    def bundle(self, device: str) -> DeviceBundle:
        """Return what to send to `device`: its assignment, and all metadata that proves it.

        Raises:
            TrustError: It has no assignment, an artifact of it is not in force any more, or the metadata
                does not fit into a message (``reason`` ``too_large``).
        """
        epoch, models = self.assigned(device)
        if not epoch:
            raise TrustError(f"{device} has no assignment; run  edgec repo assign", "not_found")
        published = self.image.targets()
        withdrawn = sorted(path for path in models.values() if path not in published)
        if withdrawn:
            raise TrustError(f"{device} is assigned {', '.join(withdrawn)}, which was withdrawn", "revoked")
        files = {f"{DIRECTOR}/{v}.root.json": data for v, data in self.root_files().items() if v > 1}
        current = self._current(device)
        assert current is not None
        files |= current["files"]
        bundle = DeviceBundle(
            device=device,
            epoch=epoch,
            targets={model: published[path] for model, path in sorted(models.items())},
            metadata=files | self.image.metadata_for(sorted(models)),
        )
        if bundle.size_bytes > MAX_BUNDLE_BYTES:
            raise TrustError(
                f"the metadata for {device} has {bundle.size_bytes} bytes, and {MAX_BUNDLE_BYTES} fit into a "
                "message: withdraw artifacts of old versions, or let devices fetch metadata over HTTP",
                "too_large",
            )
        return bundle

    def release(self) -> list[str]:
        """Put a root that has all signatures in force, after what its keys have signed; return what is new.

        Raises:
            TrustError: The director's key is missing.
        """
        new = self.staged().get("root")
        if new is None or not self.signatures("root", new).complete:
            return []
        if self.root_files():
            for device in self.devices():
                self.renew(device)
        return ["root"] if self.release_root() else []

    @staticmethod
    def checked(
        models: Mapping[str, str], hardware: set[str] | None, published: Mapping[str, ImageTarget]
    ) -> dict[str, ImageTarget]:
        """Return the artifacts that are meant, by name of the model.

        Raises:
            TrustError: One is not in force, of another model, below its rollback floor, or of other hardware.
        """
        problems, targets = [], {}
        for model, path in models.items():
            target = published.get(path)
            if target is None or target.model != model:
                known = ", ".join(p for p, t in published.items() if t.model == model) or "nothing"
                problems.append(f"{path} is not in force for model {model} (there is: {known})")
                continue
            floor = max(t.rollback_floor for t in published.values() if t.model == model)
            if target.release < floor:
                problems.append(f"{path} is release {target.release}, below the rollback floor {floor}")
            if hardware is not None and not hardware & set(target.hardware):
                problems.append(
                    f"{path} runs on {', '.join(target.hardware)}, not on {', '.join(sorted(hardware))}"
                )
            targets[model] = target
        if problems:
            raise TrustError("; ".join(problems), "assignment")
        return targets

    def _current(self, device: str) -> dict[str, Any] | None:
        """Return the targets in force of a device, and the files of its chain by name."""
        folder = f"{DIRECTOR}/{checked_name(device, 'the id of the device')}"
        timestamp = self.read(f"{folder}/timestamp.json")
        if timestamp is None:
            return None
        files = {f"{folder}/timestamp.json": timestamp}
        snapshot_version = parse(timestamp, folder).signed.snapshot_meta.version
        name = f"{folder}/{snapshot_version}.snapshot.json"
        files[name] = self._needed(name)
        version = parse(files[name], name).signed.meta["targets.json"].version
        name = f"{folder}/{version}.targets.json"
        files[name] = self._needed(name)
        return {"targets": parse(files[name], name), "files": files, "timestamp": parse(timestamp, folder)}

    def _write_device(
        self,
        device: str,
        epoch: int,
        targets: Mapping[str, ImageTarget] | None,
        entries: Mapping[str, Any] | None = None,
        terms: Mapping[str, Terms] | None = None,
    ) -> None:
        now, folder = self.clock(), f"{DIRECTOR}/{device}"
        expires = expiry(now, self.lifetimes.director)
        own = field(self.kind, now, device=device)
        if entries is None:
            entries = {
                target.path: entry(model, target, (terms or {}).get(model))
                for model, target in (targets or {}).items()
            }
        past = self._current(device)
        # One number for all three; nothing says that they must differ.
        version = past["timestamp"].signed.version + 1 if past else 1
        signed = Targets(
            version=version,
            expires=expires,
            targets=dict(entries),
            unrecognized_fields=field(self.kind, now, device=device, epoch=epoch),
        )
        data = self._signed("targets", signed)
        self._write(f"{folder}/{version}.targets.json", data)
        meta = {"targets.json": meta_file(version, data)}
        data = self._signed(
            "snapshot", Snapshot(version=version, expires=expires, meta=meta, unrecognized_fields=own)
        )
        self._write(f"{folder}/{version}.snapshot.json", data)
        pinned = meta_file(version, data)
        data = self._signed(
            "timestamp",
            Timestamp(version=version, expires=expires, snapshot_meta=pinned, unrecognized_fields=own),
        )
        self._write(f"{folder}/timestamp.json", data)
        for role in ("targets", "snapshot"):
            self._remove_old(folder, role, version)

    def _signed(self, role: str, signed: Any) -> bytes:
        metadata = Metadata(signed)
        self.sign_with_ring(role, metadata)
        if not self.signatures(role, metadata).complete:
            raise TrustError(
                "the assignment cannot be signed: the private key of role 'director' is not in "
                f"{', '.join(map(str, self.keys.directories))}",
                "key",
            )
        return bytes(metadata.to_bytes())

    def _needed(self, file: str) -> bytes:
        data = self.read(file)
        if data is None:
            raise TrustError(f"{self.directory / file} is missing: the repository is damaged", "not_found")
        return data


def open_repositories(
    directory: Path, keys: KeyRing, *, lifetimes: Lifetimes | None = None, clock: Clock | None = None
) -> tuple[ImageRepository, DirectorRepository]:
    """Return both repositories of a directory."""
    more: dict[str, Any] = {} if clock is None else {"clock": clock}
    image = ImageRepository(directory, keys, lifetimes=lifetimes, **more)
    return image, DirectorRepository(image, keys)


def entry(model: str, target: ImageTarget, terms: Terms | None = None) -> Any:
    """Return the entry of an artifact in a device's targets."""
    said = {} if terms is None else terms.custom()
    custom = {"model": model} | ({"terms": said} if said else {})
    return TargetFile(target.length, {"sha256": target.sha256}, target.path, {"custom": custom})


def _kept(before: Terms | None, said: Terms | None) -> Terms:
    """Return the terms of an artifact that stays: as they were, or as is said; an order to retry holds on."""
    if before is None or said is None:
        return said or before or Terms()
    return replace(said, retry=max(said.retry, before.retry))


def _terms(signed: Any) -> dict[str, Terms]:
    found = {}
    for target in signed.targets.values():
        custom = Fields(target.unrecognized_fields["custom"], "custom")
        found[target.unrecognized_fields["custom"]["model"]] = terms_of(custom)
    return found


def _same_files(signed: Any, targets: Mapping[str, ImageTarget]) -> bool:
    return {(path, t.length, t.hashes.get("sha256")) for path, t in signed.targets.items()} == {
        (target.path, target.length, target.sha256) for target in targets.values()
    }
