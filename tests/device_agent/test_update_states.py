"""Every state that an update can get into, breadth first, and what must be true in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.device_agent.updates import NOW, QUICK, V1, V2, V3, advance, at, follow, want

from edgec.device_agent._courses import BEFORE_SWITCH
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
)
from edgec.device_agent._state import State
from edgec.device_agent._turn import MAX_REPORTS, WORK
from edgec.device_agent._update import ABORT_REFUSED, step

ENDS = {"committed", "unchanged", "removed", "refused", "failed", "rolled_back", "aborted", "superseded"}
# States that were seen to come to an end, with failures for good or passing ones.
ENDING: set[tuple[State, bool]] = set()


def events(state: State) -> Iterator[Event]:
    """Yield everything that may happen to a state."""
    yield Started(now=NOW, clean=True)
    yield Started(now=NOW, clean=False)
    for digest in (V1, V2, ""):
        yield Desired(now=NOW, wanted=want(state.epoch + 1, digest, shadow_s=5.0 if digest == V2 else 0.0))
    yield Desired(now=NOW, wanted=want(state.epoch + 1, V2, retry=True))
    yield Desired(now=NOW, wanted=want(state.epoch + 1, V2, prepare=True))
    yield Desired(now=NOW, wanted=want(state.epoch, V3))
    if state.work:
        yield Done(now=NOW, work=state.work)
        yield Failed(now=NOW, work=state.work, reason="broken", detail="said the action")
        yield Failed(now=NOW, work=state.work, reason="away", detail="said the link", passing=True)
        yield Postponed(now=NOW, work=state.work, reason="power", detail="on battery")
        yield Done(now=NOW, work=state.work - 1)
    yield Tick(now=at(1e9))
    yield Crashed(now=NOW)
    yield Abort(now=NOW)
    if state.pending is not None:
        yield Abort(now=NOW, epoch=state.pending.epoch)
    yield Acknowledged(now=NOW, seq=state.report_seq)
    yield Linked(now=NOW)


def key(state: State) -> State:
    """Return what tells states apart: not by running numbers, times and words for people."""
    shift = state.epoch
    bare = replace(
        state,
        serial=0,
        work=min(state.work, 1),
        work_seq=0,
        epoch=0,
        reports=state.reports[:1]
        and (replace(state.reports[0], seq=0, epoch=0, digest="", result="failed"),),
        report_seq=0,
        reports_lost=0,
        reason="",
        detail="",
        verdict="prepared" if state.verdict == "prepared" else None,
        quarantine=tuple(replace(q, epoch=0, reason="") for q in state.quarantine),
        candidate=state.candidate and replace(state.candidate, epoch=0, retry=0),
        pending=state.pending and replace(state.pending, epoch=shift - state.pending.epoch),
        deadline_s=None if state.deadline_s is None else 0.0,
    )
    return replace(bare, reports=tuple(replace(r, reason="", detail="") for r in bare.reports))


def waits(state: State) -> bool:
    """Whether an update was fetched ahead, and waits for the fleet's word; the fleet knows that it does."""
    ahead = state.candidate is not None and state.candidate.prepare
    return state.phase == "deferred" and ahead and state.verdict == "prepared"


def check(state: State) -> None:
    """What holds in every state."""
    if state.active is not None and state.previous is not None:
        assert state.active.slot != state.previous.slot
        assert state.active.digest != state.previous.digest
    if state.fallback is not None:
        assert state.fallback in (state.active, state.previous)
    if state.phase in ("switched", "probation", "rolling_back") and state.switched:
        assert state.previous == state.fallback
        assert state.candidate is not None
        assert state.active is not None
        assert state.active.digest == state.candidate.digest
    if state.phase in BEFORE_SWITCH | {"switched", "probation", "committed"}:
        assert state.candidate is not None
        assert not state.candidate.removes
        assert state.quarantined(state.candidate.digest) is None
        if state.active is not None and not state.switched:
            assert state.candidate_slot != state.active.slot
    if state.phase in WORK:
        assert state.work or state.deadline_s is not None, "nothing would ever happen again"
    elif state.phase == "deferred":
        assert state.deadline_s is not None or waits(state)
    else:
        assert state.work == 0
        assert state.pending is None or state.unsettled
    assert not (state.phase == "idle" and any(r.result in ENDS for r in state.reports))
    assert len(state.reports) <= MAX_REPORTS
    bad = state.active is not None and state.quarantined(state.active.digest)
    assert not bad or state.phase in ("rolling_back", "removing") or state.unsettled


def check_step(before: State, event: Event, after: State, effects: tuple[Effect, ...]) -> None:
    """What holds of every step."""
    told = [e.report for e in effects if isinstance(e, Tell)]
    assert after.serial == before.serial + (after != before)
    if after.active != before.active:
        assert isinstance(event, Done) or before.phase in ("removing", "rolling_back")
        assert before.phase in ("switched", "rolling_back", "removing")
    if before.active is not None and after.active is None:
        assert before.phase in ("removing", "rolling_back")
        assert before.phase == "removing" or before.fallback is None
    if after.previous != before.previous and after.previous is not None:
        assert after.previous == before.fallback, "only what served becomes the previous one"
    if after.phase in ("failed", "committed") and after.phase != before.phase:
        assert [r for r in told if r.result in ENDS]
    if after.phase in ("idle", "cleaned") and before.phase == "removing":
        assert [r for r in told if r.result in ENDS]
    # Whatever was wanted is wanted still, under way, or has ended and is reported.
    if isinstance(event, Desired) and event.wanted.epoch > before.epoch:
        open_epochs = {w.epoch for w in (after.candidate, after.pending) if w is not None}
        ended = {r.epoch for r in told if r.result in ENDS}
        assert event.wanted.epoch in open_epochs | ended
        if before.pending is not None:
            assert before.pending.epoch in open_epochs | ended
    running = [before.work] if before.work else []
    if isinstance(event, Started) or (
        isinstance(event, Done | Failed | Postponed) and event.work == before.work
    ):
        running = []
    for effect in effects:
        if isinstance(effect, Cancel):
            assert running == [effect.number]
            running = []
        elif isinstance(effect, Work):
            assert running == [], "two pieces of work at once"
            running = [effect.number]
            assert effect.name != "stage" or effect.active is None or effect.slot != effect.active.slot
    assert running == ([after.work] if after.work else [])


def check_abort(state: State) -> None:
    """An order to stop is answered in every state, and what it stops comes to an end."""
    after, effects = step(state, Abort(now=NOW), QUICK)
    answers = [e.report for e in effects if isinstance(e, Tell) and e.report.result.startswith("abort_")]
    (answer,) = answers
    refused = state.phase in ABORT_REFUSED and state.pending is None
    assert answer.result == ("abort_refused" if refused else "abort_accepted")
    assert (answer.reason == ABORT_REFUSED[state.phase]) if refused else (answer.reason == "")
    ends(after, passing=False)


def ends(state: State, *, passing: bool) -> None:
    """Whatever fails, and with time passing, an update ends."""
    path: set[tuple[State, bool]] = set()
    for _ in range(120):
        if state.phase in ("idle", "cleaned") or waits(state) or (key(state), passing) in ENDING:
            ENDING.update(path)
            return
        path.add((key(state), passing))
        event: Event = Tick(now=at(1e9))
        if state.work:
            event = Failed(now=NOW, work=state.work, reason="broken", detail="", passing=passing)
        state, _effects = step(state, event, QUICK)
    raise AssertionError(f"it never ends: {state}")


def seeds() -> list[State]:
    """Return where searches begin: nothing installed, and an update over a first version, phase by phase."""
    nothing = State(model="m")
    first = advance(follow(nothing, Desired(now=NOW, wanted=want(1, V1)))[0], "cleaned")
    second = follow(first, Desired(now=NOW, wanted=want(2, V2, shadow_s=5.0)))[0]
    phases = ("downloading", "self_test", "switched", "probation", "committed", "cleaned")
    return [nothing, first, *(advance(second, phase) for phase in phases)]


def search(seed: State, depth: int) -> int:
    """Look at every state within so many events; return how many there are."""
    seen = {key(seed)}
    edge = [seed]
    check(seed)
    for _ in range(depth):
        reached = []
        for state in edge:
            for event in events(state):
                after, effects = step(state, event, QUICK)
                check_step(state, event, after, effects)
                if key(after) not in seen:
                    seen.add(key(after))
                    check(after)
                    check_abort(after)
                    ends(after, passing=True)
                    reached.append(after)
        edge = reached
    return len(seen)


def test_states_are_what_their_json_says() -> None:
    for state in seeds():
        for event in events(state):
            after, _effects = step(state, event, QUICK)
            assert State.from_plain(json.loads(json.dumps(after.to_plain()))) == after


@pytest.mark.parametrize("seed", range(8))
def test_states_within_two_events_hold(seed: int) -> None:
    assert search(seeds()[seed], 2) > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_states_within_six_events_hold(seed: int) -> None:
    assert search(seeds()[seed], 6) > 200
