"""Releases: what there is of each model, what was measured of it, and taking more in."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from edgec.errors import EdgecError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._overview import model_views
from edgec.fleet.dashboard._reports import read_report
from edgec.fleet.dashboard._requests import posted, route_class, signed_in, text_of
from edgec.fleet.dashboard._sessions import Session
from edgec.fleet.registry import MAX_ARTIFACT_BYTES

_MORE_THAN_THE_FILE = 2**20


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/releases``, a release, an artifact, and what can be done there."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/releases")
    def show(request: Request) -> Response:
        return _page(dash, request, signed_in(dash, request), "")

    @router.post("/releases")
    async def upload(request: Request) -> Response:
        most = MAX_ARTIFACT_BYTES + _MORE_THAN_THE_FILE
        async with posted(dash, request, "releaser", most_bytes=most, most_fields=8) as (session, form):
            return await run_in_threadpool(_upload, dash, request, session, form)

    @router.get("/releases/{model}/{version}")
    def release(request: Request, model: str, version: str) -> Response:
        session = signed_in(dash, request)
        records = dash.fleet.registry.release(model, version)
        if not records:
            raise HTTPException(404, f"There is no release {version} of {model}.")
        rollouts = [r for r in dash.fleet.store.rollouts.find(model=model) if r.plan.version == version]
        reports = [(record, read_report(record.report, record.target)) for record in records]
        return dash.render(
            request, session, "release.html", model=model, version=version, reports=reports,
            rollouts=rollouts, number=records[0].number,
        )  # fmt: skip

    @router.get("/artifacts/{digest}")
    def artifact(request: Request, digest: str) -> Response:
        session = signed_in(dash, request)
        record = dash.fleet.registry.get(digest)
        return dash.render(
            request, session, "artifact.html", record=record, report=read_report(record.report, record.target)
        )

    @router.post("/artifacts/{digest}/quarantine")
    async def quarantine(request: Request, digest: str) -> Response:
        async with posted(dash, request, "releaser") as (session, form):
            return await run_in_threadpool(_quarantine, dash, request, session, digest, form)

    return router


def _page(dash: Dashboard, request: Request, session: Session, problem: str) -> Response:
    registry = dash.fleet.registry
    releases: dict[str, list[Any]] = {}
    for model, version, number in registry.releases():
        releases.setdefault(model, []).append((version, number, registry.release(model, version)))
    running = {view.name: view for view in model_views(dash)}
    return dash.render(
        request, session, "releases.html", status=409 if problem else 200, releases=releases, running=running,
        problem=problem,
    )  # fmt: skip


def _upload(dash: Dashboard, request: Request, session: Session, form: FormData) -> Response:
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.size:
        return _page(dash, request, session, "Choose a file: an artifact that `edgec compile` made.")
    names = [name.strip() for name in text_of(form, "hardware").split(",") if name.strip()]
    try:
        record = dash.fleet.registry.upload(
            file.file, now=dash.now, actor=session.name, hardware_names=names,
            override=text_of(form, "override", 500) or None,
        )  # fmt: skip
    except EdgecError as e:
        return _page(dash, request, session, str(e))
    where = f"/releases/{quote(record.model, safe='')}/{quote(record.version, safe='')}"
    return dash.done(
        request, where, f"{record.model} {record.version} for {record.target} was taken in and signed."
    )


def _quarantine(dash: Dashboard, request: Request, session: Session, digest: str, form: FormData) -> Response:
    where, reason = f"/artifacts/{digest}", text_of(form, "reason", 250)
    # What the page offered when it was loaded, whatever has become of it since.
    wanted = text_of(form, "wanted", 20)
    record = dash.fleet.registry.get(digest)
    if wanted not in ("quarantine", "release"):
        return dash.go(request, where, "bad", "Nothing was done: load the page anew and send it again.")
    if not reason:
        return dash.go(request, where, "bad", "Say why: the reason is kept, and shown to everybody.")
    rollouts = dash.fleet.store.rollouts
    if (wanted == "quarantine") == (record.quarantined is not None):
        known = f": {record.quarantined}" if record.quarantined is not None else ""
        state = "quarantined already" if known else "not quarantined any more"
        return dash.go(request, where, "bad", f"Nothing was done: it is {state}{known}.")
    if wanted == "quarantine":
        rollouts.quarantine(digest, now=dash.now, actor=session.name, reason=reason)
        return dash.done(request, where, "It is quarantined: rollouts of it are undone.")
    rollouts.release_quarantine(digest, now=dash.now, actor=session.name, reason=reason)
    return dash.done(request, where, "It may be installed again.")
