"""What both repositories share: files on a directory, root metadata, and roles that wait for signatures.

The directory can be served by any web server as it is. Metadata that lacks signatures lies in
``staged/``; nothing in force refers to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.artifact import atomic_write, hold
from edgec.errors import OutputError, TrustError
from edgec.trust._keys import KeyRing
from edgec.trust._metadata import check_next_root, expiry, field, parse, verified_root_chain
from edgec.trust._tuf import Metadata, Role, Root, exceptions

Clock = Callable[[], float]
# For each role of a root, its keys, and how many of them must sign.
RootRoles = Mapping[str, tuple[Sequence[Any], int]]
# Pinned by a newer file, these are still asked for by devices in the midst of a refresh.
KEPT_VERSIONS = 3


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """For how many days metadata is valid from the time it was signed.

    Attributes:
        root: People sign it, at a ceremony.
        targets: People sign it, when they publish.
        online: Snapshot and timestamp of the image repository: renewed by a machine.
        director: All that the director signs: renewed by a machine.
    """

    root: float = 365
    targets: float = 365
    online: float = 30
    director: float = 30


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """How far a role is signed.

    Attributes:
        needed: Signatures it takes; for a root after the first, of the old and of the new keys each.
        signed: Names of the keys that have signed.
        missing: Names of keys that could.
        complete: Whether it may be put in force.
    """

    needed: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    complete: bool


class SignedRepository:
    """A repository on a directory; `kind` is ``image`` or ``director``.

    Attributes:
        directory: The one that is served; metadata of this repository is in the folder `kind` of it.
        kind: ``image`` or ``director``.
        keys: At hand.
        lifetimes: Of what is signed from now on.
    """

    kind = ""

    def __init__(
        self, directory: Path, keys: KeyRing, *, lifetimes: Lifetimes | None = None, clock: Clock = time.time
    ) -> None:
        self.directory = directory
        self.keys = keys
        self.lifetimes = lifetimes or Lifetimes()
        self.clock = clock
        self._verified: tuple[dict[int, bytes], Any] = ({}, None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the repository.

        Raises:
            OutputError: The directory cannot be written to, or another process writes to it.
        """
        path = self.directory / "staged" / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = hold(path)
        except BlockingIOError as e:
            raise OutputError(f"another process writes to {self.directory}; run again when it is done") from e
        except OSError as e:
            raise OutputError(f"cannot write to the repository {self.directory}: {e.strerror}") from e
        try:
            yield
        finally:
            os.close(descriptor)

    # Files

    def read(self, file: str) -> bytes | None:
        """Return the bytes of a file by its name in the repository; None where there is none."""
        try:
            return (self.directory / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise TrustError(f"cannot read {self.directory / file}: {e.strerror}", "unreachable") from e

    def _write(self, file: str, data: bytes) -> None:
        path = self.directory / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"cannot make the folder {path.parent}: {e.strerror}") from e
        with atomic_write(path) as out:
            out.write(data)

    def _remove_old(self, folder: str, role: str, version: int) -> None:
        for past in range(version - KEPT_VERSIONS, max(version - 3 * KEPT_VERSIONS, 0), -1):
            with suppress(FileNotFoundError):
                (self.directory / folder / f"{past}.{role}.json").unlink()

    # Root

    def root_files(self) -> dict[int, bytes]:
        """Return root metadata in force, by version."""
        files: dict[int, bytes] = {}
        while (data := self.read(f"{self.kind}/{len(files) + 1}.root.json")) is not None:
            files[len(files) + 1] = data
        return files

    @property
    def root(self) -> Any:
        """The newest verified root.

        Raises:
            TrustError: There is none yet (``reason`` ``not_found``), or it is damaged.
        """
        files = self.root_files()
        if not files:
            raise TrustError(
                f"{self.directory} has no {self.kind} root in force: run  edgec repo init, and let every key "
                "holder sign  (edgec keys sign)",
                "not_found",
            )
        if self._verified[0] != files:
            self._verified = (files, verified_root_chain(files[1], files, self.kind))
        return self._verified[1]

    def stage_root(self, roles: RootRoles) -> None:
        """Put a new root before the key holders.

        Args:
            roles: For each role of the metadata, its keys, and how many must sign.

        Raises:
            TrustError: A role has fewer keys than must sign (``reason`` ``threshold``).
        """
        version = len(self.root_files()) + 1
        now = self.clock()
        new = Root(
            version=version,
            expires=expiry(now, self.lifetimes.root),
            roles={role: Role([], threshold) for role, (_, threshold) in roles.items()},
            consistent_snapshot=True,
            unrecognized_fields=field(self.kind, now),
        )
        for role, (keys, threshold) in roles.items():
            # The same key under two names would sign for two.
            distinct = {str(key.keyval): key for key in keys}
            if not 1 <= threshold <= len(distinct):
                raise TrustError(
                    f"{threshold} signatures of {role} were asked for, of {len(distinct)} different keys: "
                    "make more keys  (edgec keys init), or ask for fewer",
                    "threshold",
                )
            for key in distinct.values():
                new.add_key(key, role)
        self.stage("root", Metadata(new))

    # Staging

    def stage(self, role: str, metadata: Any) -> None:
        """Sign `metadata` with the keys at hand, and keep it until it has all signatures."""
        self.sign_with_ring(role, metadata)
        self._write(f"staged/{self.kind}/{role}.json", metadata.to_bytes())

    def staged(self) -> dict[str, Any]:
        """Return metadata that waits for signatures, by role."""
        folder = self.directory / "staged" / self.kind
        paths = sorted(folder.glob("[!.]*.json"))
        return {path.name[:-5]: parse(path.read_bytes(), str(path)) for path in paths}

    def unstage(self, role: str) -> None:
        """Drop metadata that waits for signatures; nothing happens where there is none."""
        with suppress(FileNotFoundError):
            (self.directory / "staged" / self.kind / f"{role}.json").unlink()

    def sign_staged(self) -> list[str]:
        """Add signatures of the keys at hand to what waits for them; return the roles that got one."""
        gained = []
        for role, metadata in self.staged().items():
            before = set(metadata.signatures)
            self.sign_with_ring(role, metadata)
            if set(metadata.signatures) != before:
                self._write(f"staged/{self.kind}/{role}.json", metadata.to_bytes())
                gained.append(role)
        return gained

    def sign_with_ring(self, role: str, metadata: Any) -> None:
        """Sign with every key at hand that may, and has not yet; keys of a staged root count."""
        for signer in self.keys.signers(self._keyids(role, metadata)):
            if signer.public_key.keyid not in metadata.signatures:
                metadata.sign(signer, append=True)

    def release_root(self) -> bool:
        """Put the staged root in force if it has all signatures; return whether it did."""
        new = self.staged().get("root")
        if new is None or not self.signatures("root", new).complete:
            return False
        files = self.root_files()
        if new.signed.version == len(files) + 1:
            if files:
                check_next_root(self.root, new, self.kind)
            self._write(f"{self.kind}/{new.signed.version}.root.json", new.to_bytes())
        self.unstage("root")
        return True

    def signatures(self, role: str, metadata: Any) -> Signatures:
        """Say how far `metadata` is signed, by the root that is about to be in force."""
        needed, signed, missing, complete = 0, dict[str, None](), dict[str, None](), True
        for delegator in self._judges(role, metadata):
            keyids = delegator.get_delegated_role(role).keyids
            needed = max(needed, delegator.get_delegated_role(role).threshold)
            try:
                delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except exceptions.UnsignedMetadataError:
                complete = False
            for keyid in keyids:
                known = signed if keyid in metadata.signatures else missing
                known[self.keys.name_of(keyid)] = None
        return Signatures(
            needed=needed, signed=tuple(signed), missing=tuple(missing), complete=complete and needed > 0
        )

    def delegators(self, role: str) -> list[Any]:
        """Return metadata that says who signs `role`: what is in force, then what is in preparation."""
        staged = self.read(f"staged/{self.kind}/root.json")
        found = [self.root] if self.root_files() else []
        return found if staged is None else [*found, parse(staged, "the staged root").signed]

    def _judges(self, role: str, metadata: Any) -> list[Any]:
        """Return who must be satisfied: of a root the old and the new one, else what will be in force."""
        found = [d for d in self.delegators(role) if _delegates(d, role)]
        if role == "root":
            return ([self.root] if self.root_files() else []) + [metadata.signed]
        staged = self.staged().get("root")
        ready = staged is None or self.signatures("root", staged).complete
        return found[-1:] if ready else found[:1]

    def _keyids(self, role: str, metadata: Any) -> list[str]:
        found = [*self.delegators(role), *([metadata.signed] if role == "root" else [])]
        return [keyid for d in found if _delegates(d, role) for keyid in d.get_delegated_role(role).keyids]


def _delegates(delegator: Any, role: str) -> bool:
    try:
        delegator.get_delegated_role(role)
    except ValueError:
        return False
    return True
