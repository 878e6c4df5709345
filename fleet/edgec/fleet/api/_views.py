"""From what the fleet keeps to what is shown of it: plain functions, for the API and for pages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from edgec.errors import ProtocolError
from edgec.fleet._dates import date
from edgec.fleet.rollouts import Begin, Hold, Look, Order, Plan, Rollout, Soak
from edgec.fleet.service import Fleet
from edgec.fleet.store import DeviceRecord, HourOf, LoggedDecision, StoredRecord
from edgec.fleet.store._drift import DriftRow
from edgec.fleet.store._hours import HOUR_S
from edgec.fleet.store._pages import Pages
from edgec.fleet.store._telemetry import DIGEST_CHARS
from edgec.fleet.views import (
    AlertOfDevice,
    BehaviourView,
    BootView,
    DecisionView,
    DeviceDetail,
    DeviceView,
    DriftView,
    FindingView,
    Json,
    LookView,
    ModelView,
    RecordView,
    RolloutSummary,
    RolloutView,
    StageView,
    Word,
)
from edgec.protocol import DeviceEvent

# What stages are made of: few rows, however many devices there are.
STAGE_KINDS = ("begin", "soak", "look", "hold", "stop", "finish", "undone")
_QUANTILES = (0.5, 0.9, 0.95, 0.99)


def view_devices(fleet: Fleet, records: Sequence[DeviceRecord]) -> list[DeviceView]:
    """Return devices as they are shown."""
    versions, ends = _versions(fleet, records), fleet.claims.ends([r.id for r in records])
    return [DeviceView(**_facts(record, versions, ends)) for record in records]


def view_device(fleet: Fleet, record: DeviceRecord) -> DeviceDetail:
    """Return one device as it is shown."""
    view = record.view
    return DeviceDetail(
        **_facts(record, _versions(fleet, [record]), fleet.claims.ends([record.id])),
        agent=view.presence.agent if view.presence else "",
        boots=[BootView(id=b.id, epoch=b.epoch, first_heard=b.first_heard) for b in view.boots],
        clones=list(view.clones),
        alerts=[
            AlertOfDevice.model_validate(alert) for alert in (view.reported.alerts if view.reported else ())
        ],
    )


def view_record(record: StoredRecord) -> RecordView:
    """Return what a device said as it is shown."""
    try:
        event: Json | None = json.loads(DeviceEvent.from_bytes(record.payload).to_bytes())
    except ProtocolError:
        # Samples and damaged records are no events.
        event = None
    return RecordView(
        boot_id=record.boot_id, seq=record.seq, kind=record.kind, at=record.at, severity=record.severity,
        reason=record.word, event=event,
    )  # fmt: skip


def _versions(fleet: Fleet, records: Sequence[DeviceRecord]) -> dict[str, str]:
    reported = (r.view.reported for r in records)
    active = {m.active for r in reported if r for m in r.models.values() if m.active}
    return Pages(fleet.store.database).versions(active)


def _facts(record: DeviceRecord, versions: dict[str, str], ends: dict[str, float]) -> dict[str, Any]:
    reported = record.view.reported
    models = {
        name: ModelView(
            state=m.state,
            version=versions.get(m.active or ""),
            active=m.active,
            wanted=record.wanted.get(name),
            candidate=m.candidate,
            reason=m.reason,
            detail=m.detail,
            since=m.since,
        )
        for name, m in (reported.models.items() if reported else ())
    }
    for name, digest in record.wanted.items():
        if name not in models:
            models[name] = ModelView(
                state="not_reported", version=None, active=None, wanted=digest, candidate=None, reason=None,
                detail="", since=0.0,
            )  # fmt: skip
    return {
        "id": record.id,
        "hardware": record.hardware,
        "labels": dict(record.labels),
        "online": record.online,
        "fenced": record.fenced,
        "enrolled_at": record.enrolled_at,
        "certificate_expires_at": ends.get(record.id),
        "revoked_at": record.revoked_at,
        "seen_at": record.seen_at,
        "epoch": record.epoch,
        "acknowledged": record.view.acknowledges(record.epoch),
        "models": models,
    }


def summarise(rollout: Rollout, created_at: float) -> RolloutSummary:
    """Return how far a rollout is."""
    return RolloutSummary(**_summary(rollout, created_at))


def view_rollout(
    rollout: Rollout,
    created_at: float,
    logged: Sequence[LoggedDecision],
    phases: dict[str, int],
    orders: Sequence[Word],
    undone: Sequence[tuple[str, float, Order]] = (),
) -> RolloutView:
    """Return how far a rollout is, stage by stage.

    Args:
        rollout: Of which.
        created_at: When it was made.
        logged: Its decisions of `STAGE_KINDS`, in order.
        phases: Its devices by phase.
        orders: That can be given now.
        undone: Other rollouts of the same that persons have undone: id, time, order.
    """
    return RolloutView(
        **_summary(rollout, created_at),
        plan=rollout.plan.to_dict(),
        devices=phases,
        stages=view_stages(rollout, logged),
        orders=list(orders),
        warnings=[
            f"rollout {other} of this release was undone by {said.by} at {date(at)}"
            + (f": {said.reason}" if said.reason else "")
            for other, at, said in undone
        ],
    )


def view_stages(rollout: Rollout, logged: Sequence[LoggedDecision]) -> list[StageView]:
    """Return the stages of a rollout by its decisions."""
    stages = [_fresh(rollout.plan, number) for number in range(len(rollout.plan.stages))]
    now: StageView | None = None
    for entry in logged:
        decision = entry.decision
        if isinstance(decision, Begin):
            if now is not None:
                now.state = "passed"
            now = stages[decision.stage]
            now.state, now.begun_at = "running", entry.at
            now.devices, now.eligible, now.held = decision.devices, decision.eligible, ""
        elif now is not None:
            _tell(now, entry)
        elif isinstance(decision, Hold):
            # There was no device that it could begin with.
            _tell(stages[0], entry)
    if rollout.state in ("aborted", "undoing", "undone"):
        for stage in stages:
            if stage.state in ("running", "holding"):
                stage.state = "stopped"
            if stage is not now or rollout.held != "undoing":
                stage.held = ""
    return stages


def view_decision(entry: LoggedDecision) -> DecisionView:
    """Return a decision as it is shown."""
    body = entry.decision.to_dict()
    return DecisionView(id=entry.id, at=entry.at, kind=body.pop("kind"), body=body)


def _tell(stage: StageView, entry: LoggedDecision) -> None:
    decision = entry.decision
    if isinstance(decision, Soak):
        stage.soaking_since, stage.state, stage.held = entry.at, "running", ""
    elif isinstance(decision, Hold):
        stage.held = decision.detail
        if decision.reason != "undoing":
            stage.state = "holding"
    elif isinstance(decision, Look):
        findings = [FindingView.model_validate(f) for f in decision.verdict["findings"]]
        stage.look = LookView(
            look=decision.look,
            at=entry.at,
            outcome=decision.outcome,
            reason=decision.reason,
            findings=findings,
        )
        if decision.outcome == "pass":
            stage.state, stage.held = "running", ""
    elif decision.kind == "stop":
        stage.state, stage.held = "stopped", ""
    elif decision.kind == "finish":
        stage.state, stage.held = "passed", ""


def _fresh(plan: Plan, number: int) -> StageView:
    stage = plan.stages[number]
    return StageView(
        number=number + 1, percent=stage.percent, soak_s=stage.soak_s, state="waiting", begun_at=None,
        soaking_since=None, devices=None, eligible=None, held="", look=None,
    )  # fmt: skip


def _summary(rollout: Rollout, created_at: float) -> dict[str, Any]:
    plan = rollout.plan
    return {
        "id": plan.id,
        "name": plan.name,
        "model": plan.model,
        "version": plan.version,
        "query": plan.query,
        "state": rollout.state,
        "stage": rollout.stage + 1 if rollout.cutoff else 0,
        "of_stages": len(plan.stages),
        "held": rollout.held,
        "reason": rollout.reason,
        "created_at": created_at,
    }


def view_behaviour(digest: str, version: str | None, said: HourOf, hour: int | None = None) -> BehaviourView:
    """Return what an artifact did as it is shown."""
    figures: Json = {name: value if name == "seconds" else int(value) for name, value in said.figures.items()}
    quantiles = {f"p{q * 100:g}": said.latency.quantile(q) for q in _QUANTILES} if said.latency.count else {}
    return BehaviourView(
        digest=digest,
        version=version,
        hour=None if hour is None else float(hour * HOUR_S),
        latency_ms={name: value for name, value in quantiles.items() if math.isfinite(value)},
        classes={str(number): count for number, count in sorted(said.classes.items())},
        **figures,
    )


def versions_of(fleet: Fleet, model: str) -> dict[str, str]:
    """Return the version of each artifact of a model, by as much of its digest as telemetry has."""
    return {
        record.sha256[:DIGEST_CHARS]: version
        for name, version, _ in fleet.registry.releases(model)
        for record in fleet.registry.release(name, version)
    }


def view_drift(row: DriftRow, version: str | None) -> DriftView:
    """Return how far an input or output has moved as it is shown."""
    return DriftView(**{**vars(row), "version": version, "hour": float(row.hour * HOUR_S)})
