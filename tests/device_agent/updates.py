"""Small words for tests about updates."""

from __future__ import annotations

from edgec.device_agent._events import Done, Effect, Event, Work
from edgec.device_agent._state import Moment, State, Wanted
from edgec.device_agent._turn import Limits
from edgec.device_agent._update import step

V1, V2, V3 = ("1" * 64, "2" * 64, "3" * 64)
# As patient as tests need it.
QUICK = Limits(attempts=2, tries=3, retries=2, interruptions=2, crashes=2)


def at(mono_s: float, wall_s: float = 1_700_000_000.0) -> Moment:
    """Return a moment."""
    return Moment(mono_s=mono_s, wall_s=wall_s)


NOW = at(0.0)


def want(
    epoch: int, digest: str = V1, *, retry: bool = False, prepare: bool = False, shadow_s: float = 0.0
) -> Wanted:
    """Return a wish; with an empty digest, for removal."""
    return Wanted(
        epoch=epoch,
        digest=digest,
        length=100,
        target="m",
        retry=epoch if retry else 0,
        prepare=prepare,
        shadow_s=shadow_s,
    )


def follow(state: State, *events: Event, limits: Limits = QUICK) -> tuple[State, list[Effect]]:
    """Take several events in; return the last state and all effects."""
    effects: list[Effect] = []
    for event in events:
        state, more = step(state, event, limits)
        effects += more
    return state, effects


def advance(state: State, phase: str, limits: Limits = QUICK) -> State:
    """Let work succeed until a phase begins."""
    for _ in range(40):
        if state.phase == phase:
            return state
        state, _effects = step(state, Done(now=NOW, work=state.work), limits)
    raise AssertionError(f"{phase} is not reached; it stays {state.phase}")


def works(effects: list[Effect]) -> list[str]:
    """Return the names of the work that effects ask for."""
    return [effect.name for effect in effects if isinstance(effect, Work)]
