"""Errors as ``application/problem+json`` (RFC 9457): the cause, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from starlette.exceptions import HTTPException

from edgec.errors import (
    ArtifactError,
    EdgecError,
    ExtraError,
    FleetError,
    LinkError,
    OutputError,
    ProtocolError,
    TrustError,
)
from edgec.fleet._wrong import problem_of

PROBLEM_TYPE = "application/problem+json"
# By `FleetError.reason`; what is not here is 409.
_STATUS = {
    "not_found": 404,
    "claim": 403,
    "query": 422,
    "invalid": 422,
    "too_large": 413,
    "database": 503,
    "offline": 503,
    "timeout": 504,
}
_NEXT = {
    400: "correct the request; GET /openapi.json describes it",
    401: "send Authorization: Bearer TOKEN with a token that is in force",
    403: "ask an admin for a token of a higher role",
    404: "look for its id in the list it belongs to",
    405: "use a method that GET /openapi.json names for this path",
    409: "look at its present state, and decide anew",
    413: "send less",
    415: "send Content-Type: application/json",
    422: "correct what is named, and send it again",
    429: "wait as long as Retry-After says",
    500: "it is a bug: look for the request id in the server's log",
    501: "install what is missing on the server",
    503: "try again; the same Idempotency-Key makes that safe",
    504: "look whether the device is connected, and try again with the same Idempotency-Key",
    507: "make room on the server's disk",
}
_BUSY_S = 2


class FieldProblem(BaseModel):
    """One thing that is wrong in a request."""

    where: str = Field(examples=["body.stages.0.percent"])
    problem: str = Field(examples=["Input should be greater than 0"])


class Problem(BaseModel):
    """Why a request was not carried out; nothing was changed."""

    type: str = Field(examples=["urn:edgec:problem:not_found"], description="Stands for `reason`.")
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    reason: str = Field(examples=["not_found"], description="For programs.")
    detail: str = Field(examples=["there is no device 'cam-9' in the fleet"], description="The cause.")
    next: str = Field(examples=[_NEXT[404]], description="What to do.")
    request_id: str = Field(examples=["3f1c9a52c0de4b7e"], description="As in the server's log.")
    errors: list[FieldProblem] = Field(default=[], description="All that is wrong in the request.")


class ApiError(HTTPException):
    """A refusal of the API itself."""

    def __init__(
        self, status: int, reason: str, detail: str, *, next_step: str = "", headers: Any = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason
        self.next_step = next_step


def problem_reply(
    request: Request,
    status: int,
    reason: str,
    detail: str,
    *,
    next_step: str = "",
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a reply that says what is wrong."""
    problem = Problem(
        type=f"urn:edgec:problem:{reason}",
        title=HTTPStatus(status).phrase,
        status=status,
        reason=reason,
        detail=detail,
        next=next_step or _NEXT.get(status, _NEXT[400]),
        request_id=getattr(request.state, "request_id", ""),
        errors=list(errors),
    )
    # Of what fails outside of all middleware, too.
    more = {**(headers or {}), "X-Request-Id": problem.request_id}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        more.setdefault("Retry-After", str(_BUSY_S))
    return Response(problem.model_dump_json(), status, more, PROBLEM_TYPE)


def status_of(error: EdgecError) -> tuple[int, str]:
    """Return the status that an error has, and its reason for programs."""
    if isinstance(error, FleetError):
        return _STATUS.get(error.reason, 409), error.reason
    if isinstance(error, TrustError):
        return 409, f"trust_{error.reason}"
    if isinstance(error, ArtifactError):
        return 422, "artifact"
    if isinstance(error, OutputError):
        return 507, "storage"
    if isinstance(error, LinkError):
        return 503, "broker"
    if isinstance(error, ProtocolError):
        return 422, "invalid"
    if isinstance(error, ExtraError):
        return 501, "missing_extra"
    return 500, "bug"


def install_problems(app: FastAPI) -> None:
    """Have an app answer with problems."""

    @app.exception_handler(EdgecError)
    def edgec(request: Request, error: EdgecError) -> Response:
        status, reason = status_of(error)
        return problem_reply(request, status, reason, str(error))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        status, reason, next_step = error.status_code, HTTPStatus(error.status_code).name.lower(), ""
        detail = str(error.detail)
        if isinstance(error, ApiError):
            reason, next_step = error.reason, error.next_step
        elif status == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
        return problem_reply(request, status, reason, detail, next_step=next_step, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        found = [
            FieldProblem(where=".".join(map(str, e["loc"])), problem=problem_of(e)) for e in error.errors()
        ]
        detail = "; ".join(f"{f.where}: {f.problem}" for f in found[:10])
        return problem_reply(request, 422, "invalid", detail, errors=found)

    @app.exception_handler(OperationalError)
    def database(request: Request, error: OperationalError) -> Response:
        return problem_reply(request, 503, "database", f"the database cannot be used now: {error.orig}")

    @app.exception_handler(IntegrityError)
    def race(request: Request, error: IntegrityError) -> Response:
        return problem_reply(request, 409, "conflict", "somebody else has changed the same at this moment")

    @app.exception_handler(DataError)
    def data(request: Request, error: DataError) -> Response:
        return problem_reply(request, 422, "invalid", f"the database cannot keep this: {error.orig}")

    # Whatever is raised otherwise is a bug: it is in the log, with its traceback, by starlette's own handler.
    @app.exception_handler(500)
    def bug(request: Request, error: Exception) -> Response:
        return problem_reply(request, 500, "bug", "the server failed in a way that nobody has foreseen")
