"""Two places on disk for one model, and one name that always leads to a whole artifact.

::

    MODELS/NAME/current.edgec -> a/model.edgec      what serves: replaced by one rename, never written to
    MODELS/NAME/state.json                          the same as JSON, for readers; a moment later
    MODELS/NAME/a/model.edgec  a/slot.json          a slot: the artifact, then what it is
    MODELS/NAME/b/...                               the other one
    MODELS/NAME/incoming/DIGEST.edgec               a download; ".DIGEST..." and "DIGEST..." belong to it
    MODELS/NAME/incoming/reserved                   space kept free until the download has taken it up
    MODELS/NAME/update.json                         mirror of the update's state, kept by the store

No file is changed in place, so a process that has one open or mapped keeps what it has. What a crash may
leave behind has a name like ``.edgec-*.partial``.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from edgec.artifact import sync_directory
from edgec.device_agent._durable import make_directory, read_json, sync_file, unlink, write_json
from edgec.device_agent._plain import from_plain
from edgec.device_agent._state import Installed, Slot, State
from edgec.errors import AgentError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

SLOTS: tuple[Slot, ...] = ("a", "b")
ARTIFACT = "model.edgec"
# Beside the download: the database, logs, the state of other programs.
HEADROOM = 4 * 2**20
_BLOCK = 2**20


class Slots:
    """The two slots of one model.

    Args:
        models: Directory of all models; made if it is not there.
        model: Name of this one: ``[A-Za-z0-9][A-Za-z0-9_.-]{0,63}``.
    """

    def __init__(self, models: Path, model: str) -> None:
        self.model = model
        self.directory = models / model

    @property
    def link(self) -> Path:
        """The name under which applications open the model."""
        return self.directory / "current.edgec"

    def artifact(self, slot: Slot) -> Path:
        """Return where a slot's artifact lies, if it does."""
        return self.directory / slot / ARTIFACT

    def incoming(self, digest: str) -> Path:
        """Return where a download goes; its directory is made."""
        make_directory(self.directory / "incoming")
        return self.directory / "incoming" / f"{digest}.edgec"

    def current(self) -> Slot | None:
        """Return the slot that serves, by what the link says."""
        try:
            target = os.readlink(self.link)
        except OSError:
            return None
        return next((slot for slot in SLOTS if target == f"{slot}/{ARTIFACT}"), None)

    def installed(self, slot: Slot) -> Installed | None:
        """Return what a slot says that it holds; None for an empty one, or half of one."""
        plain = read_json(self.directory / slot / "slot.json")
        try:
            found = from_plain(Installed, {**plain, "slot": slot}, "slot.json")
            size = self.artifact(slot).stat().st_size
        except (AgentError, OSError):
            return None
        return found if size == found.length else None

    def found(self) -> State:
        """Return a state made of nothing but what is on disk, for where every note of it is lost."""
        serving = self.current()
        active = None if serving is None else self.installed(serving)
        other = next((self.installed(slot) for slot in SLOTS if active and slot != serving), None)
        previous = other if active and other and other.digest != active.digest else None
        return State(model=self.model, active=active, previous=previous)

    def whole(self, installed: Installed) -> bool:
        """Read a slot's artifact from end to end; return whether it is what it should be."""
        return self.installed(installed.slot) == installed and _is(self.artifact(installed.slot), installed)

    def reserve(self, digest: str, length: int, keep: tuple[str, ...]) -> None:
        """Make sure that a download fits; only what belongs to no kept digest makes room for it.

        Raises:
            OutputError: There is no space for it.
        """
        self.clean(keep, unless=digest)
        parts = [p for dot in ("", ".") for p in self.incoming(digest).parent.glob(f"{dot}{digest}*")]
        here = min(sum(p.stat().st_size for p in parts), length)
        reserved = self.directory / "incoming" / "reserved"
        descriptor = os.open(reserved, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, max(length - here, 0) + HEADROOM)
        except OSError as e:
            with suppress(FileNotFoundError):
                reserved.unlink()
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            free = os.statvfs(self.directory)
            raise OutputError(
                f"{self.model} needs {length - here + HEADROOM} bytes in {self.directory}, and "
                f"{free.f_bavail * free.f_frsize} are free: free some space, or wait for a smaller update"
            ) from e
        finally:
            os.close(descriptor)

    def release(self, left: int = 0) -> None:
        """Give reserved space to the download as it grows, until `left` bytes of it are missing."""
        reserved = self.directory / "incoming" / "reserved"
        with suppress(FileNotFoundError):
            if left > 0:
                os.truncate(reserved, min(left + HEADROOM, reserved.stat().st_size))
            else:
                reserved.unlink()

    def stage(self, wanted: Installed) -> None:
        """Move a download into its slot, durably; one that is there already is only checked.

        Raises:
            AgentError: The slot serves, or neither download nor slot holds the artifact.
        """
        slot, source = wanted.slot, self.incoming(wanted.digest)
        if self.whole(wanted):
            return
        if self.current() == slot:
            raise AgentError(
                f"slot {slot} of {self.model} serves; the other one must take {wanted.digest:.12}"
            )
        if not source.exists():
            # A loss of power came between the move and the note of it.
            source = self.artifact(slot)
        if not _is(source, wanted):
            raise AgentError(
                f"{source} does not hold {wanted.digest:.12} of {wanted.length} bytes: fetch it again"
            )
        directory = self.directory / slot
        make_directory(directory)
        sync_file(source)
        unlink(directory / "slot.json")
        sync_directory(directory)
        if source != self.artifact(slot):
            os.replace(source, self.artifact(slot))
            sync_directory(directory)
            sync_directory(source.parent)
        write_json(
            directory / "slot.json",
            {"v": 1, "digest": wanted.digest, "length": wanted.length, "target": wanted.target},
        )
        self.release()

    def switch(self, installed: Installed, *, proven: bool) -> None:
        """Make a slot current: before, the other one serves, and afterwards this one, and nothing between.

        Raises:
            AgentError: The slot does not hold this artifact.
        """
        if self.installed(installed.slot) != installed:
            raise AgentError(f"slot {installed.slot} of {self.model} does not hold {installed.digest:.12}")
        if self.current() != installed.slot:
            aside = self.directory / f".edgec-{os.getpid()}-{os.urandom(4).hex()}.partial"
            os.symlink(f"{installed.slot}/{ARTIFACT}", aside)
            os.replace(aside, self.link)
        sync_directory(self.directory)
        # The link has decided; what describes it is written again by the cleaning that follows.
        with suppress(OutputError):
            self._describe(installed, proven=proven)

    def prove(self, installed: Installed) -> None:
        """Tell readers that what serves has passed its probation."""
        self._describe(installed, proven=True)

    def _describe(self, installed: Installed, *, proven: bool) -> None:
        plain = {
            "v": 1,
            "model": self.model,
            "digest": installed.digest,
            "length": installed.length,
            "target": installed.target,
            "file": f"{installed.slot}/{ARTIFACT}",
            "proven": proven,
        }
        if read_json(self.directory / "state.json") != plain:
            write_json(self.directory / "state.json", plain)

    def close(self) -> None:
        """Let nothing serve."""
        unlink(self.link)
        unlink(self.directory / "state.json")
        if self.directory.is_dir():
            sync_directory(self.directory)

    def clean(self, keep: tuple[str, ...], unless: str = "") -> None:
        """Remove downloads, reservations, strays, and slots that hold none of `keep` and do not serve.

        Args:
            keep: Digests in slots.
            unless: Digest of a download that stays.
        """
        self.sweep()
        incoming = self.directory / "incoming"
        if incoming.is_dir():
            for path in incoming.iterdir():
                # What is on its way, and patches, have a dot before the digest.
                if not unless or not path.name.lstrip(".").startswith(unless):
                    unlink(path)
        serving = self.current()
        for slot in SLOTS:
            held = self.installed(slot)
            if slot != serving and (held is None or held.digest not in (*keep, unless)):
                self._empty(slot)

    def sweep(self) -> None:
        """Remove what a crash has left half written."""
        for directory in (self.directory, *(self.directory / slot for slot in SLOTS)):
            for path in directory.glob(".edgec-*.partial"):
                unlink(path)

    def _empty(self, slot: Slot) -> None:
        directory = self.directory / slot
        if directory.is_dir():
            # First what says that there is something, so that there never is half of it.
            unlink(directory / "slot.json")
            sync_directory(directory)
            for path in directory.iterdir():
                unlink(path)
            sync_directory(directory)


def _is(path: Path, wanted: Installed) -> bool:
    digest = hashlib.sha256()
    try:
        if path.stat().st_size != wanted.length:
            return False
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == wanted.digest
