"""Artifacts, releases and the quarantine."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse

from edgec.errors import FleetError
from edgec.fleet.api._access import FleetOf, LimitsOf, Releaser, Viewer
from edgec.fleet.api._once import IdempotencyKey, OnceOf
from edgec.fleet.api._params import Cursor, Digest, Limit, MaybeModel, ModelPath, VersionPath
from edgec.fleet.api._uploads import ContentDigest, receive_artifact
from edgec.fleet.store import RunningCount
from edgec.fleet.store._pages import Pages
from edgec.fleet.views import (
    ArtifactDetail,
    ArtifactView,
    Page,
    QuarantinedView,
    QuarantineWanted,
    ReleaseDetail,
    ReleaseView,
    RunningView,
)

router = APIRouter(tags=["releases"])
_OCTETS = "application/octet-stream"


@router.get("/releases")
def list_releases(
    who: Viewer, fleet: FleetOf, model: MaybeModel = None, cursor: Cursor = "0", limit: Limit = 100
) -> Page[ReleaseView]:
    """List releases by model, newest first."""
    first = int(cursor) if cursor.isascii() and cursor.isdigit() and len(cursor) < 10 else 0
    found = fleet.registry.releases(model)
    items = [ReleaseView(model=m, version=v, number=n) for m, v, n in found[first : first + limit]]
    return Page(items=items, next=str(first + limit) if len(found) > first + limit else None)


@router.get("/releases/{model}/{version}")
def get_release(who: Viewer, fleet: FleetOf, model: ModelPath, version: VersionPath) -> ReleaseDetail:
    """Show a release, with its artifacts."""
    found = fleet.registry.release(model, version)
    if not found:
        raise FleetError(f"there is no release {version!r} of {model!r}", "not_found")
    artifacts = [ArtifactView.model_validate(record) for record in found]
    return ReleaseDetail(model=model, version=version, number=found[0].number, artifacts=artifacts)


@router.post(
    "/artifacts",
    status_code=201,
    response_model=ArtifactDetail,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {_OCTETS: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload_artifact(
    request: Request,
    who: Releaser,
    fleet: FleetOf,
    limits: LimitsOf,
    hardware: Annotated[
        list[Annotated[str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]],
        Query(max_length=32, description="Classes of hardware that it may run on; its target's if left out."),
    ] = [],  # noqa: B006 - FastAPI copies it
    override: Annotated[
        str | None,
        Query(
            max_length=500,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="Why it is taken although it did not pass parity or budget.",
        ),
    ] = None,
    content_digest: ContentDigest = None,
    key: IdempotencyKey = None,
) -> Response:
    """Take an artifact in: verify it, keep it by its digest, sign it and put it in force.

    The body is the file itself. The same file again changes nothing. What did not pass parity, accuracy or a
    budget is refused, unless `override` says why it is taken. What was compiled without an accuracy gate, or
    with an inconclusive accuracy that was accepted, is taken, and `warnings` say so.
    """
    return await receive_artifact(
        request, fleet, limits, who, hardware, override, digest=content_digest, key=key
    )


@router.get("/artifacts/{digest}")
def get_artifact(who: Viewer, fleet: FleetOf, digest: Digest) -> ArtifactDetail:
    """Show an artifact, with the report of its compilation."""
    return ArtifactDetail.model_validate(fleet.registry.get(digest))


@router.get(
    "/artifacts/{digest}/file",
    response_class=FileResponse,
    responses={200: {"content": {_OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_artifact(who: Viewer, fleet: FleetOf, digest: Digest) -> FileResponse:
    """Return the file of an artifact; ranges are answered."""
    record = fleet.registry.get(digest)
    path = fleet.registry.path(digest)
    if not path.is_file():
        raise FleetError(f"the file of {digest} is missing on the server; upload it again", "not_found")
    name = f"{record.model}-{record.version}-{record.target}.edgec"
    return FileResponse(path, media_type=_OCTETS, filename=name, headers={"ETag": f'"{digest}"'})


@router.get(
    "/running",
    response_model=list[RunningView],
    responses={304: {"description": "Nothing has changed since the answer with this ETag."}},
)
def list_running(
    who: Viewer,
    request: Request,
    known: Annotated[
        str, Header(alias="If-None-Match", max_length=100, description="ETag of an answer that is at hand.")
    ] = "",
) -> Response:
    """List the artifacts that devices run, by digest. It may be asked every few seconds: see `ETag`."""
    counted: RunningCount = request.app.state.running
    body = json.dumps([vars(running) for running in counted.look()]).encode()
    headers = {"ETag": f'"{sha256(body).hexdigest()}"', "Cache-Control": "no-cache"}
    if known == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.get("/quarantine")
def list_quarantine(
    who: Viewer, fleet: FleetOf, cursor: Cursor = "", limit: Limit = 100
) -> Page[QuarantinedView]:
    """List what may not be installed, by digest."""
    found = Pages(fleet.store.database).quarantine(after=cursor, limit=limit + 1)
    items = [QuarantinedView.model_validate(q) for q in found[:limit]]
    return Page(items=items, next=items[-1].digest if len(found) > limit else None)


@router.post("/quarantine/{digest}", status_code=201, response_model=QuarantinedView)
def quarantine(
    who: Releaser, fleet: FleetOf, digest: Digest, body: QuarantineWanted, once: OnceOf
) -> Response:
    """Say that an artifact may not be installed any more: running rollouts of it are undone."""

    def deed() -> QuarantinedView:
        fleet.registry.get(digest)
        store = fleet.store
        store.rollouts.quarantine(digest, now=fleet.clock(), actor=who.name, reason=body.reason)
        found = Pages(store.database).quarantine(after=digest[:-1], limit=1000)
        return QuarantinedView.model_validate(next(q for q in found if q.digest == digest))

    return once.carry_out(deed, 201)


@router.post("/quarantine/{digest}/release", status_code=204, response_class=Response)
def release_quarantine(
    who: Releaser, fleet: FleetOf, digest: Digest, body: QuarantineWanted, once: OnceOf
) -> Response:
    """Say that an artifact may be installed again."""

    def deed() -> None:
        fleet.store.rollouts.release_quarantine(digest, now=fleet.clock(), actor=who.name, reason=body.reason)

    return once.carry_out(deed)
