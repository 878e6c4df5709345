"""Signing in with a token, and out."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from edgec.fleet.api._access import Gate, address_of
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._requests import check_length, check_origin, posted, route_class, text_of


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/login`` and ``/logout``."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/login")
    def show(request: Request) -> Response:
        if dash.sessions.of(request) is not None:
            return RedirectResponse(_inside(request.query_params.get("next", "")), status_code=303)
        return dash.render(
            request, None, "login.html", refused=False, next=request.query_params.get("next", "")
        )

    @router.post("/login")
    async def sign_in(request: Request) -> Response:
        check_origin(request)
        check_length(request, 4096)
        gate: Gate = request.app.state.gate
        gate.look(address_of(request))
        async with request.form(max_files=0, max_fields=4) as form:
            secret, where = text_of(form, "token"), text_of(form, "next")
        response: Response = RedirectResponse(_inside(where), status_code=303)
        session = await run_in_threadpool(dash.sessions.open, request, response, secret)
        if session is None:
            gate.failed(address_of(request))
            return dash.render(request, None, "login.html", status=401, refused=True, next=where)
        return response

    @router.post("/logout")
    async def sign_out(request: Request) -> Response:
        async with posted(dash, request, "viewer"):
            response = RedirectResponse("/login", status_code=303)
            dash.sessions.close(response)
            return response

    return router


def _inside(where: str) -> str:
    """Return a place of this dashboard, whatever was asked for: nobody is sent elsewhere.

    Raises:
        HTTPException: It is longer than any place here (400).
    """
    if len(where) > 1000:
        raise HTTPException(400, "The page to go back to has too long a name.")
    fine = where.startswith("/") and not where.startswith(("//", "/\\", "/login"))
    return where if fine and where.isprintable() else "/"
