"""Who has changed what, newest first, and whether anybody has changed that."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgec.errors import FleetError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import last_entry
from edgec.fleet.dashboard._requests import route_class, signed_in

_PAGE = 50


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/audit``."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/audit")
    def show(request: Request, before: int = 0, check: bool = False) -> Response:
        session = signed_in(dash, request, "operator")
        audit = dash.fleet.store.audit
        last = last_entry(dash.fleet.store.database)
        end = min(before - 1, last) if before > 0 else last
        entries = audit.entries(after=max(end - _PAGE, 0), limit=min(_PAGE, max(end, 0)))[::-1]
        checked, problem = None, ""
        if check:
            try:
                checked = dash.recent.get("audit", 10, audit.verify)
            except FleetError as e:
                problem = str(e)
        return dash.render(
            request, session, "audit.html", entries=entries, last=last, checked=checked, problem=problem,
            older=entries[-1].seq if entries and entries[-1].seq > 1 else None, before=before,
        )  # fmt: skip

    return router
