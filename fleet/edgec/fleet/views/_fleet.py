"""Incidents, telemetry, groups, the audit log and tokens as they are shown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgec.fleet.views._base import Json, Seconds, View, Wanted

Role = Literal["viewer", "operator", "releaser", "admin"]


class FleetView(View):
    """The fleet at a glance."""

    devices: int = Field(description="That were not revoked.")
    online: int
    fenced: int
    revoked: int
    incidents: int = Field(description="Open ones, up to 1000.")
    rollouts: int = Field(description="Under way.")


class IncidentView(View):
    """Something that a person must know."""

    id: int
    rollout: str | None
    device: str | None
    reason: str = Field(examples=["latency_p95"])
    detail: str
    evidence: Json = Field(description="What it was decided by.")
    opened_at: Seconds
    closed_at: Seconds | None
    closed_by: str | None


class GroupView(View):
    """A query that has a name."""

    name: str = Field(examples=["lab"])
    query: str = Field(examples=["site=lab"])


class GroupWanted(Wanted):
    """A query to be named."""

    query: str = Field(max_length=2000, examples=["site=lab|hall, ring!=prod"])


class BehaviourView(View):
    """What one artifact did over some time: figures and percentiles of all its calls."""

    digest: str = Field(description="The first 16 digits of the artifact's.")
    version: str | None = Field(description="Null where the registry does not have it.")
    hour: Seconds | None = Field(description="Its beginning; null where it is all hours.")
    seconds: float = Field(description="That windows of telemetry cover.")
    calls: int
    errors: int
    sampled: int
    non_finite: int
    crashes: int
    compared: int
    disagreed: int
    latency_ms: dict[str, float] = Field(examples=[{"p50": 4.2, "p95": 7.9}], description="Percentiles.")
    classes: dict[str, int] = Field(description="Calls by class; -1 is all others.")


class AlertView(View):
    """Something that a person should know now; it ends by itself when it is no longer so."""

    id: int
    rule: str = Field(examples=["offline"])
    subject: str = Field(description="Of what: a device, a model, a rollout.")
    severity: str = Field(examples=["warning"])
    summary: str = Field(description="For people.")
    figures: Json
    raised_at: Seconds
    quiet_since: Seconds | None = Field(
        default=None,
        description="When what raised it ended; an open one is cleared once that has lasted a while.",
    )
    cleared_at: Seconds | None = Field(description="Null while it is open.")


class DriftView(View):
    """How far an input or output of an artifact has moved from its calibration data."""

    model: str
    digest: str = Field(description="The first 16 digits of the artifact's.")
    version: str | None = Field(description="Null where the registry does not have it.")
    hardware: str
    kind: Literal["input", "output"] = Field("output", description="What it is of.")
    output: str = Field(description="Its name; of an input, that and the statistic: image/mean.")
    hour: Seconds = Field(description="Beginning of the last hour that it is about.")
    hours: int = Field(
        description="That it took to have enough values; of inputs, since when they are known, to 24."
    )
    n: int = Field(description="Values.")
    psi: float = Field(description="Population stability index, less its bias; 0 for no drift.")
    ks: float = Field(description="Largest difference of the distribution functions, 0 to 1.")


class AuditView(View):
    """One change."""

    seq: int
    at: Seconds
    actor: str = Field(examples=["ann"])
    action: str = Field(examples=["rollout.create"])
    subject: str
    body: Json
    hash: str = Field(description="SHA-256 of it and of the entry before.")


class AuditCheck(View):
    """Whether the audit log is whole."""

    intact: bool
    entries: int = Field(description="That were checked; 0 where it is not intact.")
    hash: str = Field(
        description="Of the last one: keep it elsewhere, and give it as `expected_hash` next time."
    )
    problem: str = Field(description="What is wrong; empty where nothing is.")


class TokenView(View):
    """What is known of a token."""

    id: str
    name: str = Field(description="The actor in the audit log.", examples=["ann"])
    role: Role
    created_at: Seconds
    created_by: str
    expires_at: Seconds | None
    used_at: Seconds | None
    revoked_at: Seconds | None


class TokenMade(TokenView):
    """A new token."""

    token: str = Field(description="It is told only here.")


class TokenWanted(Wanted):
    """A token to be made."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[ -~]*[!-~][ -~]*$", examples=["ann"])
    role: Role = Field(examples=["operator"])
    valid_s: float | None = Field(
        default=None,
        gt=0,
        le=10 * 366 * 86400,
        description="When it ends, from now; never if left out.",
        examples=[7776000],
    )
