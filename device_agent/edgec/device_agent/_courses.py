"""How an update begins, makes way, and ends."""

from __future__ import annotations

from edgec.device_agent._state import Phase, Result, Wanted
from edgec.device_agent._turn import Turn

# Phases in which nothing that serves has been touched yet.
BEFORE_SWITCH: frozenset[Phase] = frozenset(
    ("notified", "deferred", "admitted", "downloading", "verified", "staged", "self_test", "shadow")
)


def commit(turn: Turn) -> None:
    """The candidate has proven itself."""
    state = turn.state
    if state.candidate is not None:
        turn.forgive(state.candidate.digest)
    turn.tell("committed", state.candidate)
    turn.enter("committed", fallback=None, crashes=0, calm_s=None, verdict="committed")


def condemn(turn: Turn, reason: str) -> None:
    """Never install the candidate again unasked."""
    if turn.state.candidate is not None:
        turn.quarantine(turn.state.candidate.digest, reason)


def prepared(turn: Turn) -> None:
    """What was to be fetched ahead is here; it waits for the word to install it."""
    if turn.state.verdict != "prepared":
        turn.tell("prepared", turn.state.candidate)
    detail = "it is here and verified, and waits for the word to install it"
    turn.enter("deferred", verdict="prepared", attempts=0, **turn.because("prepared", detail))


def fail(turn: Turn, result: Result, reason: str, detail: str) -> None:
    """End an update; what serves is what did before."""
    if result in ("failed", "rolled_back") and turn.state.candidate is not None:
        turn.count_try(turn.state.candidate.digest)
    turn.tell(result, turn.state.candidate, reason, detail)
    turn.enter("failed", verdict=result, **turn.because(reason, detail))


def roll_back(turn: Turn, result: Result, reason: str, detail: str, *, condemned: bool) -> None:
    """Go back to what served before."""
    if condemned:
        condemn(turn, reason)
    turn.enter("rolling_back", verdict=result, **turn.because(reason, detail))


def rolled_back(turn: Turn) -> None:
    """What served before does again."""
    state = turn.state
    turn.set(
        active=state.fallback, previous=None, fallback=None, switched=False, unsettled=False, reuse=False
    )
    turn.set(crashes=0, calm_s=None)
    fail(turn, state.verdict or "rolled_back", state.reason, state.detail)


def finish(turn: Turn) -> None:
    """An update is over, and all that it needed is cleaned up."""
    state = turn.state
    if not state.unsettled:
        turn.set(candidate=None, fallback=None, switched=False)
    why = {} if state.phase == "committed" else {"reason": state.reason, "detail": state.detail}
    turn.enter("cleaned", reuse=False, attempts=0, **why)
    if state.unsettled:
        turn.set(deadline_s=turn.now.mono_s + turn.limits.backoff_limit_s)
    if state.pending is not None and not state.unsettled:
        turn.set(pending=None)
        begin(turn, state.pending)
    rest(turn)


def settle(turn: Turn) -> None:
    """Take up a rollback again that was given up."""
    state = turn.state
    turn.enter("rolling_back", verdict="rolled_back", **turn.because(state.reason, state.detail))


def rest(turn: Turn) -> None:
    """An end that the fleet knows of is the beginning."""
    state = turn.state
    if state.phase == "cleaned" and not state.reports and not state.unsettled:
        turn.set(phase="idle")


def begin(turn: Turn, wanted: Wanted) -> None:
    """Take up what is wanted, with nothing under way."""
    state = turn.state
    if state.unsettled:
        turn.set(pending=wanted)
        settle(turn)
    elif wanted.removes and state.active is None and state.previous is None:
        refuse(turn, "removed", wanted, "already_removed", "nothing of this model is here")
    elif wanted.removes:
        turn.enter("removing", candidate=wanted)
    elif state.active is not None and state.active.digest == wanted.digest:
        refuse(turn, "unchanged", wanted, "already_active", "it serves already")
    elif (bad := state.quarantined(wanted.digest)) and wanted.retry <= bad.epoch:
        detail = f"it was found bad here in epoch {bad.epoch} ({bad.reason}); order a retry to try it again"
        refuse(turn, "refused", wanted, "quarantined", detail)
    elif turn.tried(wanted.digest, wanted.retry) >= turn.limits.tries:
        detail = (
            f"{turn.tried(wanted.digest)} updates to it did not succeed here; order a retry to try it again"
        )
        refuse(turn, "refused", wanted, "too_many_tries", detail)
    else:
        turn.release(wanted.digest)
        if wanted.retry and not turn.tried(wanted.digest, wanted.retry):
            turn.forgive(wanted.digest)
        reuse = state.previous is not None and state.previous.digest == wanted.digest
        turn.enter("notified", candidate=wanted, reuse=reuse, attempts=0, verdict=None)


def refuse(turn: Turn, result: Result, wanted: Wanted, reason: str, detail: str) -> None:
    """End before anything has begun."""
    turn.tell(result, wanted, reason, detail)
    turn.enter("cleaned", verdict=result, **turn.because(reason, detail))


def make_way(turn: Turn, wanted: Wanted) -> None:
    """Something else is wanted now: end what is under way, where that does not leave nothing to serve."""
    state = turn.state
    detail = f"epoch {wanted.epoch} wants something else"
    if state.phase in BEFORE_SWITCH:
        fail(turn, "superseded", "superseded", detail)
    elif state.phase == "probation" and (state.fallback is not None or wanted.removes):
        roll_back(turn, "superseded", "superseded", detail, condemned=False)


def drop_pending(turn: Turn, wanted: Wanted) -> None:
    """Forget what was wanted next, because something else is."""
    if turn.state.pending is not None:
        detail = f"epoch {wanted.epoch} came before it was begun"
        turn.tell("superseded", turn.state.pending, "superseded", detail)
        turn.set(pending=None)
