"""Updates as a pure function: a state and an event give the next state and what is to be done.

A phase is written to disk before its work begins, and work may be done twice; so after a loss of power at
any instruction the same work is done again and leads to the same end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from edgec.device_agent._courses import (
    BEFORE_SWITCH,
    begin,
    commit,
    condemn,
    drop_pending,
    fail,
    finish,
    make_way,
    prepared,
    rest,
    roll_back,
    rolled_back,
    settle,
)
from edgec.device_agent._events import (
    Abort,
    Acknowledged,
    Cancel,
    Crashed,
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
    WorkName,
)
from edgec.device_agent._state import (
    Installed,
    Moment,
    Phase,
    Quarantined,
    Report,
    Result,
    State,
    Wanted,
)
from edgec.device_agent._turn import WORK, Limits, Turn

_LIMITS = Limits()

__all__ = [
    "Abort",
    "Acknowledged",
    "Cancel",
    "Crashed",
    "Desired",
    "Done",
    "Effect",
    "Event",
    "Failed",
    "Installed",
    "Limits",
    "Linked",
    "Moment",
    "Phase",
    "Postponed",
    "Quarantined",
    "Report",
    "Result",
    "Started",
    "State",
    "Tell",
    "Tick",
    "Wanted",
    "Work",
    "WorkName",
    "step",
]

# Why an order to stop is refused, by phase; in all others it is accepted.
ABORT_REFUSED: Mapping[Phase, str] = MappingProxyType(
    {
        "idle": "nothing_under_way",
        "cleaned": "nothing_under_way",
        "committed": "committed",
        "rolling_back": "rolling_back",
        "failed": "failed",
        "removing": "removing",
    }
)
# Work that may be cut off any number of times, because it goes on where it was or must be done in the end.
_PATIENT = frozenset(("admit", "reserve", "fetch", "commit", "clean", "roll_back", "remove"))
# Work that condemns a digest when it fails for good, or the agent dies of it time after time.
_JUDGES = frozenset(("verify", "self_test", "shadow", "switch"))
_MUST_SUCCEED = frozenset(("commit", "clean", "roll_back", "remove"))
# Phases from which what is fetched ahead can still wait.
_MAY_WAIT: frozenset[Phase] = frozenset(("notified", "deferred", "admitted", "downloading"))
# Work whose hanging says nothing about the candidate.
_EXTERNAL = frozenset(("admit", "reserve", "fetch", "stage", "confirm"))


def step(state: State, event: Event, limits: Limits = _LIMITS) -> tuple[State, tuple[Effect, ...]]:
    """Take an event in.

    Args:
        state: Before; not changed.
        event: What happened. Results of work that is not under way any more are ignored.
        limits: How patient to be.

    Returns:
        The next state, which must be on disk before the first effect begins, and the effects in order. The
        state is the same object where nothing changed.
    """
    turn = Turn(state, event.now, limits)
    if isinstance(event, Started):
        _started(turn, event.clean)
    elif isinstance(event, Desired):
        _desired(turn, event.wanted)
    elif isinstance(event, Done | Failed | Postponed):
        if event.work and event.work == state.work:
            turn.set(work=0, deadline_s=None)
            _result(turn, event)
    elif isinstance(event, Crashed):
        if state.phase in ("switched", "probation"):
            _crashed(turn, event.reason, event.detail)
    elif isinstance(event, Abort):
        _abort(turn, event.epoch)
    elif isinstance(event, Acknowledged):
        if event.seq <= state.report_seq:
            turn.set(reports=tuple(r for r in state.reports if r.seq > event.seq))
            rest(turn)
    elif isinstance(event, Linked):
        turn.effects += [Tell(report=r) for r in state.reports]
    elif isinstance(event, Tick):
        _tick(turn)
    return turn.end()


def _result(turn: Turn, event: Done | Failed | Postponed) -> None:
    if isinstance(event, Done):
        if turn.piece_done():
            _phase_done(turn)
    elif isinstance(event, Failed):
        _failed(turn, event.reason, event.detail, passing=event.passing)
    elif turn.state.phase in BEFORE_SWITCH:
        until = turn.now.mono_s + event.retry_s
        turn.enter("deferred", deadline_s=until, **turn.because(event.reason, event.detail))
    else:
        _failed(turn, event.reason, event.detail, passing=True)


def _phase_done(turn: Turn) -> None:
    state = turn.state
    waits = state.candidate is not None and state.candidate.prepare
    if waits and (state.phase == "downloading" or (state.phase == "notified" and state.reuse)):
        prepared(turn)
    elif state.phase == "notified":
        turn.enter("verified" if state.reuse else "admitted")
    elif state.phase == "admitted":
        turn.enter("downloading")
    elif state.phase == "downloading":
        # Staging takes the place of what is in the other slot.
        turn.enter("verified", previous=None)
    elif state.phase == "verified":
        turn.enter("staged")
    elif state.phase == "staged":
        turn.enter("self_test")
    elif state.phase == "self_test" and state.active and state.candidate and state.candidate.shadow_s > 0:
        turn.enter("shadow")
    elif state.phase in ("self_test", "shadow"):
        turn.enter("switched", fallback=state.active, switched=False, crashes=0, calm_s=None)
    elif state.phase == "switched":
        new = turn.installed_candidate()
        turn.set(active=new, previous=state.fallback, switched=True, reuse=False)
        turn.enter("probation")
        if state.pending is not None:
            make_way(turn, state.pending)
    elif state.phase == "probation":
        commit(turn)
    elif state.phase == "rolling_back":
        rolled_back(turn)
    elif state.phase == "removing":
        turn.tell("removed", state.candidate)
        turn.set(active=None, previous=None, verdict="removed")
        finish(turn)
    else:
        finish(turn)


def _failed(turn: Turn, reason: str, detail: str, *, passing: bool) -> None:
    state, name = turn.state, turn.piece
    if name in _MUST_SUCCEED:
        _once_more(turn, reason, detail)
    elif name in ("switch", "watch"):
        condemned = name == "watch" or not passing
        roll_back(turn, "rolled_back", reason, detail, condemned=condemned)
    elif state.phase == "verified" and state.reuse:
        # What lay in the other slot is damaged: fetch it like anything else.
        turn.set(reuse=False, previous=None)
        turn.enter("admitted")
    elif passing and state.attempts + 1 < turn.limits.attempts:
        attempts = state.attempts + 1
        until = turn.wait(attempts)
        turn.enter("deferred", attempts=attempts, deadline_s=until, **turn.because(reason, detail))
    else:
        if not passing and name in _JUDGES:
            condemn(turn, reason)
        tried = f" (given up after {state.attempts + 1} attempts)" if passing else ""
        fail(turn, "failed", reason, detail + tried)


def _once_more(turn: Turn, reason: str, detail: str) -> None:
    """Work that must be done in the end is tried again, and given up only as far as it must be."""
    retries = turn.state.retries + 1
    if retries < turn.limits.retries:
        turn.set(retries=retries, deadline_s=turn.wait(retries), **turn.because(reason, detail))
    elif turn.piece == "roll_back":
        turn.set(unsettled=True)
        fail(turn, "failed", "rollback_failed", f"{turn.state.reason}, then {reason}: {detail}")
    elif turn.piece == "remove":
        fail(turn, "failed", reason, detail)
    elif turn.piece_done():
        _phase_done(turn)


def _desired(turn: Turn, wanted: Wanted) -> None:
    state = turn.state
    if wanted.epoch <= state.epoch:
        return
    turn.set(epoch=wanted.epoch)
    if state.phase in ("idle", "cleaned"):
        drop_pending(turn, wanted)
        begin(turn, wanted)
    elif _is_candidate(state, wanted) and (
        state.phase in BEFORE_SWITCH or state.phase in ("switched", "probation")
    ):
        drop_pending(turn, wanted)
        _go_on_with(turn, wanted)
    else:
        drop_pending(turn, wanted)
        turn.set(pending=wanted)
        make_way(turn, wanted)


def _go_on_with(turn: Turn, wanted: Wanted) -> None:
    """Take note of a newer word about the candidate; its length of trial is that of the first, once begun."""
    candidate = turn.state.candidate
    if candidate is None:
        return
    prepare = wanted.prepare and turn.state.phase in _MAY_WAIT
    changed = replace(candidate, epoch=wanted.epoch, retry=wanted.retry, prepare=prepare)
    if turn.state.phase in BEFORE_SWITCH and turn.state.phase != "shadow":
        changed = replace(
            changed,
            shadow_s=wanted.shadow_s,
            probation_s=wanted.probation_s,
            probation_calls=wanted.probation_calls,
        )
    turn.set(candidate=changed)
    if turn.state.verdict == "prepared" and prepare:
        turn.tell("prepared", changed)
    elif turn.state.verdict == "prepared":
        turn.enter("notified", verdict=None)


def _is_candidate(state: State, wanted: Wanted) -> bool:
    return state.candidate is not None and state.candidate.digest == wanted.digest


def _abort(turn: Turn, epoch: int | None) -> None:
    state = turn.state
    dropped = state.pending is not None and epoch in (None, state.pending.epoch)
    if dropped:
        turn.tell("aborted", state.pending, "aborted", "stopped by order before it was begun")
        turn.set(pending=None)
    current = None if state.candidate is None else state.candidate.epoch
    refusal = ABORT_REFUSED.get(state.phase, "")
    if not refusal and epoch not in (None, current):
        refusal = "other_epoch"
    if refusal and not dropped:
        turn.tell("abort_refused", state.candidate, refusal, f"the update is {state.phase}")
        return
    turn.tell("abort_accepted", state.candidate or state.pending, "", f"the update was {state.phase}")
    if refusal:
        return
    if state.phase in BEFORE_SWITCH:
        fail(turn, "aborted", "aborted", "stopped by order")
    else:
        roll_back(turn, "aborted", "aborted", "stopped by order", condemned=False)


def _crashed(turn: Turn, reason: str, detail: str) -> None:
    crashes = turn.state.crashes + 1
    turn.set(crashes=crashes, calm_s=turn.now.mono_s + turn.limits.calm_s)
    if crashes >= turn.limits.crashes:
        detail = f"{crashes} crashes in {turn.state.phase}, the last one: {detail or reason}"
        roll_back(turn, "rolled_back", "crash_loop", detail, condemned=True)


def _tick(turn: Turn) -> None:
    state, now = turn.state, turn.now.mono_s
    if state.calm_s is not None and now >= state.calm_s:
        turn.set(crashes=0, calm_s=None)
    if state.deadline_s is None or now < state.deadline_s:
        return
    if state.phase == "deferred":
        turn.enter("notified")
    elif state.unsettled and state.phase == "cleaned":
        settle(turn)
    elif not state.work:
        turn.start()
    else:
        name = turn.piece
        turn.cancel()
        detail = f"{name} took longer than {turn.timeout_s(name):.0f} s"
        _failed(turn, "timeout", detail, passing=name in _EXTERNAL)


def _started(turn: Turn, clean: bool) -> None:
    state = turn.state
    turn.effects += [Tell(report=r) for r in state.reports]
    calm_s = turn.now.mono_s + turn.limits.calm_s if state.crashes else None
    turn.set(work=0, deadline_s=None, calm_s=calm_s)
    if state.phase == "deferred":
        turn.enter("notified")
    elif state.phase in ("idle", "cleaned"):
        if state.unsettled:
            settle(turn)
    else:
        _resume(turn, clean)


def _resume(turn: Turn, clean: bool) -> None:
    """Do the work again that the start found under way, unless it was what ended the agent before."""
    name = turn.piece
    if not clean:
        turn.set(interruptions=turn.state.interruptions + 1)
    if name == "watch" and not clean:
        _crashed(turn, "restarted", "the agent or the device started again without having been stopped")
    elif name not in _PATIENT and turn.state.interruptions >= turn.limits.interruptions:
        detail = f"the agent died {turn.state.interruptions} times during {name}"
        if name in ("switch", "watch"):
            roll_back(turn, "rolled_back", "crash_loop", detail, condemned=True)
        else:
            if name in _JUDGES:
                condemn(turn, "crash_loop")
            fail(turn, "failed", "crash_loop", detail)
    if not turn.state.work and turn.state.phase in WORK:
        turn.start()
