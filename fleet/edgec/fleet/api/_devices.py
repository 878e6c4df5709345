"""Devices and groups."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from edgec.fleet.api._access import Admin, FleetOf, Operator, Viewer
from edgec.fleet.api._once import OnceOf
from edgec.fleet.api._params import (
    Cursor,
    DeviceId,
    DeviceQuery,
    GroupName,
    Hours,
    Limit,
    MaybeModel,
    ModelQuery,
)
from edgec.fleet.api._views import versions_of, view_behaviour, view_device, view_devices, view_record
from edgec.fleet.views import (
    BehaviourView,
    DeviceDetail,
    DeviceView,
    GroupView,
    GroupWanted,
    LabelsWanted,
    Page,
    ReasonWanted,
    RecordView,
    SettleWanted,
    WhyView,
)
from edgec.fleet.why import models_of, why

router = APIRouter(tags=["devices"])


@router.get("/devices")
def list_devices(
    who: Viewer, fleet: FleetOf, query: DeviceQuery = "", cursor: Cursor = "", limit: Limit = 100
) -> Page[DeviceView]:
    """List devices that a query names, by their ids."""
    found = fleet.store.devices.find(query, after=cursor, limit=limit + 1)
    items = view_devices(fleet, found[:limit])
    return Page(items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/devices/{device}")
def get_device(who: Viewer, fleet: FleetOf, device: DeviceId) -> DeviceDetail:
    """Show one device, with all that is believed of it."""
    return view_device(fleet, fleet.store.devices.get(device))


@router.get("/devices/{device}/why")
def why_device(who: Viewer, fleet: FleetOf, device: DeviceId, model: MaybeModel = None) -> list[WhyView]:
    """Say what keeps a device from the newest version of a model, or of each that it has or could have."""
    models = models_of(fleet.store, device) if model is None else [model]
    return [WhyView.model_validate(why(fleet.store, device, name)) for name in models]


@router.get("/devices/{device}/records")
def device_records(who: Viewer, fleet: FleetOf, device: DeviceId, limit: Limit = 100) -> Page[RecordView]:
    """List the newest that a device said other than its figures: events, samples, what was damaged."""
    fleet.store.devices.get(device)
    return Page(items=[view_record(r) for r in fleet.store.telemetry.records(device, limit=limit)])


@router.get("/devices/{device}/telemetry")
def device_telemetry(
    who: Viewer, fleet: FleetOf, device: DeviceId, model: ModelQuery, hours: Hours = 24.0
) -> list[BehaviourView]:
    """Show what a device did with a model, by hour and artifact; of the last 14 days."""
    fleet.store.devices.get(device)
    now = fleet.clock()
    said = fleet.store.telemetry.device(device, model, since=now - hours * 3600, until=now)
    names = versions_of(fleet, model)
    return [
        view_behaviour(digest, names.get(digest), part, hour)
        for (digest, hour), part in sorted(said.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


@router.get("/telemetry")
def fleet_telemetry(
    who: Viewer,
    fleet: FleetOf,
    model: ModelQuery,
    hours: Hours = 24.0,
    hardware: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$", description="Of this class only.")
    ] = None,
) -> list[BehaviourView]:
    """Show what all devices did with a model, by artifact: percentiles are those of all calls."""
    now = fleet.clock()
    said = fleet.store.telemetry.fleet(model, since=now - hours * 3600, until=now, hardware=hardware)
    names = versions_of(fleet, model)
    return [view_behaviour(digest, names.get(digest), part) for digest, part in sorted(said.items())]


@router.put("/devices/{device}/labels", response_model=DeviceDetail)
def set_labels(who: Operator, fleet: FleetOf, device: DeviceId, body: LabelsWanted, once: OnceOf) -> Response:
    """Give a device labels in place of all it had."""

    def deed() -> DeviceDetail:
        fleet.store.devices.label(device, body.labels, now=fleet.clock(), actor=who.name)
        return view_device(fleet, fleet.store.devices.get(device))

    return once.carry_out(deed)


@router.post("/devices/{device}/revoke", response_model=DeviceDetail)
def revoke_device(who: Admin, fleet: FleetOf, device: DeviceId, body: ReasonWanted, once: OnceOf) -> Response:
    """Put a device out of the fleet: it is given nothing, and nothing it says is believed."""

    def deed() -> DeviceDetail:
        fleet.store.devices.revoke(device, now=fleet.clock(), actor=who.name, reason=body.reason)
        return view_device(fleet, fleet.store.devices.get(device))

    return once.carry_out(deed)


@router.post("/devices/{device}/settle", response_model=DeviceDetail)
def settle_device(
    who: Operator, fleet: FleetOf, device: DeviceId, body: SettleWanted, once: OnceOf
) -> Response:
    """Say which of the machines with one identity is the device; the others are given nothing."""

    def deed() -> DeviceDetail:
        fleet.store.devices.settle(device, body.boot_id, now=fleet.clock(), actor=who.name)
        return view_device(fleet, fleet.store.devices.get(device))

    return once.carry_out(deed)


@router.get("/groups")
def list_groups(who: Viewer, fleet: FleetOf) -> list[GroupView]:
    """List the queries that have names."""
    return [GroupView(name=name, query=query) for name, query in fleet.store.devices.groups().items()]


@router.put("/groups/{group}", response_model=GroupView)
def set_group(who: Operator, fleet: FleetOf, group: GroupName, body: GroupWanted, once: OnceOf) -> Response:
    """Name a query."""

    def deed() -> GroupView:
        fleet.store.devices.set_group(group, body.query, now=fleet.clock(), actor=who.name)
        return GroupView(name=group, query=body.query)

    return once.carry_out(deed)


@router.delete("/groups/{group}", status_code=204, response_class=Response)
def drop_group(who: Operator, fleet: FleetOf, group: GroupName, once: OnceOf) -> Response:
    """Forget the name of a query; devices stay as they are."""
    return once.carry_out(lambda: fleet.store.devices.drop_group(group, now=fleet.clock(), actor=who.name))
