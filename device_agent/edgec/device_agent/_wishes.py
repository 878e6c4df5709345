"""What the fleet wants: heard over the broker or looked up, believed only as far as it is signed."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.artifact import atomic_write
from edgec.device_agent._supply import is_url
from edgec.errors import OutputError, ProtocolError, TrustError
from edgec.protocol import Alert, Desired, DesiredView

if TYPE_CHECKING:
    import ssl

    from edgec.device_agent._seams import Clock
    from edgec.trust import AssignedTarget, Assignment, DeviceTrust
    from edgec.trust import Source as MetadataSource

_log = logging.getLogger(__name__)
_FIRST_RETRY_S = 30.0
# Messages that wait to be checked; anyone on the broker may send them, and none is believed before its turn.
_MOST_WAITING = 8
# Where it says nothing about who signed: the place was not to be reached, or is not up to date.
_ELSEWHERE = frozenset(("unreachable", "too_slow", "not_found"))
# What may be otherwise in a while: the network, the disk, or the clock.
_PASSES = _ELSEWHERE | {"storage", "expired"}
_LAST_RETRY_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a look for what is wanted.

    Attributes:
        assignment: What is to run; None where nothing new is believed.
        error: What is not believed, and why; there may be an assignment beside it, of an earlier epoch
            than the one announced.
        desired: The message that it was about; None for a look at the sources.
    """

    assignment: Assignment | None
    error: TrustError | None
    desired: Desired | None


class Wishes:
    """Keeps what is wanted of a device. `turn` is called from one thread; checking runs in another.

    Args:
        trust: Of the device.
        device: Its id.
        sources: Base URLs and directories of the owner's settings.
        allow_http: Whether ``http://`` is allowed.
        context: For TLS with sources; None for the system's defaults.
        refresh_s: How often sources are asked; 0 for never.
        path: Where the newest believed message is kept.
        clock: Of the agent.
        spawn: Runs a function in a thread.
    """

    def __init__(
        self,
        *,
        trust: DeviceTrust,
        device: str,
        sources: Sequence[str],
        allow_http: bool,
        refresh_s: float,
        path: Path,
        clock: Clock,
        spawn: Callable[[Callable[[], None]], None],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._trust, self._device = trust, device
        self._own = tuple(sources)
        self._allow_http, self._context = allow_http, context
        self._refresh_s = refresh_s
        self._path = path
        self._clock = clock
        self._spawn = spawn
        self._results: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._view = _read_view(path)
        self._waiting: deque[Desired] = deque(maxlen=_MOST_WAITING)
        # Messages to be checked again, and when; lost with the process, whose successor hears them again.
        self._again: deque[tuple[float, Desired]] = deque(maxlen=_MOST_WAITING)
        self._busy = False
        self._due: float | None = clock.monotonic() if self._own and refresh_s else None
        self._failures = 0
        self._error: TrustError | None = None
        self.targets: dict[str, AssignedTarget] = {}

    @property
    def epoch(self) -> int:
        """The greatest epoch that was believed."""
        return max(self._view.epoch, self._trust.epoch)

    @property
    def error(self) -> TrustError | None:
        """Why the last look brought nothing; None where it did."""
        return self._error

    @property
    def busy(self) -> bool:
        """Whether something is being checked."""
        return self._busy

    def alerts(self) -> list[Alert]:
        """Return what a person should know."""
        found = []
        if self._view.conflict:
            detail = f"epoch {self._view.epoch} was issued twice, with different models: two servers?"
            found.append(Alert(reason="desired_conflict", detail=detail))
        if self._view.regressed_to is not None:
            detail = f"the broker retains epoch {self._view.regressed_to}, and {self.epoch} was seen here"
            found.append(Alert(reason="regressed", detail=detail))
        if self._error is not None and self._error.reason not in _ELSEWHERE:
            found.append(Alert(reason=self._error.reason, detail=f"not believed: {self._error}"[:1000]))
        return found

    def metadata(self, desired: Desired | None = None) -> list[MetadataSource]:
        """Return where newer metadata may be: the owner's places first, then those that the fleet names.

        Args:
            desired: Message whose places count; None for the newest that was believed.
        """
        from edgec.trust import DirectorySource, HttpSource

        found: list[MetadataSource] = []
        for base in self.bases(desired):
            if not is_url(base):
                found.append(DirectorySource(Path(base)))
            elif base.startswith("https://") or self._allow_http:
                try:
                    found.append(HttpSource(base, context=self._context))
                except ValueError:  # no URL of ours; others may be
                    continue
        return found

    def bases(self, desired: Desired | None = None) -> list[str]:
        """Return URLs and directories of the repository; a message names no directories of this device."""
        desired = desired or self._view.desired
        named = () if desired is None else desired.sources
        return [*self._own, *(base for base in named if is_url(base) and base not in self._own)]

    def recall(self) -> Assignment | None:
        """Return what is wanted as far as it is known here, as after a start; None where that is nothing."""
        try:
            assignment = self._trust.known()
        except TrustError as e:
            if e.reason != "not_found":
                self._error = e
            return None
        self._keep(assignment)
        return assignment

    def hear(self, desired: Desired, *, retained: bool) -> bool:
        """Take a message in; return whether it is to be checked."""
        if desired.epoch < self.epoch:
            if retained and desired.epoch < self._view.epoch:
                self._view = self._view.apply(desired, retained=True)
            return False
        if desired == self._view.desired and self._error is None:
            return False
        # All are checked: a greater epoch that nobody signed must not put the right one aside.
        if desired not in self._waiting:
            self._waiting.append(desired)
        return True

    def look(self) -> None:
        """Ask the sources now."""
        self._due = self._clock.monotonic()

    def turn(self) -> list[Outcome]:
        """Begin what is due; return what came of what was begun before."""
        found: list[Outcome] = []
        while not self._results.empty():
            outcome = self._results.get_nowait()
            self._busy = False
            self._take(outcome)
            found.append(outcome)
        if not self._busy:
            self._begin()
        return found

    def _begin(self) -> None:
        desired = self._next()
        due = self._due is not None and self._clock.monotonic() >= self._due
        if desired is None and not due:
            return
        sources: list[MetadataSource] = []
        if desired is not None and desired.metadata is not None:
            from edgec.trust import bundle_files
            from edgec.trust._source import BundleSource

            files = bundle_files(self._device, desired.metadata.director, desired.metadata.image)
            sources.append(BundleSource(files))
        sources += self.metadata(desired)
        self._busy = True
        self._due = None
        self._spawn(lambda: self._check(sources, desired))

    def _next(self) -> Desired | None:
        """Return the message to check now; what was overtaken while it waited is left out."""
        now = self._clock.monotonic()
        self._waiting.extend(desired for at, desired in self._again if at <= now)
        self._again = deque((one for one in self._again if one[0] > now), maxlen=_MOST_WAITING)
        while self._waiting:
            desired = self._waiting.popleft()
            if desired.epoch >= self.epoch:
                return desired
        return None

    def _check(self, sources: Sequence[MetadataSource], desired: Desired | None) -> None:
        """Ask one source after another until one is believed; in a thread of its own."""
        error: TrustError | None = TrustError("no source is known to look for metadata in", "not_found")
        assignment = None
        try:
            for source in sources:
                try:
                    assignment = self._trust.update(source)
                except TrustError as e:
                    # That a place is not to be reached says less than that something is not to be believed.
                    error = e if error is None or error.reason in _ELSEWHERE else error
                    continue
                if desired is None or assignment.epoch >= desired.epoch:
                    error = None
                    break
                # What is signed is believed, whatever was announced.
                error = TrustError(
                    f"epoch {desired.epoch} was announced, and {assignment.epoch} is what is signed", "epoch"
                )
        finally:
            self._results.put(Outcome(assignment=assignment, error=error, desired=desired))

    def _take(self, outcome: Outcome) -> None:
        now = self._clock.monotonic()
        error = outcome.error
        if error is None or outcome.desired is not None or error.reason not in _ELSEWHERE or not self._error:
            self._error = error
        if error is not None:
            self._failures += 1
            wait = min(_FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 20), _LAST_RETRY_S)
            if outcome.desired is not None and error.reason in _PASSES:
                self._again.append((now + wait, outcome.desired))
            if self._refresh_s:
                self._due = now + min(wait, self._refresh_s)
            if error.reason in _ELSEWHERE:
                _log.info("no news of what is wanted, %.0f s until the next look: %s", wait, error)
            else:
                _log.warning("what is wanted is not believed: %s", error)
        else:
            self._failures = 0
            self._due = now + self._refresh_s if self._own and self._refresh_s else None
        if outcome.assignment is None:
            return
        self._keep(outcome.assignment)
        desired = outcome.desired
        if desired is not None and desired.epoch == outcome.assignment.epoch:
            self._view = self._view.apply(desired)
            try:
                with atomic_write(self._path) as file:
                    file.write(desired.to_bytes())
            except (OutputError, OSError) as e:
                _log.warning("%s is not kept, and will be heard again: %s", self._path, e)

    def _keep(self, assignment: Assignment) -> None:
        self.targets = {target.model: target for target in assignment.targets}


def _read_view(path: Path) -> DesiredView:
    try:
        return DesiredView(desired=Desired.from_bytes(path.read_bytes()))
    except (OSError, ProtocolError):
        return DesiredView()
