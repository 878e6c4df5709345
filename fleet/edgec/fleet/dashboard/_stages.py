"""How far a rollout is, stage by stage: devices in their order, what the gate said, what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgec.fleet.dashboard._figures import Gate, gate_of
from edgec.fleet.dashboard._queries import Placed
from edgec.fleet.rollouts import Begin, Finish, Look, Rollout, Soak, cutoff
from edgec.fleet.store import LoggedDecision
from edgec.fleet.verdicts import Verdict

# As they are drawn, from what is done to what has not begun.
PHASES = ("installed", "working", "assigned", "failed", "undoing", "undone", "none")
PHASE_WORDS = {
    "installed": "has it", "working": "installing", "assigned": "told", "failed": "failed",
    "undoing": "going back", "undone": "went back", "none": "not yet",
}  # fmt: skip
# More devices of a stage than this are drawn as a bar, not one by one.
MOST_DOTS = 240


@dataclass(kw_only=True)
class StageView:
    """One stage.

    Attributes:
        number: From 1.
        percent: Of the eligible devices, all before included.
        soak_s: How long the release must run before the gate has the last word.
        state: ``passed``, ``now``, ``failed``, ``stopped``, ``ahead`` or ``skipped``: nobody is new in it.
        devices: That are new in it, by place.
        counts: Of them by phase, without zeros, in the order of `PHASES`.
        began: When; None before.
        joined: Devices of it that came into the fleet after it had begun.
        soaking: Since when; None before.
        looks: Of the gate, newest first: time, number, outcome, reason.
    """

    number: int
    percent: float
    soak_s: float
    state: str
    devices: list[Placed]
    counts: dict[str, int]
    began: float | None = None
    joined: int = 0
    soaking: float | None = None
    looks: list[LookView] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LookView:
    """One look of the gate."""

    at: float
    stage: int
    number: int
    outcome: str
    reason: str
    gate: Gate | None


@dataclass(frozen=True, kw_only=True)
class Station:
    """A stage, as far as a line of a table shows it; `state` as of `StageView`."""

    percent: float
    state: str


def stations(rollout: Rollout) -> list[Station]:
    """Return the stages of a rollout, without their devices."""
    finished = rollout.state == "finished"
    return [
        Station(
            percent=stage.percent,
            state=_state(rollout, i, rollout.cutoff > 0 and i <= rollout.stage, finished),
        )
        for i, stage in enumerate(rollout.plan.stages)
    ]


def view_stages(rollout: Rollout, placed: Sequence[Placed], log: Iterable[LoggedDecision]) -> list[StageView]:
    """Return the stages of a rollout, each with the devices that are new in it.

    Args:
        rollout: As it is.
        placed: Its devices, by place.
        log: Its decisions, those about single devices may be missing.
    """
    begun = {}
    soaks: dict[int, float] = {}
    looks: dict[int, list[LookView]] = {}
    at_stage, finished = 0, False
    for entry in log:
        said = entry.decision
        if isinstance(said, Begin):
            begun[said.stage], at_stage = (entry.at, said.cutoff), said.stage
        elif isinstance(said, Soak):
            soaks[at_stage] = entry.at
        elif isinstance(said, Look):
            looks.setdefault(said.stage, []).insert(0, _look(entry.at, said))
        finished |= isinstance(said, Finish)
    cutoffs = _cutoffs(rollout, placed, {k: v[1] for k, v in begun.items()})
    views, below = [], 0
    for i, stage in enumerate(rollout.plan.stages):
        mine = [d for d in placed if below <= d.place < cutoffs[i]]
        below = max(below, cutoffs[i])
        began = begun[i][0] if i in begun else None
        views.append(
            StageView(
                number=i + 1, percent=stage.percent, soak_s=stage.soak_s,
                state=_state(rollout, i, i in begun, finished), devices=mine, counts=counted(mine),
                began=began, soaking=soaks.get(i), looks=looks.get(i, []),
                joined=0 if began is None else sum(d.enrolled_at > began for d in mine),
            )
        )  # fmt: skip
    return views


def counted(placed: Iterable[Placed]) -> dict[str, int]:
    """Return how many devices are in each phase, without zeros."""
    counts = Counter(d.phase for d in placed)
    return {phase: counts[phase] for phase in PHASES if counts[phase]}


def newest_look(views: Sequence[StageView]) -> LookView | None:
    """Return the last look of the gate; None before the first."""
    looks = [look for view in views for look in view.looks[:1]]
    return max(looks, key=lambda look: look.at, default=None)


def findings_of(document: object) -> Gate | None:
    """Return the findings of a verdict as it is kept; None of anything else."""
    if not isinstance(document, Mapping) or "findings" not in document:
        return None
    return gate_of(Verdict.from_dict(document).findings)


def _look(at: float, said: Look) -> LookView:
    return LookView(
        at=at, stage=said.stage + 1, number=said.look, outcome=said.outcome, reason=said.reason,
        gate=findings_of(said.verdict),
    )  # fmt: skip


def _cutoffs(rollout: Rollout, placed: Sequence[Placed], known: dict[int, int]) -> list[int]:
    """Return where stages end: as they did, or as they would now."""
    ids = [d.id for d in placed]
    found: list[int] = []
    for i, stage in enumerate(rollout.plan.stages):
        end = known.get(i)
        if end is None:
            end = cutoff(rollout.plan.id, ids, stage.percent, rollout.plan.least_devices)
            later = [c for j, c in known.items() if j > i]
            end = min([end, *later])
        found.append(max(end, found[-1] if found else 0))
    return found


def _state(rollout: Rollout, number: int, begun: bool, finished: bool) -> str:
    if finished or rollout.state == "finished":
        return "passed" if begun or number == len(rollout.plan.stages) - 1 else "skipped"
    if number < rollout.stage:
        return "passed" if begun else "skipped"
    if not begun:
        return "ahead"
    if rollout.state in ("undoing", "undone"):
        return "failed"
    return "stopped" if rollout.state in ("aborted", "paused") else "now"
