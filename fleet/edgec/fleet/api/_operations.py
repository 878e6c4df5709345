"""The fleet at a glance, incidents, the audit log, tokens, and commands for devices."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from edgec.errors import FleetError
from edgec.fleet.api._access import Admin, FleetOf, Operator, Viewer
from edgec.fleet.api._once import OnceOf
from edgec.fleet.api._params import Hours, Limit, MaybeModel, Number, NumberCursor, TokenId
from edgec.fleet.api._views import versions_of, view_drift
from edgec.fleet.store._pages import Pages
from edgec.fleet.views import (
    AlertView,
    AuditCheck,
    AuditView,
    DriftView,
    FleetView,
    IncidentView,
    Page,
    ReasonWanted,
    TokenMade,
    TokenView,
    TokenWanted,
)

router = APIRouter()


@router.get("/fleet", tags=["fleet"])
def get_fleet(who: Viewer, fleet: FleetOf) -> FleetView:
    """Show the fleet at a glance."""
    pages = Pages(fleet.store.database)
    return FleetView(
        **vars(pages.count_devices()),
        incidents=len(pages.incidents(only_open=True, limit=1000)),
        rollouts=len(pages.rollouts(states=("running", "paused", "undoing"), limit=1000)),
    )


@router.get("/incidents", tags=["incidents"])
def list_incidents(
    who: Viewer,
    fleet: FleetOf,
    only_open: Annotated[bool, Query(alias="open", description="Only those that nobody has closed.")] = False,
    rollout: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = None,
    cursor: NumberCursor = 0,
    limit: Limit = 100,
) -> Page[IncidentView]:
    """List what a person must know, newest first, with the evidence."""
    pages = Pages(fleet.store.database)
    found = pages.incidents(only_open=only_open, rollout=rollout, before=cursor, limit=limit + 1)
    items = [IncidentView.model_validate(i) for i in found[:limit]]
    return Page(items=items, next=str(items[-1].id) if len(found) > limit else None)


@router.post("/incidents/{incident}/close", tags=["incidents"], response_model=IncidentView)
def close_incident(
    who: Operator, fleet: FleetOf, incident: Number, body: ReasonWanted, once: OnceOf
) -> Response:
    """Say that an incident is settled."""

    def deed() -> IncidentView:
        store = fleet.store
        store.rollouts.close_incident(incident, now=fleet.clock(), actor=who.name, reason=body.reason)
        return IncidentView.model_validate(Pages(store.database).incident(incident))

    return once.carry_out(deed)


@router.get("/alerts", tags=["alerts"])
def list_alerts(
    who: Viewer,
    fleet: FleetOf,
    only_open: Annotated[bool, Query(alias="open", description="Only those that still hold.")] = True,
    cursor: NumberCursor = 0,
    limit: Limit = 100,
) -> Page[AlertView]:
    """List what a person should know now, newest first; with `open=false` also what was."""
    found = fleet.store.alerts.find(only_open=only_open, before=cursor or None, limit=limit + 1)
    items = [AlertView.model_validate(alert) for alert in found[:limit]]
    return Page(items=items, next=str(items[-1].id) if len(found) > limit else None)


@router.get("/drift", tags=["alerts"])
def get_drift(
    who: Viewer,
    fleet: FleetOf,
    model: MaybeModel = None,
    hours: Hours = 24.0,
) -> list[DriftView]:
    """Show how far inputs and outputs have moved from calibration data.

    Of a model by hour, else the newest of each.
    """
    now, store = fleet.clock(), fleet.store
    since = now - hours * 3600
    found = store.drift.newest(since) if model is None else store.drift.history(model, since=since, until=now)
    names = {name: versions_of(fleet, name) for name in {row.model for row in found}}
    return [view_drift(row, names[row.model].get(row.digest)) for row in found]


@router.get("/audit", tags=["audit"])
def list_audit(
    who: Operator, fleet: FleetOf, cursor: NumberCursor = 0, limit: Limit = 100
) -> Page[AuditView]:
    """List who has changed what, oldest first; `cursor` is the number of the last entry seen."""
    found = fleet.store.audit.entries(after=cursor, limit=limit + 1)
    items = [AuditView.model_validate(e) for e in found[:limit]]
    return Page(items=items, next=str(items[-1].seq) if len(found) > limit else None)


@router.get("/audit/verify", tags=["audit"])
def verify_audit(
    who: Operator,
    fleet: FleetOf,
    expected_entries: Annotated[int, Query(ge=0, le=2**53, description="Of an earlier check.")] = 0,
    expected_hash: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$", description="Of the same check.")] = "",
) -> AuditCheck:
    """Check the hashes of the whole audit log.

    What an earlier check gave, kept elsewhere, shows whether the end was cut off or all of it written anew.
    """
    expected = (expected_entries, expected_hash) if expected_entries and expected_hash else None
    try:
        seq, digest = fleet.store.audit.verify(expected=expected)
    except FleetError as e:
        return AuditCheck(intact=False, entries=0, hash="", problem=str(e))
    return AuditCheck(intact=True, entries=seq, hash=digest, problem="")


@router.get("/tokens", tags=["tokens"])
def list_tokens(who: Admin, fleet: FleetOf) -> list[TokenView]:
    """List tokens, those taken back, too; never the tokens themselves."""
    return [TokenView.model_validate(token) for token in fleet.tokens.all()]


@router.get("/tokens/self", tags=["tokens"])
def own_token(who: Viewer) -> TokenView:
    """Show what is known of the token that asks."""
    return TokenView.model_validate(who)


@router.post("/tokens", tags=["tokens"], status_code=201, response_model=TokenMade)
def create_token(who: Admin, fleet: FleetOf, body: TokenWanted, once: OnceOf) -> Response:
    """Make a token; it is told only in this reply."""

    def deed() -> TokenMade:
        now = fleet.clock()
        expires_at = None if body.valid_s is None else now + body.valid_s
        made, secret = fleet.tokens.create(
            body.name, body.role, now=now, actor=who.name, expires_at=expires_at
        )
        return TokenMade(**vars(made), token=secret)

    return once.carry_out(deed, 201)


@router.delete("/tokens/{token}", tags=["tokens"], response_model=TokenView)
def revoke_token(who: Admin, fleet: FleetOf, token: TokenId, once: OnceOf) -> Response:
    """Take a token back: it ends at once. Once more changes nothing."""

    def deed() -> TokenView:
        return TokenView.model_validate(fleet.tokens.revoke(token, now=fleet.clock(), actor=who.name))

    return once.carry_out(deed)
