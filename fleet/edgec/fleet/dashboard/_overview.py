"""The fleet at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._figures import spark
from edgec.fleet.dashboard._queries import (
    Running,
    count_hardware,
    count_running,
    fleet_by_hour,
    last_entry,
)
from edgec.fleet.dashboard._requests import route_class, signed_in
from edgec.fleet.dashboard._series import Series, series_of
from edgec.fleet.dashboard._stages import stations
from edgec.fleet.store._hours import HOUR_S

_HOURS = 24
_UNDER_WAY = ("running", "paused", "undoing")


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model, and which of its artifacts serve where. `newest` is the version uploaded last."""

    name: str
    newest: str | None
    devices: int
    running: list[Running]


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/``, and the figures of its charts."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/")
    def show(request: Request) -> Response:
        session = signed_in(dash, request)
        values = dash.recent.get("overview", 3, lambda: _values(dash))
        return dash.render(request, session, "overview.html", **values)

    @router.get("/series")
    def series(request: Request) -> Response:
        signed_in(dash, request)
        return JSONResponse(_fleet_series(dash).to_dict())

    return router


def _values(dash: Dashboard) -> dict[str, Any]:
    store = dash.fleet.store
    hardware = count_hardware(store.database)
    under_way = store.rollouts.find(states=_UNDER_WAY)
    latest = store.rollouts.find(limit=5)
    figures = _fleet_series(dash)
    rates = [e / c if c else None for e, c in zip(figures.errors, figures.calls, strict=True)]
    return {
        "hardware": hardware,
        "devices": sum(h.devices for h in hardware),
        "online": sum(h.online for h in hardware),
        "alerts": dash.alerts(),
        "models": model_views(dash),
        "under_way": under_way,
        "latest": latest,
        "rails": [(r, stations(r)) for r in latest],
        "incidents": store.rollouts.incidents(only_open=True, limit=5),
        "entries": newest_entries(dash, 6),
        "figures": figures,
        "rates": rates,
        "sparks": {
            "calls": spark(figures.calls),
            "p95": spark(figures.p95),
            "errors": spark(rates),
        },
    }


def model_views(dash: Dashboard) -> list[ModelView]:
    """Return all models with what runs of them."""
    releases = dash.fleet.registry.releases()
    newest: dict[str, str] = {}
    for model, version, _ in releases:
        newest.setdefault(model, version)
    running = dash.recent.get("running", 10, lambda: count_running(dash.fleet.store.database))
    names = sorted({*newest, *(r.model for r in running)})
    found = []
    for name in names:
        mine = [r for r in running if r.model == name]
        total = sum(r.devices for r in mine)
        found.append(ModelView(name=name, newest=newest.get(name), devices=total, running=_by_version(mine)))
    return found


def newest_entries(dash: Dashboard, most: int) -> list[Any]:
    """Return the newest entries of the audit log, newest first."""
    last = last_entry(dash.fleet.store.database)
    return dash.fleet.store.audit.entries(after=max(last - most, 0), limit=most)[::-1]


def _by_version(running: list[Running]) -> list[Running]:
    """Add up the artifacts of one version: one for each target."""
    sums: dict[str, Running] = {}
    for r in running:
        key = r.version or r.digest
        n = r.devices + (sums[key].devices if key in sums else 0)
        sums[key] = Running(model=r.model, digest=r.digest, version=r.version, devices=n)
    return sorted(sums.values(), key=lambda r: -r.devices)


def _fleet_series(dash: Dashboard) -> Series:
    now = dash.now
    hours = range(int(now // HOUR_S) - _HOURS + 1, int(now // HOUR_S) + 1)

    def make() -> Series:
        found = fleet_by_hour(dash.fleet.store.database, hours[0] * HOUR_S, now)
        return series_of(hours, found)

    return dash.recent.get(("series", hours[-1]), 5, make)
