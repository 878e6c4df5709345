"""What a person must know: incidents, with the evidence that they were opened by."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import incident_of
from edgec.fleet.dashboard._requests import posted, route_class, signed_in, text_of
from edgec.fleet.dashboard._stages import findings_of

_MOST = 500
_MOST_NUMBER = 2**53


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/incidents`` and each of them."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/incidents")
    def show(request: Request) -> Response:
        session = signed_in(dash, request)
        found = dash.fleet.store.rollouts.incidents(limit=_MOST)
        parts = [[i for i in found if (i.closed_at is None) is open_] for open_ in (True, False)]
        return dash.render(request, session, "incidents.html", open=parts[0], closed=parts[1])

    @router.get("/incidents/{number}")
    def one(request: Request, number: int) -> Response:
        session = signed_in(dash, request)
        _may_be(number)
        found = incident_of(dash.fleet.store.database, number)
        if found is None:
            raise HTTPException(404, f"There is no incident {number}.")
        return dash.render(
            request, session, "incident.html", incident=found, gate=findings_of(found.evidence)
        )

    @router.post("/incidents/{number}/close")
    async def close(request: Request, number: int) -> Response:
        async with posted(dash, request, "operator") as (session, form):
            _may_be(number)
            reason, rollouts = text_of(form, "reason", 500), dash.fleet.store.rollouts
            await run_in_threadpool(
                lambda: rollouts.close_incident(number, now=dash.now, actor=session.name, reason=reason)
            )
            return dash.done(request, "/incidents", f"Incident {number} is settled.")

    return router


def _may_be(number: int) -> None:
    """Refuse what no database can look for.

    Raises:
        HTTPException: There is no such incident (404).
    """
    if not 0 < number <= _MOST_NUMBER:
        raise HTTPException(404, f"There is no incident {number:.4g}.")
