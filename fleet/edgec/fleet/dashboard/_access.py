"""Who may come in: tokens of people and programs, claims of devices; for admins."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from edgec.errors import FleetError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._requests import pairs_of, posted, route_class, signed_in, text_of
from edgec.fleet.dashboard._sessions import Session
from edgec.fleet.store._tokens import ROLES

_MOST_DAYS = 3660
ROLE_WORDS = {
    "viewer": "sees all but the audit log and who has access",
    "operator": "pauses, undoes, labels, closes incidents, sends commands, reads the audit log",
    "releaser": "uploads, rolls out, quarantines",
    "admin": "lets people and devices in, and puts them out",
}


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/access`` and what can be done there."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/access")
    def show(request: Request) -> Response:
        return _page(dash, request, signed_in(dash, request, "admin"))

    @router.post("/access/tokens")
    async def make_token(request: Request) -> Response:
        async with posted(dash, request, "admin") as (session, form):
            return await run_in_threadpool(_make_token, dash, request, session, form)

    @router.post("/access/tokens/{token}/revoke")
    async def revoke_token(request: Request, token: str) -> Response:
        async with posted(dash, request, "admin") as (session, _):
            try:
                gone = await run_in_threadpool(
                    lambda: dash.fleet.tokens.revoke(token, now=dash.now, actor=session.name)
                )
            except FleetError as e:
                return dash.go(request, "/access", "bad", str(e))
            return dash.done(request, "/access", f"The token of {gone.name} opens nothing any more.")

    @router.post("/access/claims")
    async def make_claim(request: Request) -> Response:
        async with posted(dash, request, "admin") as (session, form):
            return await run_in_threadpool(_make_claim, dash, request, session, form)

    @router.post("/access/claims/{claim}/withdraw")
    async def withdraw(request: Request, claim: str) -> Response:
        async with posted(dash, request, "admin") as (session, _):
            await run_in_threadpool(
                lambda: dash.fleet.claims.withdraw(claim, now=dash.now, actor=session.name)
            )
            return dash.done(request, "/access", "The claim lets nobody in any more.")

    return router


def _page(
    dash: Dashboard,
    request: Request,
    session: Session,
    *,
    secret: tuple[str, str] | None = None,
    problem: str = "",
) -> Response:
    return dash.render(
        request, session, "access.html", status=400 if problem else 200, tokens=dash.fleet.tokens.all(),
        claims=dash.fleet.claims.all(), roles=[(role, ROLE_WORDS[role]) for role in ROLES], secret=secret,
        problem=problem,
    )  # fmt: skip


def _make_token(dash: Dashboard, request: Request, session: Session, form: FormData) -> Response:
    name, role = text_of(form, "name", 200), text_of(form, "role", 20)
    try:
        ends = _end(dash, form)
        made, secret = dash.fleet.tokens.create(name, role, now=dash.now, actor=session.name, expires_at=ends)
    except FleetError as e:
        return _page(dash, request, session, problem=str(e))
    return _page(dash, request, session, secret=(f"Token of {made.name}, {made.role}", secret))


def _make_claim(dash: Dashboard, request: Request, session: Session, form: FormData) -> Response:
    try:
        labels = pairs_of(text_of(form, "labels"))
        uses = text_of(form, "uses", 9) or "1"
        if not uses.isascii() or not uses.isdigit():
            raise FleetError(f"expected a number of devices, got {uses!r}", "invalid")
        made, secret = dash.fleet.claims.create(
            now=dash.now, actor=session.name, uses=int(uses), expires_at=_end(dash, form), labels=labels,
            hardware=text_of(form, "hardware", 64) or None, device=text_of(form, "device", 64) or None,
        )  # fmt: skip
    except FleetError as e:
        return _page(dash, request, session, problem=str(e))
    title = f"Claim {made.id}, for {made.uses_left} device{'' if made.uses_left == 1 else 's'}"
    return _page(dash, request, session, secret=(title, secret))


def _end(dash: Dashboard, form: FormData) -> float | None:
    """Return when something ends, from the days that a form has; None for never."""
    days = text_of(form, "days", 9)
    if not days:
        return None
    try:
        number = float(days)
    except ValueError:
        raise FleetError(f"expected a number of days, got {days!r}", "invalid") from None
    if not 0 < number <= _MOST_DAYS:
        raise FleetError(f"expected more than 0 and at most {_MOST_DAYS} days, got {days!r}", "invalid")
    return dash.now + number * 86400
