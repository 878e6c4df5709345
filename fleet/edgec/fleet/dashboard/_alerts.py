"""What a person should know now: alerts that are open, those that were, and how far data have moved."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import versions_by_digest
from edgec.fleet.dashboard._requests import route_class, signed_in

_MOST = 200
_DRIFT_S = 2 * 86400.0
# Where more is known of what a rule is about.
_PLACES = {
    "offline": "/devices/", "silent": "/devices/", "cloned": "/devices/", "certificate": "/devices/",
    "rollout": "/rollouts/", "incident": "/incidents/",
}  # fmt: skip


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/alerts``."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/alerts")
    def show(request: Request) -> Response:
        session = signed_in(dash, request)
        store = dash.fleet.store
        found = store.alerts.find(only_open=False, limit=_MOST)
        rank = {"critical": 0, "warning": 1}
        return dash.render(
            request, session, "alerts.html",
            open=sorted(store.alerts.find(limit=_MOST), key=lambda a: (rank.get(a.severity, 2), -a.id)),
            cleared=[a for a in found if a.cleared_at is not None],
            drift=sorted(store.drift.newest(dash.now - _DRIFT_S), key=lambda row: -row.psi),
            versions=versions_by_digest(store.database), link=_link,
        )  # fmt: skip

    return router


def _link(rule: str, subject: str) -> str | None:
    """Return where more is known of what an alert is about; None where it is about the whole fleet."""
    return f"{_PLACES[rule]}{quote(subject, safe='')}" if rule in _PLACES and subject != "fleet" else None
