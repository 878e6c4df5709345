"""Many assignments at once, signed in memory, for a server that tells a whole fleet."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import partial
from typing import TYPE_CHECKING, Any

from edgec.errors import OutputError, TrustError
from edgec.trust._assignment import DeviceBundle, ImageTarget
from edgec.trust._director import MAX_BUNDLE_BYTES, DirectorRepository, entry
from edgec.trust._metadata import DIRECTOR, MAX_INTEGER, checked_name, expiry, field, meta_file, parse
from edgec.trust._repository import KEPT_VERSIONS
from edgec.trust._terms import Terms
from edgec.trust._tuf import Metadata, Snapshot, Targets, Timestamp

if TYPE_CHECKING:
    from pathlib import Path

_ROLES = ("targets", "snapshot", "timestamp")
_WRITERS = 2


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a device is to have, as who keeps a fleet's books has decided.

    Attributes:
        device: Its id.
        epoch: Of the decision; the metadata says it, too.
        models: Path in the image repository, by name of the model.
        after: Version of the metadata that it was told last, as far as is known; 0 for none.
        hardware: Targets that it can run; others are refused. Empty for unknown.
        terms: On which they are taken up, by name of the model; where there are none, on the device owner's.
    """

    device: str
    epoch: int
    models: Mapping[str, str]
    after: int = 0
    hardware: tuple[str, ...] = ()
    terms: Mapping[str, Terms] = attribute(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SignedWish:
    """A wish that was signed.

    Attributes:
        bundle: What to send.
        version: Of its metadata.
        expires: When it expires, in seconds since 1970.
    """

    bundle: DeviceBundle
    version: int
    expires: float


class Issued:
    """What came of wishes: `made` is to be sent, and `keep` writes the files of it.

    Attributes:
        made: By device, where its wish was reached; TrustError where a wish cannot be: an artifact is not in
            force, of another model or hardware, below the rollback floor, or the metadata does not fit into a
            message.
    """

    def __init__(
        self,
        directory: Path,
        made: Mapping[str, SignedWish | TrustError],
        files: Mapping[str, Mapping[str, bytes]],
    ) -> None:
        """Hold what was signed for the repository of a directory; files are by device."""
        self.made = made
        self._directory, self._files = directory, files

    def keep(self) -> dict[str, OutputError]:
        """Write files for devices that fetch metadata over HTTP, without waiting for the disk.

        After a power cut they may be as before, and are made again with the next wish.

        Returns:
            By device whose files cannot be written, why; those from before are left as they are.
        """
        # A file takes longer to be replaced than to be signed, and not because there is something to compute.
        with ThreadPoolExecutor(_WRITERS, "edgec-issuing") as pool:
            write = partial(_write, self._directory, _Disk())
            errors = zip(self._files, pool.map(write, self._files.values()), strict=True)
            return {device: error for device, error in errors if error is not None}


def issue(director: DirectorRepository, wishes: Iterable[Wish]) -> Issued:
    """Sign what devices are to have; the epochs are the caller's, and one device's trouble is not another's.

    Nothing is written: messages can leave before `Issued.keep` writes what other devices will ask for.
    So that a device never sees a version twice, also not after a backup was restored, versions are seconds
    since 1970 at the least.

    Args:
        director: Signs.
        wishes: One per device.

    Raises:
        TrustError: The director's key is not at hand, or a repository is damaged.
    """
    work = _Issuing(director)
    made: dict[str, SignedWish | TrustError] = {}
    files: dict[str, Mapping[str, bytes]] = {}
    for wish in wishes:
        signed = work.attempt(wish)
        if isinstance(signed, TrustError):
            made[wish.device] = signed
        else:
            made[wish.device], files[wish.device] = signed
    return Issued(director.directory, made, files)


class _Issuing:
    """What all wishes of a batch have in common."""

    def __init__(self, director: DirectorRepository) -> None:
        self._director = director
        self._now = director.clock()
        self._expires = expiry(self._now, director.lifetimes.director)
        self._signers = _signers(director)
        roots = director.root_files()
        self._roots = {f"{DIRECTOR}/{v}.root.json": data for v, data in roots.items() if v > 1}
        self._published = director.image.targets()
        self._images: dict[tuple[str, ...], dict[str, bytes]] = {}

    def attempt(self, wish: Wish) -> tuple[SignedWish, dict[str, bytes]] | TrustError:
        """Return what was signed, and the files of it that are to be kept; or why the wish cannot be."""
        try:
            return self._issue(wish)
        except TrustError as e:
            return e

    def _issue(self, wish: Wish) -> tuple[SignedWish, dict[str, bytes]]:
        targets = self._director.checked(wish.models, set(wish.hardware) or None, self._published)
        folder = f"{DIRECTOR}/{checked_name(wish.device, 'the id of the device')}"
        # Files are slower than the caller's books, and know no more.
        version = (wish.after or self._last(folder)) + 1
        version = max(version, int(self._now))
        if max(version, wish.epoch) > MAX_INTEGER:
            raise TrustError(
                f"the epochs of {wish.device} are used up: rotate the director's key", "rollback"
            )
        files = self._files(wish, folder, version, targets)
        bundle = DeviceBundle(
            device=wish.device,
            epoch=wish.epoch,
            targets={model: targets[model] for model in sorted(targets)},
            metadata=self._roots | files | self._image(tuple(sorted(targets))),
        )
        if bundle.size_bytes > MAX_BUNDLE_BYTES:
            raise TrustError(
                f"the metadata for {wish.device} has {bundle.size_bytes} bytes, and {MAX_BUNDLE_BYTES} fit "
                "into a message: withdraw artifacts of old versions",
                "too_large",
            )
        return SignedWish(bundle=bundle, version=version, expires=self._expires.timestamp()), files

    def _files(
        self, wish: Wish, folder: str, version: int, targets: Mapping[str, ImageTarget]
    ) -> dict[str, bytes]:
        own = field(DIRECTOR, self._now, device=wish.device)
        same: dict[str, Any] = {"version": version, "expires": self._expires}
        entries = {
            target.path: entry(model, target, wish.terms.get(model)) for model, target in targets.items()
        }
        about = field(DIRECTOR, self._now, device=wish.device, epoch=wish.epoch)
        signed = self._signed(Targets(**same, targets=entries, unrecognized_fields=about))
        pins = {"targets.json": meta_file(version, signed)}
        snapshot = self._signed(Snapshot(**same, meta=pins, unrecognized_fields=own))
        pin = meta_file(version, snapshot)
        timestamp = self._signed(Timestamp(**same, snapshot_meta=pin, unrecognized_fields=own))
        # In this order: what the timestamp pins is there before it.
        return {
            f"{folder}/{version}.targets.json": signed,
            f"{folder}/{version}.snapshot.json": snapshot,
            f"{folder}/timestamp.json": timestamp,
        }

    def _signed(self, signed: Any) -> bytes:
        metadata = Metadata(signed)
        for signer in self._signers:
            metadata.sign(signer, append=True)
        return bytes(metadata.to_bytes())

    def _image(self, models: tuple[str, ...]) -> dict[str, bytes]:
        if models not in self._images:
            self._images[models] = self._director.image.metadata_for(models)
        return self._images[models]

    def _last(self, folder: str) -> int:
        """Return the version that files have; 0 where there are none, or a power cut has damaged them."""
        data = self._director.read(f"{folder}/timestamp.json")
        with suppress(TrustError):
            return 0 if data is None else int(parse(data, folder).signed.version)
        return 0


@dataclass
class _Disk:
    """What writers tell each other.

    Attributes:
        full: Why no other file fits either.
    """

    full: OutputError | None = None


def _write(root: Path, disk: _Disk, files: Mapping[str, bytes]) -> OutputError | None:
    """Write the files of one wish, from any thread; return what went wrong, which leaves nothing."""
    if disk.full is not None:
        return disk.full
    *fresh, timestamp = files
    place = os.path.join(root, os.path.dirname(timestamp))
    # The timestamp is replaced last: nothing leads to the others before. `atomic_write` would take as
    # long as signing does, for links and syncs that are not of use here.
    aside = os.path.join(place, f".edgec-{os.getpid()}.partial")
    written = {os.path.join(root, file): files[file] for file in fresh} | {aside: files[timestamp]}
    new = [path for path in written if not os.path.exists(path)]
    try:
        os.makedirs(place, exist_ok=True)
        for path, data in written.items():
            with open(path, "wb") as out:
                out.write(data)
        os.replace(aside, os.path.join(root, timestamp))
    except OSError as e:
        for path in new:
            with suppress(OSError):
                os.unlink(path)
        error = OutputError(f"cannot write to {place}: {e.strerror}")
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            disk.full = error
        return error
    with suppress(OSError):  # what is kept too long does no harm
        _remove_old(place)
    return None


def _remove_old(place: str) -> None:
    names = os.listdir(place)
    for role in ("targets", "snapshot"):
        ending = f".{role}.json"
        known = [n for n in names if n.endswith(ending) and n[: -len(ending)].isdigit()]
        if len(known) <= KEPT_VERSIONS:
            continue
        for name in sorted(known, key=lambda n: int(n.partition(".")[0]))[:-KEPT_VERSIONS]:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(place, name))


def _signers(director: DirectorRepository) -> Sequence[Any]:
    """Return signers that satisfy the root in force for every role that a device is told with."""
    found: dict[str, Any] = {}
    for role in _ROLES:
        needed = director.root.roles[role]
        at_hand = director.keys.signers(list(needed.keyids))
        if len(at_hand) < needed.threshold:
            raise TrustError(
                "assignments cannot be signed: the private key of role 'director' is not in "
                f"{', '.join(map(str, director.keys.directories))}",
                "key",
            )
        found |= {signer.public_key.keyid: signer for signer in at_hand}
    return list(found.values())
