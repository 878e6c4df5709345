"""Rollouts as they are shown: how far, stage by stage, and by what figures that was decided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgec.fleet.views._base import Json, Seconds, View, Wanted

State = Literal["draft", "running", "paused", "aborted", "undoing", "undone", "finished"]
Word = Literal["start", "pause", "resume", "abort", "undo", "retry"]


class StageWanted(Wanted):
    """One stage."""

    percent: float = Field(gt=0, le=100, examples=[5], description="Of the eligible devices.")
    soak_s: float = Field(default=3600.0, ge=0, le=30 * 86400, description="For how long it must have run.")


class LimitsWanted(Wanted):
    """How much worse than the control a release may be; see docs/fleet.md."""

    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    install_failures: float = Field(default=0.02, gt=0, le=1)
    crashed_devices: float = Field(default=0.05, gt=0, le=1)
    silent_devices: float = Field(default=0.3, gt=0, le=1)
    errors: float = Field(default=0.01, gt=0, le=1)
    non_finite: float = Field(default=0.005, gt=0, le=1)
    slowdown: float = Field(default=1.3, gt=1, le=1000)
    distance: float = Field(default=0.15, gt=0, le=1)
    shift: float = Field(default=0.1, gt=0, le=100)
    disagreement: float = Field(default=0.15, gt=0, le=1)
    least_devices: int = Field(default=10, ge=1, le=100_000)
    least_calls: int = Field(default=1000, ge=1, le=10**9)
    reporting: float = Field(default=0.5, ge=0, le=1)


_STAGES = [StageWanted(percent=p) for p in (1, 5, 25, 100)]


class RolloutWanted(Wanted):
    """What is to be rolled out, and how."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$", examples=["kws"])
    version: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$",
        examples=["2"],
        description="The release; the newest of the model if left out.",
    )
    name: str = Field(default="", max_length=128, examples=["kws 2 for the lab"], description="For people.")
    query: str = Field(
        default="",
        max_length=2000,
        examples=["site=lab|hall, ring!=prod"],
        description="Which devices; all if empty.",
    )
    group: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        examples=["lab"],
        description="Instead of `query`: the query of this name, as it is now.",
    )
    stages: list[StageWanted] = Field(default=_STAGES, min_length=1, max_length=20)
    least_devices: int = Field(default=50, ge=1, le=10**6, description="Of a stage, or all.")
    quorum: float = Field(default=0.5, gt=0, le=1)
    install_s: float = Field(default=3600.0, gt=0, le=30 * 86400)
    first_look_s: float = Field(default=60.0, gt=0, le=86400)
    patience_s: float = Field(default=86400.0, gt=0, le=90 * 86400)
    attempts: int = Field(default=1, ge=1, le=10)
    limits: LimitsWanted = Field(default_factory=LimitsWanted)
    start: bool = Field(default=False, description="Start it at once; else it is a draft.")


class OrderWanted(Wanted):
    """Why, for the log of decisions."""

    reason: str = Field(default="", max_length=500, examples=["customer asked"])


class FindingView(View):
    """One figure of a verdict; see docs/fleet.md for its method."""

    metric: str = Field(examples=["latency_p95"])
    outcome: str = Field(examples=["pass"], description="pass, fail or inconclusive.")
    hardware: str
    figure: float | None
    limit: float | None
    low: float | None
    high: float | None
    n: int
    n_control: int
    units: str
    against: str
    detail: str


class LookView(View):
    """One look at the gate."""

    look: int
    at: Seconds
    outcome: str = Field(examples=["pass"])
    reason: str = Field(description="The metrics that decided, for programs.")
    findings: list[FindingView]


class StageView(View):
    """One stage."""

    number: int = Field(description="From 1.")
    percent: float
    soak_s: float
    state: str = Field(examples=["passed"], description="waiting, running, holding, passed or stopped.")
    begun_at: Seconds | None
    soaking_since: Seconds | None
    devices: int | None = Field(description="In it when it began.")
    eligible: int | None
    held: str = Field(description="What it holds for, for people; empty where it does not.")
    look: LookView | None = Field(description="The last look at the gate.")


class RolloutSummary(View):
    """How far a rollout is."""

    id: str = Field(examples=["kws-2-5f0c9c0e"])
    name: str
    model: str
    version: str
    query: str
    state: State
    stage: int = Field(description="Of `of_stages`, from 1; 0 before the first.")
    of_stages: int
    held: str = Field(description="Why it holds, for programs; empty where it does not.")
    reason: str = Field(description="Why it was stopped.")
    created_at: Seconds


class RolloutView(RolloutSummary):
    """How far a rollout is, stage by stage."""

    plan: Json = Field(description="All that was asked for.")
    devices: dict[str, int] = Field(
        description="Devices by phase: assigned, working, installed, failed, undoing, undone.",
        examples=[{"installed": 48, "working": 2}],
    )
    stages: list[StageView]
    orders: list[Word] = Field(description="That can be given now.")
    warnings: list[str] = Field(
        default_factory=list,
        description="What a person should know before it goes on, as that somebody has undone this release "
        "before.",
    )


class DecisionView(View):
    """A decision with its figures."""

    id: int
    at: Seconds
    kind: str = Field(examples=["look"])
    body: Json


class AssignedView(View):
    """What a rollout has told a device, and what became of it."""

    device: str
    digest: str
    previous: str | None
    epoch: int
    assigned_at: Seconds
    attempts: int
    phase: str = Field(examples=["installed"])
    phase_at: Seconds
    reason: str
    noticed: bool
    undone: bool
    confirmed: bool
