"""Puts the dashboard into an application."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from edgec.fleet.api._commands import CommandSender
from edgec.fleet.dashboard import (
    _access,
    _alerts,
    _audit,
    _device,
    _devices,
    _incidents,
    _login,
    _overview,
    _registry,
    _rollout,
    _rollouts,
)
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._requests import install_missing
from edgec.fleet.dashboard._sessions import Sessions
from edgec.fleet.dashboard._words import FOLDER, environment
from edgec.fleet.service import Fleet

STATIC = "/static/dashboard"
_PAGES = (
    _login, _overview, _devices, _device, _registry, _rollouts, _rollout, _incidents, _alerts, _audit,
    _access,
)  # fmt: skip


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["X-Content-Type-Options"] = "nosniff"
        # Asked for again each time, and answered with 304 where nothing has changed.
        response.headers["Cache-Control"] = "no-cache"
        return response


def mount(app: FastAPI, fleet: Fleet, *, commands: CommandSender | None = None, poll_s: float = 5.0) -> None:
    """Serve the dashboard at ``/``: pages in HTML, none of which are part of the API.

    Who comes without a session is asked for a token of the API, and may then do what the token's role may.
    Pages load nothing from elsewhere and allow no script but their own (Content-Security-Policy).

    Args:
        app: Of the API; its own paths stay as they are.
        fleet: What is shown and changed.
        commands: Sends commands to devices; that of the API if None.
        poll_s: How often an open page asks for what is new.

    Raises:
        OutputError: The key that signs cookies cannot be kept in the fleet's directory.
    """
    if commands is None:
        commands = getattr(app.state, "commands", None)
    dash = Dashboard(
        fleet=fleet, commands=commands, sessions=Sessions(fleet), templates=environment(), poll_s=poll_s
    )
    app.mount(STATIC, _Static(directory=FOLDER / "static"), name="dashboard")
    # The API bounds what comes, by path.
    uploads: set[str] = getattr(app.state, "upload_paths", set())
    uploads.add("/releases")
    for pages in _PAGES:
        app.include_router(pages.routes(dash))
    install_missing(app, dash)
