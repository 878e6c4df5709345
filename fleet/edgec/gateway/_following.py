"""The gateway serves what the devices of a fleet run: it fetches, loads and unloads by itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Protocol, TypeVar

from edgec.artifact import Artifact, atomic_write
from edgec.errors import EdgecError, FleetError, OutputError
from edgec.gateway._counters import Counters
from edgec.gateway._fleet import Seen
from edgec.serving import App, Slot

T = TypeVar("T")
_LIST = "following.json"
_MOST_LIST = 2**20


class Source(Protocol):
    """Where a gateway learns what to serve; called in threads, once at a time."""

    def look(self) -> Seen:
        """Return what devices run now; FleetError where that cannot be known."""
        ...

    def fetch(self, digest: str, path: Path) -> None:
        """Write an artifact to a path, verified; EdgecError where that cannot be done."""
        ...


class Following:
    """Keeps what is served the same as what devices run. For one event loop.

    Files and the list of them are kept in a directory, so that a gateway that is started while the fleet is
    away serves what it did. An artifact that cannot be served here is left alone, and said once. A disk that
    fails keeps nothing from being served or taken out of service; it is said and counted.
    """

    def __init__(
        self,
        source: Source,
        directory: Path,
        *,
        every_s: float,
        most: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Serve nothing yet.

        Args:
            source: The fleet.
            directory: For its artifacts, and nothing else; made if missing.
            every_s: How often it is asked.
            most: Artifacts that are served at most: those that most devices run.
            clock: Seconds since 1970.
        """
        self._clock = clock
        self._source, self._directory = source, directory
        self._every_s, self._most = every_s, most
        self._slots: dict[str, Slot] = {}
        self._unfit: dict[str, str] = {}
        self._counters = Counters()
        self._app: App | None = None
        self._task: asyncio.Task[None] | None = None
        #: Whether it knows, or knew before it was started, what devices run.
        self.is_ready = False

    async def start(self, app: App, counters: Counters) -> None:
        """Serve what was served before, then what devices run now; go on until `stop`.

        Raises:
            OutputError: There is no directory for artifacts.
        """
        self._app, self._counters = app, counters
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"cannot make the directory {self._directory}: {e.strerror}") from e
        before = await _in_thread(self._remembered)
        if before is not None:
            await self._serve(before, fetch=False)
        await self.turn()
        self._task = asyncio.ensure_future(self._follow())

    async def stop(self) -> None:
        """Ask the fleet no longer."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def turn(self) -> None:
        """Ask the fleet, and serve what it says."""
        try:
            seen = await _in_thread(self._source.look)
        except FleetError as e:
            getLogger(__name__).warning("%s", e)
            self._counters.add("fleet_failures_total")
            self._counters.set("fleet_up", 0)
            return
        self._counters.set("fleet_up", 1)
        await self._serve(seen, fetch=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.turn()
            except Exception as e:  # noqa: BLE001
                # Whatever it is, the next turn may do better; without one, what is quarantined would be
                # served for ever.
                self._failed("the fleet is not followed in this turn", e)

    async def _serve(self, seen: Seen, *, fetch: bool) -> None:
        """Load what is missing, then unload what is left over; what is bad goes first."""
        for digest in [d for d in self._slots if d in seen.quarantined]:
            await self._drop(digest, "it is quarantined")
        runs = {digest: n for digest, n in seen.devices.items() if digest not in seen.quarantined}
        wanted = sorted(runs, key=lambda digest: (-runs[digest], digest))
        kept: list[str] = []
        for digest in wanted:
            if len(kept) < self._most and (digest in self._slots or await self._take(digest, fetch)):
                kept.append(digest)
        for digest in [d for d in self._slots if d not in kept]:
            await self._drop(digest, "no device runs it any more, or others more do")
        self._counters.set("fleet_artifacts", len(self._slots))
        self._counters.set("fleet_artifacts_left_out", len(runs) - len(self._slots))
        self.is_ready = True
        if fetch:
            self._counters.set("fleet_followed_timestamp_seconds", self._clock())
            try:
                await _in_thread(partial(self._remember, {d: runs[d] for d in kept}))
            except OutputError as e:
                self._failed("what is served is not noted for the next start", e)

    async def _take(self, digest: str, fetch: bool) -> bool:
        """Fetch an artifact where it is missing, and serve it; return whether it is served."""
        assert self._app is not None
        if digest in self._unfit:
            return False
        path = self._directory / f"{digest}.edgec"
        try:
            if not path.is_file():
                if not fetch:
                    return False
                await _in_thread(partial(self._source.fetch, digest, path))
        except (FleetError, OutputError) as e:  # it may be better next time
            getLogger(__name__).warning("%s", e)
            self._counters.add("fleet_failures_total")
            return False
        except EdgecError as e:
            await self._leave_out(digest, path, str(e))
            return False
        try:
            if await _in_thread(partial(_stays, path)):
                await self._leave_out(digest, path, "its inputs stay on devices")
                return False
            self._slots[digest] = await self._app.adopt(path, digest[:12])
        except EdgecError as e:
            await self._leave_out(digest, path, str(e))
            return False
        getLogger(__name__).info("serving %s: %s %s", digest, *_named(self._slots[digest]))
        return True

    async def _leave_out(self, digest: str, path: Path, why: str) -> None:
        self._unfit[digest] = why
        getLogger(__name__).warning("%s is not served: %s", digest, why)
        await self._remove(path)

    async def _drop(self, digest: str, why: str) -> None:
        assert self._app is not None
        slot = self._slots.pop(digest)
        getLogger(__name__).info("serving %s no longer: %s %s: %s", digest, *_named(slot), why)
        await self._app.dismiss(slot)
        await self._remove(slot.path)

    async def _remove(self, path: Path) -> None:
        try:
            await _in_thread(partial(path.unlink, missing_ok=True))
        except OSError as e:
            self._failed("a file that is not served any more stays", e)

    def _failed(self, what: str, error: Exception) -> None:
        known = isinstance(error, (EdgecError, OSError))
        getLogger(__name__).warning("%s: %s", what, error, exc_info=None if known else error)
        self._counters.add("fleet_follow_failures_total")

    def _remember(self, runs: dict[str, int]) -> None:
        with atomic_write(self._directory / _LIST) as out:
            out.write(json.dumps({"devices": runs}).encode())

    def _remembered(self) -> Seen | None:
        path = self._directory / _LIST
        try:
            if path.stat().st_size > _MOST_LIST:
                return None
            runs = json.loads(path.read_bytes())["devices"]
            return Seen({str(digest): int(n) for digest, n in runs.items()}, frozenset())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # there is none, or it is damaged: the fleet says it anew


def _stays(path: Path) -> bool:
    with Artifact.open(path) as opened:
        return opened.manifest.privacy.inputs_stay


def _named(slot: Slot) -> tuple[str, str]:
    return slot.name, slot.version


async def _in_thread(call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, call)
