"""What a rollout is, how far it is, and what is known of its devices: values, as the store keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgec.fleet.verdicts import Evidence, Limits

State = Literal["draft", "running", "paused", "aborted", "undoing", "undone", "finished"]
# Nothing comes after these but what late devices say.
OVER: tuple[State, ...] = ("aborted", "undone", "finished")
Phase = Literal["none", "assigned", "working", "installed", "failed"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, and what it takes to leave it.

    Attributes:
        percent: Of the eligible devices, all before included.
        soak_s: For how long the release must have run on a quorum of the stage.
    """

    percent: float
    soak_s: float = 3600.0


DEFAULT_STAGES = (Stage(percent=1), Stage(percent=5), Stage(percent=25), Stage(percent=100))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a release is to be rolled out to, and how.

    Attributes:
        id: Of the rollout; salts who is first, so that it is not always the same devices.
        name: For people.
        model: Name of the model.
        version: The release.
        artifacts: Digest of the release's artifact by class of hardware; other classes are not eligible.
        query: Which devices, in words of `edgec.fleet.store.parse_query`; empty for all.
        stages: In order, the last with 100 percent.
        least_devices: A stage has so many devices, or all. In fleets below it, stages have what their
            percentage says, one at the least, and the gate has calls for evidence.
        quorum: Share of a stage's devices that must have ended their update before the soak begins.
        install_s: A device that takes notice and has not ended after this long counts as failed.
        first_look_s: When the gate is first looked at after the soak began; then after twice as long.
        patience_s: A stage that holds for longer opens an incident: a person must decide.
        attempts: How often a device is told, where the update fails.
        limits: Of the gate.
    """

    id: str
    name: str
    model: str
    version: str
    artifacts: Mapping[str, str]
    query: str = ""
    stages: tuple[Stage, ...] = DEFAULT_STAGES
    least_devices: int = 50
    quorum: float = 0.5
    install_s: float = 3600.0
    first_look_s: float = 60.0
    patience_s: float = 86400.0
    attempts: int = 1
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        problems = []
        percents = [stage.percent for stage in self.stages]
        if not percents or percents[-1] != 100 or percents != sorted(set(percents)) or percents[0] <= 0:
            problems.append(f"stages must grow from above 0 to 100 percent, got {percents}")
        if not self.artifacts:
            problems.append("a release without artifacts cannot be rolled out")
        if not 0 < self.quorum <= 1:
            problems.append(f"the quorum must be above 0 and at most 1, got {self.quorum}")
        if min((self.least_devices, self.attempts)) < 1:
            problems.append("least_devices and attempts must be at least 1")
        if self.install_s <= 0 or self.first_look_s <= 0 or self.patience_s <= 0:
            problems.append("install_s, first_look_s and patience_s must be above 0")
        if problems:
            raise ValueError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """Return what `to_dict` gave."""
        values = dict(document)
        values["stages"] = tuple(Stage(**stage) for stage in values["stages"])
        values["limits"] = Limits(**values["limits"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How far a rollout is: what its decisions have made of it, and nothing else.

    Attributes:
        plan: What is wanted.
        state: Where it is.
        resumes: The state that a pause began in.
        stage: Number of the stage, from 0.
        cutoff: Devices whose place in the ring is below it are in the stage; of 10,000.
        since: When the stage, or the undoing, began.
        soaking_since: When a quorum of the stage had the release; None before.
        looks: Times the gate was looked at in this stage.
        looked_at: When last; None before the first.
        passed: Whether the last look passed.
        held: Reason of the hold that was told last.
        held_failed: Devices whose update had failed, as was told with it.
        told_long: Whether a person was told that the stage holds for too long.
        retried_at: Devices that failed before it are told once more.
        reason: Why it was stopped.
    """

    plan: Plan
    state: State = "draft"
    resumes: State = "running"
    stage: int = 0
    cutoff: int = 0
    since: float = 0.0
    soaking_since: float | None = None
    looks: int = 0
    looked_at: float | None = None
    passed: bool = False
    held: str = ""
    held_failed: int = 0
    told_long: bool = False
    retried_at: float = 0.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Rollout:
        """Return what `to_dict` gave."""
        return cls(**{**document, "plan": Plan.from_dict(document["plan"])})


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One device, as far as a rollout looks at it.

    Attributes:
        id: Its id.
        hardware: Its class of hardware.
        active: Digest of the artifact that serves, as it reports; None for none, or before its first report.
        wanted: Digest that it is told to have, or that it runs where it follows orders of somebody else; None
            for none.
        available: Whether it may be given anything: not revoked, not fenced, not in another rollout.
        assigned: Digest that this rollout has assigned to it; None before.
        previous: What it was told to have before that; None for nothing.
        assigned_at: When.
        attempts: How often.
        phase: How far that is.
        phase_at: When it reported so, by the fleet's clock.
        noticed: Whether it has acknowledged the assignment.
        seen_at: When it was last heard of.
        reachable: Whether it is connected and follows orders: neither revoked nor fenced.
        undone: Whether this rollout has taken its assignment back.
        confirmed: Whether it has acknowledged that.
        reason: Of its failure.
    """

    id: str
    hardware: str
    active: str | None = None
    wanted: str | None = None
    available: bool = True
    assigned: str | None = None
    previous: str | None = None
    assigned_at: float = 0.0
    attempts: int = 0
    phase: Phase = "none"
    phase_at: float = 0.0
    noticed: bool = False
    seen_at: float = 0.0
    reachable: bool = True
    undone: bool = False
    confirmed: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a planner looks at.

    Attributes:
        devices: That the plan's query names, and those it has assigned to before.
        evidence: Of the release's behaviour; None where `look_due` says that no look is due.
        quarantined: Digests that may not be installed.
    """

    devices: tuple[DeviceFacts, ...] = ()
    evidence: Evidence | None = None
    quarantined: frozenset[str] = frozenset()
