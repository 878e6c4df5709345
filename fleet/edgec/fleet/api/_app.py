"""The API as one application."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Set
from importlib.metadata import version

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgec.fleet.api import _commands, _devices, _enrol, _health, _metrics, _operations, _releases, _rollouts
from edgec.fleet.api._access import Gate
from edgec.fleet.api._commands import CommandSender
from edgec.fleet.api._document import describe
from edgec.fleet.api._files import RepositoryFiles
from edgec.fleet.api._health import Check
from edgec.fleet.api._limits import ApiLimits
from edgec.fleet.api._problems import ApiError, install_problems
from edgec.fleet.api._uploads import UPLOADS
from edgec.fleet.service import Fleet
from edgec.fleet.store import RunningCount

_WAITING = 32
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def create_app(
    fleet: Fleet,
    *,
    commands: CommandSender | None = None,
    limits: ApiLimits | None = None,
    checks: Mapping[str, Check] | None = None,
) -> FastAPI:
    """Return the API of a fleet under ``/api/v1``, its repositories under ``/repo``, health and metrics.

    Args:
        fleet: That it shows and changes; the caller closes it.
        commands: Sends commands to devices; None where there is no broker.
        limits: How much it takes.
        checks: Of ``/readyz``, by name, beside database and repository.
    """
    limits = limits or ApiLimits()
    app = FastAPI(
        title="edgec fleet",
        version=version("edgec"),
        docs_url=None,
        redoc_url=None,
    )
    app.state.fleet, app.state.limits, app.state.commands = fleet, limits, commands
    app.state.gate = Gate(fleet, limits)
    app.state.running = RunningCount(fleet.store.database)
    app.state.checks = dict(checks or {})
    app.state.uploads, app.state.waiting = CapacityLimiter(limits.uploads), CapacityLimiter(_WAITING)
    install_problems(app)
    for part in (_devices, _enrol, _commands, _releases, _rollouts, _operations):
        app.include_router(part.router, prefix="/api/v1")
    app.include_router(_health.router)
    app.include_router(_metrics.router)
    app.mount("/repo", RepositoryFiles(fleet.data_dir / "repo"), name="repo")
    # Paths that take whole artifacts; pages beside the API may add theirs.
    app.state.upload_paths = {UPLOADS}
    app.add_middleware(_Edge, limits=limits, uploads=app.state.upload_paths)
    describe(app)
    return app


class _Edge:
    """Gives every request an id and a bounded body, and every reply the headers that all have."""

    def __init__(self, app: ASGIApp, limits: ApiLimits, uploads: Set[str]) -> None:
        self._app, self._limits, self._uploads = app, limits, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        name = (
            asked if 8 <= len(asked) <= 64 and asked.isascii() and asked.isalnum() else secrets.token_hex(8)
        )
        scope.setdefault("state", {})["request_id"] = name
        private = scope["path"].startswith("/api/")

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = name
                for key, value in _HEADERS.items():
                    headers.setdefault(key, value)
                if private:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, self._bounded(scope, receive), labelled)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return what gives the body, up to what this path takes."""
        most = self._limits.artifact_bytes if scope["path"] in self._uploads else self._limits.body_bytes
        announced = Headers(scope=scope).get("content-length", "")
        left = -1 if announced.isdigit() and int(announced) > most else most

        async def bounded() -> Message:
            nonlocal left
            message = await receive() if left >= 0 else {"type": "http.request"}
            left -= len(message.get("body", b""))
            if left < 0:
                # From within, so that it becomes a problem like any other.
                raise ApiError(413, "too_large", f"the body has more than {most} bytes")
            return message

        return bounded
