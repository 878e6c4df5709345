"""Rollouts: made, ordered, and looked at."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from edgec.errors import FleetError
from edgec.fleet.api._access import FleetOf, Operator, Releaser, Viewer
from edgec.fleet.api._once import Once, OnceOf
from edgec.fleet.api._params import Cursor, Limit, MaybeModel, NumberCursor, RolloutId
from edgec.fleet.api._views import STAGE_KINDS, summarise, view_decision, view_rollout
from edgec.fleet.rollouts import ORDERS, Plan, Stage, refusal
from edgec.fleet.service import Fleet
from edgec.fleet.store._pages import Pages
from edgec.fleet.store._tokens import Token
from edgec.fleet.verdicts import Limits
from edgec.fleet.views import (
    AssignedView,
    DecisionView,
    OrderWanted,
    Page,
    RolloutSummary,
    RolloutView,
    RolloutWanted,
    State,
    Word,
)

router = APIRouter(prefix="/rollouts", tags=["rollouts"])
Kind = Literal[
    "assign",
    "undo",
    "begin",
    "soak",
    "look",
    "hold",
    "stop",
    "quarantine",
    "incident",
    "undone",
    "finish",
    "order",
]
Phase = Literal["assigned", "working", "installed", "failed"]


@router.post("", status_code=201, response_model=RolloutView)
def create_rollout(who: Releaser, fleet: FleetOf, body: RolloutWanted, once: OnceOf) -> Response:
    """Write down what is to be rolled out, and how; with `start`, begin."""

    def deed() -> RolloutView:
        plan = plan_of(fleet, body)
        fleet.store.rollouts.create(plan, now=fleet.clock(), actor=who.name)
        if body.start:
            fleet.store.rollouts.order(plan.id, "start", now=fleet.clock(), actor=who.name)
        return show(fleet, plan.id)

    return once.carry_out(deed, 201)


@router.get("")
def list_rollouts(
    who: Viewer,
    fleet: FleetOf,
    state: Annotated[list[State], Query(max_length=7)] = [],  # noqa: B006 - FastAPI copies it
    model: MaybeModel = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> Page[RolloutSummary]:
    """List rollouts, newest first."""
    pages = Pages(fleet.store.database)
    found = pages.rollouts(states=state, model=model, after=cursor, limit=limit + 1)
    items = [summarise(rollout, created_at) for rollout, created_at in found[:limit]]
    return Page(items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/{rollout}")
def get_rollout(who: Viewer, fleet: FleetOf, rollout: RolloutId) -> RolloutView:
    """Show how far a rollout is, stage by stage, with the figures of its gates."""
    return show(fleet, rollout)


@router.get("/{rollout}/decisions")
def list_decisions(
    who: Viewer,
    fleet: FleetOf,
    rollout: RolloutId,
    kind: Annotated[list[Kind], Query(max_length=12)] = [],  # noqa: B006 - FastAPI copies it
    cursor: NumberCursor = 0,
    limit: Limit = 100,
) -> Page[DecisionView]:
    """List what was decided, in order, with all figures."""
    pages = Pages(fleet.store.database)
    pages.rollout(rollout)
    found = pages.decisions(rollout, kinds=kind, after=cursor, limit=limit + 1)
    items = [view_decision(entry) for entry in found[:limit]]
    return Page(items=items, next=str(items[-1].id) if len(found) > limit else None)


@router.get("/{rollout}/devices")
def rollout_devices(
    who: Viewer,
    fleet: FleetOf,
    rollout: RolloutId,
    phase: Phase | None = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> Page[AssignedView]:
    """List what a rollout has told devices and what became of it, by their ids."""
    pages = Pages(fleet.store.database)
    pages.rollout(rollout)
    found = pages.assignments(rollout, phase=phase, after=cursor, limit=limit + 1)
    items = [AssignedView.model_validate(a) for a in found[:limit]]
    return Page(items=items, next=items[-1].device if len(found) > limit else None)


@router.post("/{rollout}/start", response_model=RolloutView)
def start_rollout(
    who: Releaser, fleet: FleetOf, rollout: RolloutId, body: OrderWanted, once: OnceOf
) -> Response:
    """Begin with the first stage of a draft."""
    return _order(fleet, who, rollout, "start", body, once)


@router.post("/{rollout}/pause", response_model=RolloutView)
def pause_rollout(
    who: Operator, fleet: FleetOf, rollout: RolloutId, body: OrderWanted, once: OnceOf
) -> Response:
    """Tell no more devices until it is resumed."""
    return _order(fleet, who, rollout, "pause", body, once)


@router.post("/{rollout}/resume", response_model=RolloutView)
def resume_rollout(
    who: Operator, fleet: FleetOf, rollout: RolloutId, body: OrderWanted, once: OnceOf
) -> Response:
    """Go on after a pause."""
    return _order(fleet, who, rollout, "resume", body, once)


@router.post("/{rollout}/abort", response_model=RolloutView)
def abort_rollout(
    who: Operator, fleet: FleetOf, rollout: RolloutId, body: OrderWanted, once: OnceOf
) -> Response:
    """End it; what is installed stays."""
    return _order(fleet, who, rollout, "abort", body, once)


@router.post("/{rollout}/undo", response_model=RolloutView)
def undo_rollout(
    who: Operator, fleet: FleetOf, rollout: RolloutId, body: OrderWanted, once: OnceOf
) -> Response:
    """Take back what was installed: devices get what they had before."""
    return _order(fleet, who, rollout, "undo", body, once)


@router.post("/{rollout}/retry", response_model=RolloutView)
def retry_rollout(
    who: Operator, fleet: FleetOf, rollout: RolloutId, body: OrderWanted, once: OnceOf
) -> Response:
    """Tell the devices once more where the update failed."""
    return _order(fleet, who, rollout, "retry", body, once)


def plan_of(fleet: Fleet, wanted: RolloutWanted) -> Plan:
    """Return the plan of what is asked for.

    Raises:
        FleetError: There is no such release or group, or it is no plan.
    """
    version = wanted.version
    if version is None:
        found = fleet.registry.releases(wanted.model)
        if not found:
            raise FleetError(f"there is no release of {wanted.model!r}; upload one", "not_found")
        version = found[0][1]
    query = wanted.query
    if wanted.group is not None:
        if query:
            raise FleetError("expected a query or a group, not both", "invalid")
        groups = fleet.store.devices.groups()
        if wanted.group not in groups:
            raise FleetError(f"there is no group {wanted.group!r}", "not_found")
        query = groups[wanted.group]
    artifacts = fleet.registry.by_hardware(wanted.model, version)
    stem = f"{wanted.model}-{version}".replace("+", "_")[:48]
    try:
        return Plan(
            id=f"{stem}-{secrets.token_hex(4)}",
            name=wanted.name or f"{wanted.model} {version}",
            model=wanted.model,
            version=version,
            artifacts=artifacts,
            query=query,
            stages=tuple(Stage(percent=s.percent, soak_s=s.soak_s) for s in wanted.stages),
            least_devices=wanted.least_devices,
            quorum=wanted.quorum,
            install_s=wanted.install_s,
            first_look_s=wanted.first_look_s,
            patience_s=wanted.patience_s,
            attempts=wanted.attempts,
            limits=replace(Limits(), **wanted.limits.model_dump()),
        )
    except ValueError as e:
        raise FleetError(str(e), "invalid") from e


def show(fleet: Fleet, rollout: str) -> RolloutView:
    """Return how far a rollout is.

    Raises:
        FleetError: There is none of this id.
    """
    pages = Pages(fleet.store.database)
    found, created_at = pages.rollout(rollout)
    logged = pages.decisions(rollout, kinds=STAGE_KINDS, limit=100_000)
    words: list[Word] = [word for word in _WORDS if refusal(found, word) is None]
    undone = pages.undone_before(found.plan) if found.state in ("draft", "running", "paused") else ()
    return view_rollout(found, created_at, logged, pages.phases(rollout), words, undone)


_WORDS: tuple[Word, ...] = ("start", "pause", "resume", "abort", "undo", "retry")
assert _WORDS == ORDERS


def _order(fleet: Fleet, who: Token, rollout: str, word: Word, body: OrderWanted, once: Once) -> Response:
    def deed() -> RolloutView:
        fleet.store.rollouts.order(rollout, word, now=fleet.clock(), actor=who.name, reason=body.reason)
        return show(fleet, rollout)

    return once.carry_out(deed)
