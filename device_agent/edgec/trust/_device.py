"""What a device believes: the one place where metadata from outside becomes an assignment."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.errors import OutputError, TrustError
from edgec.trust._assignment import AssignedTarget, Assignment
from edgec.trust._commands import CommandLog, SignedCommand, open_command
from edgec.trust._floors import raised, with_epoch
from edgec.trust._match import match
from edgec.trust._metadata import (
    DAY_S,
    DIRECTOR,
    IMAGE,
    PREFIX,
    Extra,
    checked_name,
    instant,
    parse,
    seconds,
    verified_root_chain,
)
from edgec.trust._refresh import Refreshed, check_owner, is_unchanged, refresh, verified_roots
from edgec.trust._source import AskedOnce, KnownSource, MetadataSource, Source, open_source
from edgec.trust._state import TrustState, merged

_WORK = "work-"
_DIRECTORS_WORD = f"{DIRECTOR}/timestamp.json"


@dataclass(frozen=True)
class _Verified:
    """What was verified last, in this process.

    Attributes:
        files: That were; the very object that the state holds, until others take their place.
        assignment: What they say.
        issued: When the director signed them, in seconds since 1970, as it says.
    """

    files: Mapping[str, bytes]
    assignment: Assignment
    issued: int


@dataclass(frozen=True)
class _Image:
    """The image repository as it was verified last, in this process: orders come without news of it.

    Attributes:
        files: That were verified, by the names that tuf's client gives them.
        repository: What they say.
    """

    files: Mapping[str, bytes]
    repository: Refreshed


class DeviceTrust:
    """The trust of one device, kept in a directory of its own; use one object per directory.

    Image repository and director are checked each by tuf's client, in a scratch folder; then edgec
    checks what tuf does not know: that both agree, that the metadata is for this device and its
    hardware, that epoch, versions and rollback floors have not sunk. Only then is anything kept, in
    one durable write. New roots are kept as soon as they are verified, whatever else fails, so that a
    revoked key stays revoked.

    Time is the clock's, but never before the trusted time: that of the newest metadata that was
    verified. A clock that has not been set therefore cannot make old metadata valid again, and
    expired metadata refuses what is new but takes nothing away that runs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device_id: str,
        hardware: Collection[str],
        image_root: bytes,
        director_root: bytes,
        groups: Collection[str] = (),
        scratch: Path | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the trust of a device.

        Args:
            directory: Its own, on storage that survives a restart; made if missing.
            device_id: Id of the device.
            hardware: Names of the targets that it can run: ``{"rpi5", "cpu-arm64"}``.
            image_root: Root metadata of the image repository that the device was provisioned with.
            director_root: The same of the director.
            groups: Groups whose commands it obeys.
            scratch: Folder for files that last as long as an update, best in memory; `directory` if None.
            clock: Seconds since 1970; may be wrong.
            monotonic: Seconds that only grow while this object lives.

        Raises:
            TrustError: A root is not to be used, or the directory cannot be (``reason`` ``storage``).
        """
        self.device_id = checked_name(device_id, "the id of the device")
        self._hardware = frozenset(hardware)
        self._groups = frozenset(groups)
        self._scratch = directory if scratch is None else scratch
        self._clock, self._monotonic = clock, monotonic
        self._bootstrap = {IMAGE: image_root, DIRECTOR: director_root}
        self._built = max(
            Extra(verified_root_chain(root, {}, kind)).issued for kind, root in self._bootstrap.items()
        )
        self._state = TrustState(directory)
        self._log = CommandLog(directory / "commands.json", self.now)
        self._lock = threading.Lock()
        # Another one, so that no command waits for a slow server.
        self._command_lock = threading.Lock()
        self._verified: _Verified | None = None
        self._image: _Image | None = None
        self._heard: float | None = None  # when the director last said something new, by `monotonic`
        for left in self._scratch.glob(f"{_WORK}{self.device_id}-{'?' * 8}"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def healed(self) -> tuple[str, ...]:
        """Names of files that were damaged when the trust was opened, and are made anew."""
        return tuple(self._state.healed)

    @property
    def time_floor(self) -> float:
        """The trusted time in seconds since 1970: it is not earlier, whatever the clock says."""
        return float(max(self._built, self._state.floors.time_s))

    @property
    def epoch(self) -> int:
        """Of the newest assignment that was verified; 0 before the first."""
        return self._state.floors.epoch.value

    def now(self) -> float:
        """Return the time that expiry is judged by: the clock's, but not before the trusted time."""
        clock = self._clock()
        return max(self.time_floor, clock)

    @property
    def stale_since(self) -> float | None:
        """When the metadata at hand began to be expired, in seconds since 1970; None while it is not.

        What runs goes on running; nothing new is accepted until fresh metadata arrives.
        """
        if self._current() is not None:
            return None
        expires = [
            parse(data, name).signed.expires.timestamp()
            for name, data in self._state.files.items()
            if "/root_history/" not in name
        ]
        expires += [self._root(kind).expires.timestamp() for kind in self._bootstrap]
        return min(expires) if min(expires) <= self.now() else None

    def update(self, source: Source) -> Assignment:
        """Fetch and verify metadata, and return what this device shall run.

        Args:
            source: Base URL of a repository, its directory, or the files of a message by name.

        Raises:
            TrustError: Something is not to be trusted or cannot be had; what was verified before holds
                on. `reason` is a word: ``expired``, ``signature``, ``rollback``, ``epoch``, ``device``,
                ``hardware``, ``unknown_target``, ``mismatch``, ``rollback_floor``, ``repository``,
                ``digest``, ``malformed``, ``too_large``, ``too_slow``, ``not_found``, ``unreachable``,
                ``storage``.
        """
        with self._lock:
            return self._taken_over(open_source(source))

    def known(self) -> Assignment:
        """Return what is to run by the metadata at hand; as after a restart without a link.

        What this object has verified is not verified again while it holds the same bytes and none of it has
        expired: nothing but the time could have changed the outcome.

        Raises:
            TrustError: As `update`; ``not_found`` where there never was an assignment.
        """
        verified = self._current()
        if verified is not None:
            return verified.assignment
        with self._lock:
            # What is known now: another thread may have learned more until the lock was free.
            return self._taken_over(KnownSource(self._state.files))

    def is_fresh(self, seconds: float) -> bool:
        """Return whether what was verified last is news of the director's, signed and heard within `seconds`.

        News is what this object fetched and had not known: what was kept on disk says nothing of what came
        after it, nor do the same bytes once more. When it was heard is counted by a monotonic clock, because
        the other may come back from disk too, with the time of the power cut; when it was signed is the
        director's word, and where the device's clock is far from it, either way, the answer is no.
        """
        verified, heard = self._current(), self._heard
        if verified is None or heard is None or self._monotonic() - heard > seconds:
            return False
        return abs(self._clock() - verified.issued) <= seconds

    def recheck(self, assigned: AssignedTarget, source: Source | None = None) -> AssignedTarget:
        """Check right before an installation that it is still wanted and allowed.

        Args:
            assigned: What `update` returned, maybe long ago.
            source: Where to look for newer metadata; only what is known already if None.

        Raises:
            TrustError: It was revoked or replaced (``reason`` ``revoked``), its metadata has expired, or
                as `update`.
        """
        current = (self.known() if source is None else self.update(source)).target(assigned.model)
        if current is None or (current.path, current.sha256) != (assigned.path, assigned.sha256):
            raise TrustError(
                f"{assigned.path} is not assigned to {self.device_id} any more: do not install it", "revoked"
            )
        return current

    def verify_command(self, envelope: bytes) -> SignedCommand:
        """Check a signed command, and note that it was received: the same one is refused from now on.

        Args:
            envelope: As `sign_command` made it.

        Raises:
            TrustError: It is malformed, not signed by the director, for another device (``device``), past its
                time (``expired``) or was received before (``replay``).
        """
        with self._command_lock:
            root = self._root(DIRECTOR)
            if root.is_expired(instant(self.now())):
                raise TrustError("the director's root has expired: commands cannot be verified", "expired")
            role = root.roles["targets"]
            keys = [root.keys[keyid] for keyid in role.keyids]
            command = open_command(envelope, keys, role.threshold)
            self._check_receiver(command)
            try:
                self._log.receive(command, self.now())
            except OutputError as e:
                raise TrustError(f"the command cannot be noted and is not obeyed: {e}", "storage") from e
            return command

    def _check_receiver(self, command: SignedCommand) -> None:
        if command.device not in ("", self.device_id):
            raise TrustError(f"the command is for {command.device}, and this is {self.device_id}", "device")
        if command.group and command.group not in self._groups:
            raise TrustError(f"the command is for group {command.group}; this device is not in it", "device")

    def _taken_over(self, source: MetadataSource) -> Assignment:
        once = AskedOnce(source)
        try:
            return self._update(once)
        except TrustError as e:
            raise (self._expired(e) if e.reason == "expired" else e) from e.__cause__
        except (OutputError, OSError) as e:
            raise TrustError(f"what was fetched cannot be kept: {e}", "storage") from e
        finally:
            # What was verified is kept with its client, and that with its source.
            once.close()

    def _update(self, source: MetadataSource) -> Assignment:
        before, asked = self._state.files.get(_DIRECTORS_WORD), self._monotonic()
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix=f"{_WORK}{self.device_id}-") as work:
            director = self._refresh(DIRECTOR, source, Path(work, DIRECTOR))
            kept = self._unchanged(source, director)
            image = self._refresh(IMAGE, source, Path(work, IMAGE)) if kept is None else kept.repository
            fresh = {DIRECTOR: director, IMAGE: image}
            floors = raised(self._state.floors, fresh, self._learned)
            assignment, releases = match(
                fresh[DIRECTOR],
                fresh[IMAGE],
                device_id=self.device_id,
                hardware=self._hardware,
                floors=floors,
            )
            floors = with_epoch(merged(floors, releases=releases), fresh[DIRECTOR], assignment)
            roles = [PREFIX + target.model for target in assignment.targets]
            self._keep(DIRECTOR, Path(work, DIRECTOR), [])
            if kept is None:
                self._keep(IMAGE, Path(work, IMAGE), roles)
            self._state.save(floors)
        self._image = kept or _Image(self._state.of(IMAGE), image)
        if self._state.files[_DIRECTORS_WORD] != before:
            self._heard = asked
        issued = Extra(fresh[DIRECTOR].timestamp).issued
        self._verified = _Verified(self._state.files, assignment, issued)
        return assignment

    def _keep(self, kind: str, folder: Path, roles: Sequence[str]) -> None:
        names = [f"{role}.json" for role in ("timestamp", "snapshot", "targets", *roles)]
        self._state.keep(kind, self._roots(kind) | {name: (folder / name).read_bytes() for name in names})

    def _unchanged(self, source: MetadataSource, director: Refreshed) -> _Image | None:
        """Return the image repository as it was verified last, where verifying it again would end the same.

        That is: the same files are known and needed, the source has nothing newer, and nothing has expired.
        """
        image = self._image
        if image is None or image.files != self._state.of(IMAGE):
            return None
        roles = {PREFIX + path.partition("/")[0] for path in director.targets.targets}
        kept = {name.removesuffix(".json") for name in image.files if name.startswith(PREFIX)}
        if roles != kept or not image.repository.is_valid(self.now(), roles):
            return None
        timestamp = image.files["timestamp.json"]
        same = is_unchanged(IMAGE, image.repository, timestamp, source, device_id=self.device_id)
        return image if same else None

    def _current(self) -> _Verified | None:
        """Return what was verified, where that is what is at hand still and has not expired; else None."""
        verified = self._verified
        if verified is None or verified.files is not self._state.files:
            return None
        return verified if self.now() < verified.assignment.expires else None

    def _refresh(self, kind: str, source: MetadataSource, folder: Path) -> Refreshed:
        folder.mkdir()
        try:
            fresh = refresh(
                kind,
                self._bootstrap[kind],
                self._state.of(kind),
                source,
                folder=folder,
                device_id=self.device_id,
                now_s=self.now(),
            )
        finally:
            self._keep_roots(kind, folder)
        check_owner(fresh, kind, self.device_id)
        return fresh

    def _keep_roots(self, kind: str, folder: Path) -> None:
        roots = verified_roots(folder, self._bootstrap[kind], kind)
        if roots != self._roots(kind):
            self._state.keep(kind, self._state.of(kind) | roots)
            self._state.save(self._state.floors)

    def _roots(self, kind: str) -> dict[str, bytes]:
        return {name: data for name, data in self._state.of(kind).items() if name.startswith("root_history/")}

    def _root(self, kind: str) -> Any:
        later = {int(name.split("/")[1].split(".")[0]): data for name, data in self._roots(kind).items()}
        return verified_root_chain(self._bootstrap[kind], later, kind)

    def _expired(self, error: TrustError) -> TrustError:
        since = self.stale_since
        stale = f"stale since {instant(since).isoformat()}, " if since is not None else ""
        return TrustError(f"{error} ({stale}and it is {instant(self.now()).isoformat()} here)", "expired")

    def _learned(self, issued: int) -> int:
        """Return what is believed of the time that metadata says it was signed at.

        A clock that runs is not to be left behind for ever by a publisher whose own is far ahead.
        """
        clock = self._clock()
        return min(issued, int(seconds(instant(clock))) + DAY_S) if clock >= self.time_floor else issued
