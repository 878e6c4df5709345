"""The next version of an artifact: by a patch where one fits what is here, else whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.delta import ChunkMap, apply_delta
from edgec.device_agent._download import Surroundings, Wanted, discard, fetch, is_begun, is_there
from edgec.device_agent._line import Cancel, Limits, Spent
from edgec.device_agent._sources import Source
from edgec.errors import DeltaError, ExtraError, OutputError, TransferError

if TYPE_CHECKING:
    from edgec.trust import ChunkMap as MapFile
    from edgec.trust import Delta, ImageTarget

_LARGEST_MAP = 16 * 2**20
_FINAL = ("cancelled", "busy")


@dataclass(frozen=True, kw_only=True)
class Updated:
    """A new version that is here, whole and as promised.

    Attributes:
        path: Where.
        method: ``delta``, ``full``, or ``present`` where nothing had to be fetched.
        received: Bytes that came, those of attempts that failed included.
        requests: How many were made.
        notes: Why a cheaper way was not taken.
    """

    path: Path
    method: str
    received: int
    requests: int
    notes: tuple[str, ...] = ()


def fetch_update(
    target: ImageTarget,
    current: str | Path | None,
    sources: Callable[[str], Sequence[Source]],
    path: str | Path,
    *,
    limits: Limits | None = None,
    cancel: Cancel | None = None,
    progress: Callable[[int, int], None] | None = None,
    surroundings: Surroundings | None = None,
) -> Updated:
    """Bring the next version of an artifact to `path`, and verify it.

    A patch that begins at `current` is tried first. Whatever goes wrong with it, the full file follows: a
    patch may save bytes, and is never needed.

    Args:
        target: What signed metadata promises, and which patches and map of chunks it offers.
        current: The version that is here; None for none.
        sources: Gives the sources of a file by its place in the repository, the best first.
        path: Where the new version goes.
        limits, cancel, progress, surroundings: As of `fetch`, for each file.

    Raises:
        TransferError: As `fetch` raises it for the full file.
    """
    update = _Update(Path(path), sources, limits, cancel, progress, surroundings)
    if is_there(update.path, Wanted(length=target.length, sha256=target.sha256)):
        return update.done("present")
    # Where a part of the full file is here, a patch has failed before.
    patch = None if is_begun(update.path) else _fitting(target, current)
    if patch is not None and current is not None and update.by_patch(target, patch, Path(current)):
        return update.done("delta")
    update.whole(target, update.chunks(target.chunks, target.length) if target.chunks else None)
    return update.done("full")


def _fitting(target: ImageTarget, current: str | Path | None) -> Delta | None:
    """Return the smallest patch that begins at the version that is here."""
    if current is None or not target.deltas:
        return None
    digest = sha256()
    try:
        with open(current, "rb") as file:
            while data := file.read(2**20):
                digest.update(data)
    except OSError:
        return None
    mine = [delta for delta in target.deltas if delta.from_sha256 == digest.hexdigest()]
    return min(mine, key=lambda delta: delta.length, default=None)


class _Update:
    """One call of `fetch_update`."""

    def __init__(
        self,
        path: Path,
        sources: Callable[[str], Sequence[Source]],
        limits: Limits | None,
        cancel: Cancel | None,
        progress: Callable[[int, int], None] | None,
        surroundings: Surroundings | None,
    ) -> None:
        self.path = path
        self._sources, self._limits, self._cancel = sources, limits, cancel
        self._progress, self._world = progress, surroundings
        self._spent = Spent()
        self._notes: list[str] = []

    def chunks(self, file: MapFile, length: int) -> ChunkMap | None:
        """Return the map of the target's chunks; None where it is not to be had."""
        if file.length > _LARGEST_MAP:
            self._notes.append(f"the map of chunks has {file.length} bytes; at most {_LARGEST_MAP} are read")
            return None
        place = self._beside("chunks")
        try:
            self._fetch(file.path, file.length, file.sha256, place)
            return ChunkMap.from_bytes(place.read_bytes(), length=length)
        except (TransferError, OSError) as e:
            self._note("no map of chunks", e)
            return None

    def by_patch(self, target: ImageTarget, patch: Delta, current: Path) -> bool:
        """Make the new version of `current` and a patch; return whether that worked."""
        place = self._beside("delta")
        try:
            self._fetch(patch.path, patch.length, patch.sha256, place)
            apply_delta(
                current,
                place,
                self.path,
                length=target.length,
                sha256=target.sha256,
                aside=self._beside("applying"),
            )
        except (TransferError, DeltaError, OutputError, ExtraError) as e:
            self._note("no patch", e)
            return False
        return True

    def whole(self, target: ImageTarget, chunks: ChunkMap | None) -> None:
        """Fetch the new version whole."""
        self._remove("delta")
        self._fetch(target.location, target.length, target.sha256, self.path, chunks)

    def done(self, method: str) -> Updated:
        """Return how the new version came, and leave nothing beside it."""
        for kind in ("chunks", "delta", "applying"):
            self._remove(kind)
        return Updated(
            path=self.path,
            method=method,
            received=self._spent.received,
            requests=self._spent.requests,
            notes=tuple(self._notes),
        )

    def _fetch(
        self, location: str, length: int, sha256: str, place: Path, chunks: ChunkMap | None = None
    ) -> None:
        fetch(
            Wanted(length=length, sha256=sha256, chunks=chunks),
            self._sources(location),
            place,
            limits=self._limits,
            cancel=self._cancel,
            progress=self._progress if place == self.path else None,
            spent=self._spent,
            surroundings=self._world,
        )

    def _note(self, what: str, e: Exception) -> None:
        """Remember why a cheaper way was not taken; go no further where no way is to be taken.

        Raises:
            TransferError: It is `e`: the transfer was cancelled, and what came is kept.
        """
        if isinstance(e, TransferError) and e.reason in _FINAL:
            raise e
        self._notes.append(f"{what}: {e}")

    def _remove(self, kind: str) -> None:
        place = self._beside(kind)
        discard(place)
        with suppress(OSError):
            place.unlink()

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{kind}")
