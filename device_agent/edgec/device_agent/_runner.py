"""Brings a model's update forward: writes each state down, then has its effects carried out."""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable

from edgec.device_agent._actions import Actions, CancelledError, Context, PostponedError
from edgec.device_agent._events import (
    Abort,
    Cancel,
    Desired,
    Done,
    Effect,
    Event,
    Failed,
    Linked,
    Postponed,
    Started,
    Tell,
    Tick,
    Work,
)
from edgec.device_agent._state import Moment, Report, Result, State
from edgec.device_agent._store import Store, StoreError
from edgec.device_agent._turn import Limits
from edgec.device_agent._update import step
from edgec.errors import EdgecError, OutputError

_log = logging.getLogger(__name__)
_NO_LINK = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET))
_LIMITS = Limits()


class Runner:
    """The update of one model, on its way.

    Events come in by `post`, from any thread. One thread calls `poll` from time to time: it takes them in,
    writes states down and begins work, which runs in a thread of its own, one piece at a time.

    Args:
        model: Its name.
        store: Where states are written.
        actions: What carries work out.
        clock: Gives the moment; its monotonic part must not go back within one start.
        limits: How patient to be.
        state: Where to go on from; None for what the store has.
        spawn: Starts a piece of work; by default in a daemon thread.
        grace_s: How long the next piece waits for a cancelled one to end, before it goes ahead.
    """

    def __init__(
        self,
        model: str,
        store: Store,
        actions: Actions,
        clock: Callable[[], Moment],
        *,
        limits: Limits = _LIMITS,
        state: State | None = None,
        spawn: Callable[[Callable[[], None]], None] | None = None,
        grace_s: float = 10.0,
    ) -> None:
        self.model = model
        self.state = state or store.load().get(model) or State(model=model)
        self._store = store
        self._actions = actions
        self._clock = clock
        self._limits = limits
        self._spawn = spawn or _thread
        self._grace_s = grace_s
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._held: list[Event] = []
        self._refused: Desired | None = None
        self._running: dict[int, Context] = {}
        self._waiting: tuple[Work, float] | None = None
        self._degraded: str | None = None
        self._retry_s = 0.0
        self._remind_s: float | None = None

    @property
    def degraded(self) -> str | None:
        """Why nothing new is installed: the store's trouble, as a word; None while all is well."""
        return self._degraded

    def start(self) -> None:
        """Go on where the agent before this one stopped."""
        if self._store.rebuilt:
            detail = "the agent's database was damaged; it was made anew from the mirrors beside the slots"
            self._tell("recovered", "rebuilt", detail)
        self.post(Started(now=self._clock(), clean=self._store.stopped))

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask the work under way to stop, and wait for that; its state is as after a restart."""
        self._waiting = None
        for context in list(self._running.values()):
            context.cancel()
        end = time.monotonic() + timeout_s
        while self._running and time.monotonic() < end:
            time.sleep(0.02)

    @property
    def busy(self) -> bool:
        """Whether a piece of work is under way or about to be."""
        return bool(self._running) or self._waiting is not None

    def post(self, event: Event) -> None:
        """Have an event taken in by the next `poll`."""
        self._events.put(event)

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Take in what has happened, and begin what follows from it.

        Args:
            timeout_s: How long to wait for something to happen.

        Returns:
            Whether there was anything.
        """
        self._look_after_store()
        if self._remind_s is not None and self._clock().mono_s >= self._remind_s:
            self._remind_s = None
            self.post(Linked(now=self._clock()))
        events, self._held = self._held, []
        events += self._drain(0.0 if events else timeout_s)
        for event in [*events, Tick(now=self._clock())]:
            self._take(event)
        self._begin_waiting()
        return bool(events)

    def _drain(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        try:
            if timeout_s > 0:
                events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def _take(self, event: Event) -> None:
        if self._degraded is not None and isinstance(event, Desired | Abort):
            self._refuse(event)
            return
        state, effects = step(self.state, event, self._limits)
        if state is not self.state and not self._save(state, event):
            return
        self.state = state
        for effect in effects:
            self._carry_out(effect)

    def _save(self, state: State, event: Event) -> bool:
        """Write a state down; where that fails, keep the event for later, and the old state."""
        try:
            self._store.save(state, type(event).__name__.lower())
        except StoreError as e:
            self._degrade(e.reason, str(e))
            if isinstance(event, Desired | Abort):
                self._refuse(event)
            elif not isinstance(event, Tick):
                self._held.append(event)
            return False
        return True

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Tell):
            self._report(effect.report)
        elif isinstance(effect, Cancel):
            self._waiting = None
            if effect.number in self._running:
                self._running[effect.number].cancel()
        else:
            self._waiting = (effect, self._clock().mono_s + self._grace_s)
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Begin the next piece of work, once the one before has ended or was waited for long enough."""
        if self._waiting is None:
            return
        work, until_s = self._waiting
        if self._running and self._clock().mono_s < until_s:
            return
        self._waiting = None
        # Pieces that hang although they were cancelled cannot decide anything any more.
        self._running.clear()
        context = self._running[work.number] = Context()
        self._spawn(lambda: self._work(work, context))

    def _work(self, work: Work, context: Context) -> None:
        """Do a piece of work, and post how it went."""
        action: Callable[[Work, Context], None] = getattr(self._actions, work.name)
        result: Event = Failed(
            now=self._clock(),
            work=work.number,
            reason="agent_bug",
            detail=f"{work.name} broke; see the agent's log",
        )
        try:
            action(work, context)
            result = Done(now=self._clock(), work=work.number)
        except CancelledError:
            detail = f"{work.name} stopped although it was wanted"
            result = Failed(
                now=self._clock(), work=work.number, reason="cancelled", detail=detail, passing=True
            )
        except PostponedError as e:
            result = Postponed(
                now=self._clock(), work=work.number, reason=e.reason, detail=str(e), retry_s=e.retry_s
            )
        except (EdgecError, OSError) as e:
            reason, passing = _judge(e)
            result = Failed(
                now=self._clock(), work=work.number, reason=reason, detail=str(e), passing=passing
            )
        finally:
            # Also after an error nobody foresaw, whose traceback goes where the thread's do.
            self._running.pop(work.number, None)
            self.post(result)

    def _look_after_store(self) -> None:
        """Notice trouble of the store and the end of it."""
        now = self._clock().mono_s
        if self._store.trouble is not None and self._degraded is None:
            self._degrade(
                self._store.trouble, f"the agent's database cannot be written ({self._store.trouble})"
            )
        elif self._degraded is not None and now >= self._retry_s:
            self._retry_s = now + self._limits.backoff_s
            if self._store.recover():
                self._tell("recovered", "", "the agent's database can be written again")
                self._degraded = None
                if self._refused is not None:
                    refused, self._refused = self._refused, None
                    self.post(refused)

    def _degrade(self, reason: str, detail: str) -> None:
        if self._degraded is None:
            _log.warning("%s: %s; what serves goes on, nothing new is installed", self.model, detail)
            self._retry_s = self._clock().mono_s + self._limits.backoff_s
            self._tell("degraded", reason, detail)
        self._degraded = reason

    def _refuse(self, event: Desired | Abort) -> None:
        """Answer what cannot be written down; what was wanted is taken up when it can be."""
        detail = "the agent cannot write its database: " + (self._degraded or "")
        if isinstance(event, Abort):
            self._tell("abort_refused", "degraded", detail)
        elif event.wanted.epoch > self.state.epoch and event != self._refused:
            self._refused = event
            self._tell("refused", "degraded", detail, epoch=event.wanted.epoch, digest=event.wanted.digest)

    def _tell(
        self, result: Result, reason: str, detail: str, epoch: int | None = None, digest: str = ""
    ) -> None:
        """Report what is in no state: sent once, with the number 0."""
        report = Report(
            seq=0,
            result=result,
            epoch=self.state.epoch if epoch is None else epoch,
            digest=digest,
            reason=reason,
            detail=detail,
            at_s=self._clock().wall_s,
        )
        self._report(report)

    def _report(self, report: Report) -> None:
        """Hand a report over; where that fails, those in the state are handed over again later."""
        try:
            self._actions.report(self.model, report)
        except (EdgecError, OSError) as e:
            _log.warning("%s: report %d cannot be put away, and will be again: %s", self.model, report.seq, e)
            self._remind_s = self._clock().mono_s + self._limits.backoff_s


def _thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="edgec-update", daemon=True).start()


def _judge(e: EdgecError | OSError) -> tuple[str, bool]:
    """Return the word for a failure, and whether it may pass."""
    if isinstance(e, OutputError):
        return "disk_full" if "full" in str(e) or "are free" in str(e) else "disk", True
    if isinstance(e, OSError):
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return "disk_full", True
        return ("link" if e.errno in _NO_LINK else "disk"), True
    reason = getattr(e, "reason", None)
    word = reason if isinstance(reason, str) else type(e).__name__.removesuffix("Error").lower()
    return word, bool(getattr(e, "passing", False))
