"""What a planner decides and a person orders: values, each an event of a log that is only added to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from edgec.fleet.rollouts._rings import PLACES
from edgec.fleet.rollouts._values import OVER, Rollout
from edgec.fleet.verdicts import PASS


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Base of all; `kind` names it in the log."""

    kind: ClassVar[str] = ""

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Return the rollout after it."""
        return rollout

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Assign(Decision):
    """Tell a device to have the release. `attempt` counts from 1; `previous` is what to go back to."""

    kind = "assign"
    device: str
    digest: str
    previous: str | None
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Undo(Decision):
    """Tell a device to have again what it had; None for nothing."""

    kind = "undo"
    device: str
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Begin(Decision):
    """A stage begins. `devices` are in it by now, of `eligible` ones in all."""

    kind = "begin"
    stage: int
    percent: float
    cutoff: int
    devices: int
    eligible: int

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Forget all about the stage before."""
        return replace(
            rollout, state="running", stage=self.stage, cutoff=self.cutoff, since=now, soaking_since=None,
            looks=0, looked_at=None, passed=False, held="", held_failed=0, told_long=False,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Soak(Decision):
    """A quorum of the stage has ended its update; of these, it has `failed` on so many."""

    kind = "soak"
    ended: int
    devices: int
    failed: int = 0

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Note when."""
        return replace(rollout, soaking_since=now, held="", held_failed=0)


@dataclass(frozen=True, kw_only=True)
class Look(Decision):
    """The gate was looked at. `verdict` is a `Verdict` with all its figures, as JSON has it."""

    kind = "look"
    stage: int
    look: int
    outcome: str
    reason: str
    verdict: dict[str, Any]

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Count it: the next one has less of the probability to be wrong."""
        return replace(rollout, looks=self.look, looked_at=now, passed=self.outcome == PASS)


@dataclass(frozen=True, kw_only=True)
class Hold(Decision):
    """Nothing goes on, and why; told once as long as reason and number of failed updates are the same."""

    kind = "hold"
    reason: str
    detail: str
    figures: dict[str, float] = field(default_factory=dict)

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Remember what was told."""
        return replace(rollout, held=self.reason, held_failed=int(self.figures.get("failed", 0)))


@dataclass(frozen=True, kw_only=True)
class Stop(Decision):
    """The release is bad: what was assigned is to be taken back."""

    kind = "stop"
    reason: str
    detail: str

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Begin to undo."""
        return replace(rollout, state="undoing", since=now, held="", reason=self.reason, told_long=False)


@dataclass(frozen=True, kw_only=True)
class Quarantine(Decision):
    """An artifact is not to be installed anywhere any more."""

    kind = "quarantine"
    digest: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class OpenIncident(Decision):
    """A person must know. `evidence` is what it was decided by."""

    kind = "incident"
    reason: str
    detail: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """One of a hold is told once."""
        return replace(rollout, told_long=True)


@dataclass(frozen=True, kw_only=True)
class Undone(Decision):
    """All devices that can be reached have confirmed; `waiting` get the order when they come back."""

    kind = "undone"
    confirmed: int
    waiting: int

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """It is over."""
        return replace(rollout, state="undone", held="")


@dataclass(frozen=True, kw_only=True)
class Finish(Decision):
    """The last stage has passed; `installed` of `devices` have the release, the others may still come."""

    kind = "finish"
    installed: int
    devices: int

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """It is over; who comes later belongs to it, too."""
        return replace(rollout, state="finished", cutoff=PLACES, held="")


@dataclass(frozen=True, kw_only=True)
class Order(Decision):
    """A person's word: ``start``, ``pause``, ``resume``, ``abort``, ``undo``, ``retry``.

    After ``abort``, what was installed stays; ``undo`` takes it back. An order is accepted or refused at
    once, in every state: see `refusal`.
    """

    kind = "order"
    word: str
    by: str
    reason: str = ""

    def apply(self, rollout: Rollout, now: float) -> Rollout:
        """Go where the order leads."""
        if self.word == "start":
            return replace(rollout, state="running", since=now)
        if self.word == "pause":
            return replace(rollout, state="paused", resumes=rollout.state, held="")
        if self.word == "resume":
            return replace(rollout, state=rollout.resumes, held="")
        if self.word == "abort":
            return replace(rollout, state="aborted", reason=self.reason or "aborted", held="")
        if self.word == "undo":
            reason = self.reason or "ordered"
            return replace(rollout, state="undoing", since=now, reason=reason, held="", told_long=False)
        return replace(rollout, retried_at=now, held="")


ORDERS = ("start", "pause", "resume", "abort", "undo", "retry")
_KINDS = {
    c.kind: c
    for c in (
        Assign, Undo, Begin, Soak, Look, Hold, Stop, Quarantine, OpenIncident, Undone, Finish, Order,
    )
}  # fmt: skip


def decision_from_dict(document: dict[str, Any]) -> Decision:
    """Return what `Decision.to_dict` gave.

    Raises:
        ValueError: There is no such kind.
    """
    kind = _KINDS.get(document.get("kind", ""))
    if kind is None:
        raise ValueError(f"expected a decision of kind {', '.join(_KINDS)}, got {document.get('kind')!r}")
    known = {f.name for f in fields(kind)}
    return kind(**{key: value for key, value in document.items() if key in known})


def refusal(rollout: Rollout, word: str) -> str | None:
    """Return why an order cannot be carried out in this state, and what to do; None where it can.

    Raises:
        ValueError: There is no such order.
    """
    if word not in ORDERS:
        raise ValueError(f"expected one of {', '.join(ORDERS)}, got {word!r}")
    state = rollout.state
    if word == "undo":
        undone = state in ("undoing", "undone")
        return (
            f"it is {state} already" if undone else "nothing was assigned yet" if state == "draft" else None
        )
    if word == "start":
        return None if state == "draft" else f"it is {state}; only a draft can be started"
    if state in OVER:
        return f"it is {state}; make a new rollout"
    if word == "pause":
        refused = {"paused": "it is paused already", "draft": "it has not started"}
        return refused.get(state)
    if word == "resume":
        return None if state == "paused" else f"it is {state}, not paused"
    if word == "abort" and "undoing" in (state, rollout.resumes if state == "paused" else ""):
        return "it is being undone, and that is never left half-way"
    if word == "retry" and state not in ("running", "paused"):
        return f"it is {state}; only a running rollout tells devices again"
    return None
