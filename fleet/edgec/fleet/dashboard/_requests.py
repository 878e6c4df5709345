"""What comes from a browser: who may ask, forms that were really sent from here, errors as pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import python_multipart
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as AnyHTTPException

from edgec.errors import EdgecError, FleetError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._sessions import Session, same

del python_multipart  # Starlette finds it by its name, and reads forms with it.

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATUS = {
    "not_found": 404, "conflict": 409, "refused": 409, "revoked": 409, "query": 400, "invalid": 400,
    "too_large": 413,
}  # fmt: skip
_FORM_BYTES = 64 * 1024
# Where there is nothing for people.
_NO_PAGES = ("/api/", "/repo/", "/static/")


class NotSignedIn(Exception):
    """Nobody may see this without a session."""


def route_class(dash: Dashboard) -> type[APIRoute]:
    """Return the kind of route whose errors are pages, and whose answers have the headers of all pages."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    response = await handle(request)
                except NotSignedIn:
                    response = _to_login(request)
                except (AnyHTTPException, EdgecError) as e:
                    response = await run_in_threadpool(_error_page, dash, request, e)
                response.headers.update(HEADERS)
                return response

            return handler

    return PageRoute


def install_missing(app: FastAPI, dash: Dashboard) -> None:
    """Have an app answer browsers with a page where there is none; the API and programs keep its answer."""
    otherwise = app.exception_handlers[AnyHTTPException]

    @app.exception_handler(AnyHTTPException)
    def missing(request: Request, error: AnyHTTPException) -> Any:
        if error.status_code not in (404, 405) or not _is_browser(request):
            return otherwise(request, error)
        said = AnyHTTPException(404, f"There is no page {request.url.path[:200]}.")
        response = _error_page(dash, request, said)
        response.headers.update(HEADERS)
        return response


def _is_browser(request: Request) -> bool:
    """Return whether somebody waits for a page, and not for something of the API."""
    asks = "text/html" in request.headers.get("accept", "")
    return asks and not request.url.path.startswith(_NO_PAGES)


def signed_in(dash: Dashboard, request: Request, role: str = "viewer") -> Session:
    """Return who asks.

    Raises:
        NotSignedIn: Nobody does.
        HTTPException: They may not (403).
    """
    session = dash.sessions.of(request)
    if session is None:
        raise NotSignedIn
    if not session.can(role):
        raise HTTPException(
            403, f"This needs the role {role}; you are signed in as {session.name}, {session.token.role}."
        )
    return session


@asynccontextmanager
async def posted(
    dash: Dashboard, request: Request, role: str, *, most_bytes: int = _FORM_BYTES, most_fields: int = 64
) -> AsyncIterator[tuple[Session, FormData]]:
    """Give who sent a form, and the form; nothing of it is read before it is known that they may.

    Raises:
        NotSignedIn: Nobody did.
        HTTPException: They may not, it is too large, or it was not sent from a page of this dashboard.
    """
    session = await run_in_threadpool(signed_in, dash, request, role)
    check_origin(request)
    check_length(request, most_bytes)
    async with request.form(max_files=1, max_fields=most_fields) as form:
        if not same(str(form.get("csrf", "")), session.csrf):
            raise HTTPException(
                403, "The form is from another session. Go back, load the page anew and send it again."
            )
        yield session, form


def check_origin(request: Request) -> None:
    """Refuse what another site sent.

    Raises:
        HTTPException: It did (403).
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign = site not in (None, "same-origin", "none")
    foreign |= origin is not None and _host(origin) != request.headers.get("host", "")
    if foreign:
        raise HTTPException(403, "The form was sent from another site, and nothing was done.")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def check_length(request: Request, most_bytes: int) -> None:
    """Refuse what is too large, before it is read.

    Raises:
        HTTPException: It is (413), or does not say (411).
    """
    length = request.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        raise HTTPException(411, "The request does not say how long it is.")
    if int(length) > most_bytes:
        raise HTTPException(413, f"The request has {int(length)} bytes; at most {most_bytes} are taken.")


def text_of(form: FormData, name: str, most: int = 1000) -> str:
    """Return a field of a form without the space around it; empty where it is not there."""
    value = form.get(name, "")
    return value.strip()[:most] if isinstance(value, str) else ""


def pairs_of(words: str) -> dict[str, str]:
    """Return ``key=value`` by key, one on a line or between commas.

    Raises:
        FleetError: Something else is there (``reason`` ``query``).
    """
    parts = [part.strip() for part in words.replace(",", "\n").splitlines() if part.strip()]
    wrong = [part for part in parts if "=" not in part]
    if wrong:
        raise FleetError(f"expected key=value, got {', '.join(map(repr, wrong))}", "query")
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={"HX-Redirect": "/login"})
    if request.method != "GET":
        return RedirectResponse("/login", status_code=303)
    where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(where)}" if where != "/" else "/login", status_code=303)


def _error_page(dash: Dashboard, request: Request, error: Exception) -> Response:
    if isinstance(error, AnyHTTPException):
        status, detail = error.status_code, str(error.detail)
    else:
        status = _STATUS.get(error.reason, 400) if isinstance(error, FleetError) else 400
        detail = str(error)
    session = dash.sessions.of(request)
    return dash.render(request, session, "error.html", status=status, code=status, detail=detail)
