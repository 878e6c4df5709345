"""All devices: found by a query, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgec.errors import FleetError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import artifact_versions, count_devices, count_hardware, label_values
from edgec.fleet.dashboard._requests import posted, route_class, signed_in, text_of
from edgec.fleet.store import DeviceRecord

_PAGE = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """A device, and the models that serve on it with their versions."""

    device: DeviceRecord
    running: list[tuple[str, str | None]]


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/devices``, and the groups that are kept there."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/devices")
    def show(request: Request, query: str = "", after: str = "") -> Response:
        session = signed_in(dash, request)
        database = dash.fleet.store.database
        rows: list[Row] = []
        problem, more, total = "", None, 0
        try:
            rows, more = _page(dash, query, after)
            total = dash.recent.get(("count", query), 3, lambda: count_devices(database, query))
        except FleetError as e:
            problem = str(e)
        return dash.render(
            request, session, "devices.html", status=400 if problem else 200, rows=rows, query=query,
            after=after, problem=problem, total=total, next_page=_link(query, more) if more else None,
            groups=dash.fleet.store.devices.groups(), known_labels=label_values(database),
            hardware=count_hardware(database),
        )  # fmt: skip

    @router.post("/groups")
    async def keep_group(request: Request) -> Response:
        async with posted(dash, request, "operator") as (session, form):
            name, query = text_of(form, "name", 64), text_of(form, "query")
            if not name or not name.isprintable():
                return dash.go(request, _link(query), "bad", "A group needs a name.")
            try:
                dash.fleet.store.devices.set_group(name, query, now=dash.now, actor=session.name)
            except FleetError as e:
                return dash.go(request, _link(query), "bad", str(e))
            return dash.done(request, _link(query), f"Group {name} is kept.")

    return router


def _page(dash: Dashboard, query: str, after: str) -> tuple[list[Row], str | None]:
    found = dash.fleet.store.devices.find(query, after=after, limit=_PAGE + 1)
    versions = artifact_versions(dash.fleet.store.database)
    rows = [Row(device=d, running=running_of(d, versions)) for d in found[:_PAGE]]
    return rows, found[_PAGE - 1].id if len(found) > _PAGE else None


def running_of(device: DeviceRecord, versions: object) -> list[tuple[str, str | None]]:
    """Return the models that serve on a device, each with its version, or None for one nobody uploaded."""
    assert isinstance(versions, dict)
    reported = device.view.reported
    models = reported.models if reported else {}
    return [
        (name, versions.get(report.active, (name, None))[1])
        for name, report in sorted(models.items())
        if report.active
    ]


def _link(query: str, after: str = "") -> str:
    words = {k: v for k, v in (("query", query), ("after", after)) if v}
    return f"/devices?{urlencode(words)}" if words else "/devices"
