"""One device: who it is, what runs on it, how that does, what keeps it from the newest, what can be done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from edgec.errors import EdgecError, FleetError, ProtocolError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import artifact_versions, models_of, versions_by_digest
from edgec.fleet.dashboard._requests import pairs_of, posted, route_class, signed_in, text_of
from edgec.fleet.dashboard._series import Series, series_of
from edgec.fleet.dashboard._sessions import Session
from edgec.fleet.dashboard._spread import Spread, spreads
from edgec.fleet.store import DeviceRecord, HourOf, StoredRecord
from edgec.fleet.store._hours import HOUR_S
from edgec.fleet.why import Why, why
from edgec.protocol import CommandReply, DeviceEvent, ModelReport

# Those that every agent knows: what they do, and arguments as they are written, where there are any.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "status": ("tells all that it runs", ""),
    "refresh": ("looks for what is wanted now", ""),
    "abort": ("ends an update of one model, or of all", "model=NAME"),
    "logs": ("tells the last lines of its log", "lines=200"),
    "verify": ("runs the self-test of what serves", "model=NAME"),
    "benchmark": ("measures what serves", "model=NAME\nseconds=5"),
    "telemetry": ("sets what it tells, within what its owner permits", 'policy={"interval_s": 600}'),
    "restart": ("loads what serves anew", "model=NAME"),
}
SPANS = {"24": "24 hours", "72": "3 days", "336": "14 days"}
_EVENTS = 40


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An artifact in one of the places of a device: ``active``, ``previous``, ``candidate`` or ``wanted``."""

    place: str
    digest: str
    version: str | None


@dataclass(frozen=True, kw_only=True)
class ModelOnDevice:
    """A model, what the device has of it, how it does, and what keeps it from the newest version."""

    name: str
    report: ModelReport | None
    slots: list[Slot]
    why: Why
    series: Series
    total: HourOf
    spreads: list[Spread]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A record of a device, as far as it can be read."""

    record: StoredRecord
    model: str | None
    detail: str
    data: dict[str, str]


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/devices/ID`` and what can be done there."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/devices/{device}")
    def show(request: Request, device: str, hours: str = "24") -> Response:
        return _page(dash, request, signed_in(dash, request), device, hours if hours in SPANS else "24")

    @router.get("/devices/{device}/series/{model}")
    def series(request: Request, device: str, model: str, hours: str = "24") -> Response:
        signed_in(dash, request)
        span = int(hours) if hours in SPANS else 24
        return JSONResponse(_series(dash, device, model, span)[0].to_dict())

    @router.post("/devices/{device}/labels")
    async def label(request: Request, device: str) -> Response:
        async with posted(dash, request, "operator") as (session, form):
            return await run_in_threadpool(
                _label, dash, request, session, device, text_of(form, "labels", 8000)
            )

    @router.post("/devices/{device}/revoke")
    async def revoke(request: Request, device: str) -> Response:
        async with posted(dash, request, "admin") as (session, form):
            reason = text_of(form, "reason", 500)
            return await run_in_threadpool(_revoke, dash, request, session, device, reason)

    @router.post("/devices/{device}/settle")
    async def settle(request: Request, device: str) -> Response:
        async with posted(dash, request, "operator") as (session, form):
            boot = text_of(form, "boot", 64)
            devices = dash.fleet.store.devices
            await run_in_threadpool(lambda: devices.settle(device, boot, now=dash.now, actor=session.name))
            return dash.done(request, _path(device), "The machine was picked; the others are told nothing.")

    @router.post("/devices/{device}/command")
    async def command(request: Request, device: str) -> Response:
        async with posted(dash, request, "operator") as (session, form):
            name, words = text_of(form, "name", 64), text_of(form, "args", 4000)
            # A device that is slow to answer keeps no page from being made.
            return await anyio.to_thread.run_sync(
                lambda: _command(dash, request, session, device, name, words),
                limiter=request.app.state.waiting,
            )

    return router


def _page(
    dash: Dashboard,
    request: Request,
    session: Session,
    device: str,
    hours: str = "24",
    reply: CommandReply | None = None,
) -> Response:
    found = dash.fleet.store.devices.get(device)
    clones = [boot for boot in found.view.boots[::-1] if boot.id in found.view.clones]
    return dash.render(
        request, session, "device.html", device=found, models=_models(dash, found, int(hours)), hours=hours,
        spans=SPANS, events=_events(dash, device), here=_path(device), commands=COMMANDS,
        can_command=dash.commands is not None, boots=clones[:6], alerts=_alerts(found),
        reply=reply, certificate_ends=dash.fleet.claims.ends([device]).get(device),
    )  # fmt: skip


def _path(device: str) -> str:
    return f"/devices/{quote(device, safe='')}"


def _models(dash: Dashboard, device: DeviceRecord, hours: int) -> list[ModelOnDevice]:
    store = dash.fleet.store
    versions = artifact_versions(store.database)
    reported = device.view.reported
    reports = dict(reported.models) if reported else {}
    heard = models_of(store.database, device.id, dash.now - hours * HOUR_S)
    found = []
    for name in sorted({*reports, *device.wanted, *heard}):
        series, total = _series(dash, device.id, name, hours)
        found.append(
            ModelOnDevice(
                name=name, report=reports.get(name), why=why(store, device.id, name), series=series,
                total=total, spreads=spreads(total),
                slots=_slots(reports.get(name), device.wanted.get(name), versions),
            )
        )  # fmt: skip
    return found


def _slots(report: ModelReport | None, wanted: str | None, versions: Any) -> list[Slot]:
    places = [(place, getattr(report, place, None)) for place in ("active", "candidate", "previous")]
    places.insert(1, ("wanted", wanted))
    return [
        Slot(place=place, digest=digest, version=versions.get(digest, (None, None))[1])
        for place, digest in places
        if digest
    ]


def _series(dash: Dashboard, device: str, model: str, hours: int) -> tuple[Series, HourOf]:
    """Return the hours of a device, whatever version ran in them, and all of them added up."""
    now = dash.now
    numbers = range(int(now // HOUR_S) - hours + 1, int(now // HOUR_S) + 1)
    found: dict[int, HourOf] = {}
    total = HourOf()
    said = dash.fleet.store.telemetry.device(device, model, since=numbers[0] * HOUR_S, until=now)
    for (_, number), part in said.items():
        found.setdefault(number, HourOf()).merge(part)
        total.merge(part)
    return series_of(numbers, found), total


def _events(dash: Dashboard, device: str) -> list[Event]:
    names = versions_by_digest(dash.fleet.store.database)
    found = []
    for record in dash.fleet.store.telemetry.records(device, limit=_EVENTS):
        try:
            event = DeviceEvent.from_bytes(record.payload)
        except ProtocolError:
            # Samples, notes and what is damaged have other payloads.
            found.append(Event(record=record, model=None, detail="", data={}))
            continue
        data = {k: names.get(v[:16], v) if k == "digest" else v for k, v in event.data.items()}
        found.append(Event(record=record, model=event.model, detail=event.detail, data=data))
    return found


def _alerts(device: DeviceRecord) -> list[Any]:
    return list(device.view.reported.alerts) if device.view.reported else []


def _label(dash: Dashboard, request: Request, session: Session, device: str, words: str) -> Response:
    try:
        own = pairs_of(words)
        dash.fleet.store.devices.label(device, own, now=dash.now, actor=session.name)
    except FleetError as e:
        return dash.go(request, f"{_path(device)}#labels", "bad", str(e))
    return dash.done(request, f"{_path(device)}#labels", "Labels are kept.")


def _revoke(dash: Dashboard, request: Request, session: Session, device: str, reason: str) -> Response:
    if not reason:
        return dash.go(request, _path(device), "bad", "Say why the device is put out of the fleet.")
    dash.fleet.store.devices.revoke(device, now=dash.now, actor=session.name, reason=reason)
    return dash.done(request, _path(device), f"{device} was put out of the fleet.")


def _command(
    dash: Dashboard, request: Request, session: Session, device: str, name: str, words: str
) -> Response:
    if dash.commands is None:
        return dash.go(request, _path(device), "bad", "This server sends no commands: it has no broker.")
    args = {key.strip(): _value(value) for key, _, value in (w.partition("=") for w in words.splitlines())}
    args.pop("", None)
    try:
        reply = dash.commands.send_command(device, name, args, actor=session.name)
    except EdgecError as e:
        return dash.go(request, f"{_path(device)}#command", "bad", str(e))
    return _page(dash, request, session, device, reply=reply)


def _value(words: str) -> Any:
    """Return an argument: JSON, or else text, as ``edgec command`` has it."""
    try:
        return json.loads(words)
    except ValueError:
        return words.strip()
