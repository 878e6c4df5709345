"""One turn of an update's state machine: the moves that its rules are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgec.device_agent._events import Cancel, Effect, Tell, Work, WorkName
from edgec.device_agent._state import (
    Installed,
    Moment,
    Phase,
    Quarantined,
    Report,
    Result,
    State,
    Tries,
    Wanted,
)

# What is done in each phase, piece by piece. `deferred` waits, `idle` and `cleaned` are ends.
WORK: Mapping[Phase, tuple[WorkName, ...]] = MappingProxyType(
    {
        "notified": ("admit",),
        "admitted": ("reserve",),
        "downloading": ("fetch", "verify"),
        "verified": ("stage",),
        "staged": ("confirm",),
        "self_test": ("self_test",),
        "shadow": ("shadow",),
        "switched": ("switch",),
        "probation": ("watch",),
        "committed": ("commit", "clean"),
        "rolling_back": ("roll_back",),
        "failed": ("clean",),
        "removing": ("remove", "clean"),
    }
)
TIMEOUTS_S: Mapping[WorkName, float] = MappingProxyType(
    {
        "admit": 60.0,
        "reserve": 120.0,
        "fetch": 86400.0,
        "verify": 600.0,
        "stage": 600.0,
        "confirm": 120.0,
        "self_test": 900.0,
        "shadow": 600.0,
        "switch": 120.0,
        "watch": 600.0,
        "commit": 60.0,
        "clean": 120.0,
        "roll_back": 120.0,
        "remove": 120.0,
    }
)
MAX_REPORTS = 16
MAX_QUARANTINE = 64
MAX_TRIES = 32
MAX_DETAIL = 400


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient an update is.

    Attributes:
        attempts: Passing failures of one update before it is given up.
        tries: Updates to one digest that may fail before only a later `Wanted.retry` begins another.
        retries: Failures of a rollback, commit, removal or cleaning before it is left as it is.
        interruptions: Deaths of the agent in one phase that blame the candidate.
        crashes: Deaths of application, model or agent in probation, within `calm_s`, that end it.
        calm_s: Seconds without a death after which earlier ones are forgotten.
        backoff_s: Wait after the first passing failure; doubled with each further one.
        backoff_limit_s: The longest wait.
        timeouts_s: Per piece of work; shadow and probation have their own length on top.
    """

    attempts: int = 5
    tries: int = 10
    retries: int = 5
    interruptions: int = 3
    crashes: int = 3
    calm_s: float = 600.0
    backoff_s: float = 60.0
    backoff_limit_s: float = 14400.0
    timeouts_s: Mapping[WorkName, float] = field(default_factory=lambda: TIMEOUTS_S)


class Turn:
    """A state on its way to the next one, and the effects on the way."""

    def __init__(self, state: State, now: Moment, limits: Limits) -> None:
        self.before = state
        self.state = state
        self.now = now
        self.limits = limits
        self.effects: list[Effect] = []

    def end(self) -> tuple[State, tuple[Effect, ...]]:
        """Return the next state, with a new serial where anything changed, and the effects."""
        if self.state != self.before:
            self.set(serial=self.before.serial + 1)
        return self.state, tuple(self.effects)

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = self.state.changed(**changes)

    def enter(self, phase: Phase, **changes: Any) -> None:
        """Stop what is under way, and begin the work of another phase."""
        self.cancel()
        fresh = {"done": 0, "retries": 0, "interruptions": 0, "deadline_s": None, "reason": "", "detail": ""}
        self.set(**{**fresh, "phase": phase, "since_s": self.now.wall_s, **changes})
        if phase in WORK:
            self.start()

    def start(self) -> None:
        """Begin the next piece of the phase's work, or the same one again."""
        state, name = self.state, self.piece
        number = state.work_seq + 1
        self.set(work=number, work_seq=number, deadline_s=self.now.mono_s + self.timeout_s(name))
        kept = (state.active, state.previous, state.fallback)
        self.effects.append(
            Work(
                number=number,
                name=name,
                model=state.model,
                wanted=state.candidate,
                slot=state.candidate_slot,
                reuse=state.reuse,
                active=state.active,
                fallback=state.fallback,
                keep=tuple(dict.fromkeys(i.digest for i in kept if i is not None)),
            )
        )

    @property
    def piece(self) -> WorkName:
        """The piece of work that the phase is at."""
        return WORK[self.state.phase][self.state.done]

    def timeout_s(self, name: WorkName) -> float:
        """Return how long a piece of work may take."""
        wanted = self.state.candidate
        own = 0.0
        if wanted is not None:
            own = {"shadow": wanted.shadow_s, "watch": wanted.probation_s}.get(name, 0.0)
        return own + self.limits.timeouts_s.get(name, TIMEOUTS_S[name])

    def piece_done(self) -> bool:
        """Go on to the next piece of the phase's work; return whether that was the last one."""
        self.set(work=0, done=self.state.done + 1, retries=0, interruptions=0, deadline_s=None)
        if self.state.done == len(WORK[self.state.phase]):
            return True
        self.start()
        return False

    def cancel(self) -> None:
        """Stop the piece of work that is under way."""
        if self.state.work:
            self.effects.append(Cancel(number=self.state.work))
            self.set(work=0, deadline_s=None)

    def wait(self, failures: int) -> float:
        """Return the monotonic time at which to try again after so many failures."""
        delay = min(self.limits.backoff_s * 2.0 ** (failures - 1), self.limits.backoff_limit_s)
        return self.now.mono_s + delay

    def tell(self, result: Result, wanted: Wanted | None, reason: str = "", detail: str = "") -> None:
        """Have the fleet learn of something, for certain."""
        state = self.state
        report = Report(
            seq=state.report_seq + 1,
            result=result,
            epoch=state.epoch if wanted is None else wanted.epoch,
            digest="" if wanted is None else wanted.digest,
            reason=_word(reason),
            detail=_short(detail),
            at_s=self.now.wall_s,
        )
        reports = [*state.reports, report]
        if len(reports) > MAX_REPORTS:
            # Ends of updates matter more than answers to orders.
            answers = (i for i, r in enumerate(reports[:-1]) if r.result.startswith("abort_"))
            del reports[next(answers, 0)]
            self.set(reports_lost=state.reports_lost + 1)
        self.set(reports=tuple(reports), report_seq=report.seq)
        self.effects.append(Tell(report=report))

    def because(self, reason: str, detail: str) -> dict[str, str]:
        """Return the fields that say why, fit to be stored and sent."""
        return {"reason": _word(reason), "detail": _short(detail)}

    def quarantine(self, digest: str, reason: str) -> None:
        """Never install this digest again unasked."""
        entry = Quarantined(digest=digest, epoch=self.state.epoch, reason=_word(reason), at_s=self.now.wall_s)
        others = [q for q in self.state.quarantine if q.digest != digest]
        self.set(quarantine=(*others, entry)[-MAX_QUARANTINE:])
        if self.state.previous is not None and self.state.previous.digest == digest:
            self.set(previous=None)

    def count_try(self, digest: str) -> None:
        """Count another update to this digest that has failed."""
        candidate = self.state.candidate
        epoch = self.state.epoch if candidate is None else candidate.epoch
        entry = Tries(digest=digest, count=self.tried(digest) + 1, epoch=epoch)
        others = [t for t in self.state.tries if t.digest != digest]
        self.set(tries=(*others, entry)[-MAX_TRIES:])

    def tried(self, digest: str, since: int = 0) -> int:
        """Return how many updates to this digest have failed since one succeeded; 0 if none since `since`."""
        return next((t.count for t in self.state.tries if t.digest == digest and t.epoch >= since), 0)

    def forgive(self, digest: str) -> None:
        """Forget what was held against a digest."""
        self.release(digest)
        self.set(tries=tuple(t for t in self.state.tries if t.digest != digest))

    def release(self, digest: str) -> None:
        """Let a digest out of quarantine; how often it was tried is remembered."""
        self.set(quarantine=tuple(q for q in self.state.quarantine if q.digest != digest))

    def installed_candidate(self) -> Installed | None:
        """Return the candidate as something that lies in its slot."""
        wanted = self.state.candidate
        if wanted is None:
            return None
        slot = self.state.candidate_slot
        return Installed(digest=wanted.digest, length=wanted.length, slot=slot, target=wanted.target)


def _word(reason: str) -> str:
    return reason if re.fullmatch(r"[a-z][a-z0-9_]{0,39}|", reason) else "unnamed"


def _short(detail: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in detail[:MAX_DETAIL])
    return text.encode(errors="replace").decode()
