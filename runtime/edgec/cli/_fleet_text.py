"""What a fleet says, for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgec.cli._text import columns, moment, printable

if TYPE_CHECKING:
    from edgec.fleet.views import (
        BehaviourView,
        DeviceDetail,
        DeviceView,
        FindingView,
        IncidentView,
        LookView,
        RolloutSummary,
        RolloutView,
        StageView,
    )

_DAY_S = 86400


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    if not seconds:
        return "never"
    gone = max(0.0, time.time() - seconds)
    for size, unit in ((_DAY_S, "d"), (3600, "h"), (60, "min")):
        if gone >= size:
            return f"{gone / size:.0f} {unit} ago"
    return "now" if gone < 5 else f"{gone:.0f} s ago"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], none: str) -> list[str]:
    """Return rows below their heads, or what to say where there are none."""
    found = list(rows)
    return columns([head, *found], indent="") if found else [none]


def device_row(device: DeviceView) -> list[str]:
    """Return a device in a row."""
    state = "revoked" if device.revoked_at else "fenced" if device.fenced else ""
    state = state or ("online" if device.online else "offline")
    models = ", ".join(f"{name} {model_state(m.version, m.state)}" for name, m in device.models.items())
    labels = ", ".join(f"{k}={v}" for k, v in device.labels.items())
    return [device.id, state, ago(device.seen_at), device.hardware, models or "-", labels]


def model_state(version: str | None, state: str) -> str:
    """Return what a device has of a model."""
    settled = state in ("idle", "committed", "cleaned")
    return (version or "?") + ("" if settled else f" ({state.replace('_', ' ')})")


def device_lines(device: DeviceDetail) -> list[str]:
    """Return a device as lines."""
    rows = [
        ["device", device.id],
        ["hardware", device.hardware],
        ["state", device_row(device)[1] + f", heard of {ago(device.seen_at)}"],
        ["agent", device.agent or "-"],
        ["labels", ", ".join(f"{k}={v}" for k, v in device.labels.items()) or "-"],
        ["order", f"{device.epoch}" + ("" if device.acknowledged else ", not acknowledged")],
        *(["alert", f"{alert.reason}: {alert.detail}"] for alert in device.alerts),
    ]
    if device.clones:
        rows.append(["clones", f"{', '.join(device.clones)}; pick one: edgec fleet settle {device.id} BOOT"])
    models = [
        [name, model_state(m.version, m.state), moment(m.since), m.detail or m.reason or ""]
        for name, m in device.models.items()
    ]
    return [
        *columns(rows, indent=""),
        "",
        *table(["model", "has", "since", "why"], models, "it has no model"),
    ]


def rollout_row(rollout: RolloutSummary) -> list[str]:
    """Return a rollout in a row."""
    stage = f"{rollout.stage}/{rollout.of_stages}"
    why = rollout.reason or (f"holds: {rollout.held}" if rollout.held else "")
    made, query = moment(rollout.created_at), rollout.query or "all"
    return [rollout.id, rollout.name, rollout.state, stage, query, made, why]


def rollout_lines(rollout: RolloutView) -> list[str]:
    """Return how far a rollout is as lines."""
    phases = ", ".join(f"{n} {phase}" for phase, n in sorted(rollout.devices.items())) or "none told yet"
    rows = [
        ["rollout", f"{rollout.id}  ({rollout.name})"],
        ["state", rollout.state + (f": {rollout.reason}" if rollout.reason else "")],
        ["devices", phases],
        ["orders", ", ".join(rollout.orders) or "none; it is over"],
    ]
    lines = [*columns(rows, indent=""), ""]
    for stage in rollout.stages:
        lines += stage_lines(stage)
    return lines


def stage_lines(stage: StageView) -> list[str]:
    """Return a stage as lines: its last look at the gate, figure by figure where one did not pass."""
    count = "" if stage.devices is None else f", {stage.devices} of {stage.eligible} devices"
    lines = [f"stage {stage.number}  {stage.percent:g} %{count}: {stage.state}"]
    if stage.held:
        word = "holds" if stage.state == "holding" else "undoing"
        lines.append(printable(f"  {word}: {stage.held}"))
    return [*lines, *(look_lines(stage.look) if stage.look else [])]


def look_lines(look: LookView) -> list[str]:
    """Return a look at the gate as lines: what did not pass, and installations of which some failed."""
    told = [f for f in look.findings if f.outcome != "pass" or (f.metric == "installs" and f.figure)]
    told = told or look.findings
    rows = [
        [
            f.metric,
            f.outcome,
            f.hardware or "all",
            _figure(f),
            "-" if f.limit is None else f"limit {f.limit:.4g}",
            f"n {f.n}/{f.n_control} {f.units}",
            f.detail,
        ]
        for f in told
    ]
    return [f"  look {look.look} at {moment(look.at)}: {look.outcome}", *columns(rows, indent="    ")]


def _figure(finding: FindingView) -> str:
    """Return the figure of a finding with its interval."""
    if finding.figure is None:
        return "-"
    known = finding.low is not None and finding.high is not None
    return f"{finding.figure:.4g}" + (f" ({finding.low:.3g} to {finding.high:.3g})" if known else "")


def incident_row(incident: IncidentView) -> list[object]:
    """Return an incident in a row."""
    about = incident.rollout or incident.device or "-"
    state = "open" if incident.closed_at is None else f"closed by {incident.closed_by}"
    return [incident.id, moment(incident.opened_at), state, about, incident.reason, incident.detail]


def behaviour_row(said: BehaviourView) -> list[object]:
    """Return what an artifact did in a row."""
    latency = "  ".join(f"{name} {value:.3g} ms" for name, value in said.latency_ms.items())
    version = said.version or said.digest[:12]
    return [version, moment(said.hour), said.calls, said.errors, said.non_finite, said.crashes, latency]
