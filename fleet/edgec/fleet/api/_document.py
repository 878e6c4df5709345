"""The OpenAPI document: what FastAPI derives, with the problems and the roles that every operation has."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from edgec.fleet.api._access import Needs
from edgec.fleet.api._problems import PROBLEM_TYPE, Problem

_DESCRIPTION = """\
Devices, releases, rollouts and what became of them.

* **Tokens**: `Authorization: Bearer TOKEN`. Roles, each with all rights of those before: viewer, operator,
  releaser, admin. `x-edgec-role` of an operation is what it needs.
* **Mutations** take an `Idempotency-Key`: the same request under it again is carried out once and gets the
  same reply, also after a crash of the server. Each is in the audit log.
* **Lists** come in pages: `next` of a page is the `cursor` of the next one.
* **Errors** are `application/problem+json`: `reason` for programs, `detail` with the cause, `next` with what
  to do.
* **Limits**: 429 and 503 come with `Retry-After`.
"""
_PROBLEMS = {
    "401": "No token that is in force.",
    "403": "The token's role does not allow it.",
    "404": "There is no such thing.",
    "409": "Its state does not allow it, or the idempotency key is another request's.",
    "413": "The body is too large.",
    "422": "The request is wrong; `errors` names every field.",
    "429": "Too many requests; see `Retry-After`.",
    "503": "Database or broker cannot be used now; see `Retry-After`.",
    "default": "Any other problem.",
}


def describe(app: FastAPI) -> None:
    """Have an app describe itself completely at ``/openapi.json``."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app)
        return app.openapi_schema

    # As FastAPI's own guide has it: the method is there to be replaced.
    app.openapi = openapi  # type: ignore[method-assign]


def _complete(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    roles = _roles(app)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = roles.get((path, method.upper()))
            if role is not None:
                operation["x-edgec-role"] = role
            _add_problems(path, operation, role)
    return document


def _add_problems(path: str, operation: dict[str, Any], role: str | None) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    mutates = any(p["name"] == "Idempotency-Key" for p in operation.get("parameters", ()))
    unfit = set() if role else {"401", "403", "404", "422", "429"}
    unfit |= set() if mutates else {"409", "413"}
    unfit |= set() if "{" in path or mutates or operation.get("parameters") else {"404", "422"}
    if path.endswith("/enrol"):
        # A claim takes the place of a token.
        unfit -= {"403", "409", "422", "429"}
    for status, description in _PROBLEMS.items():
        if status not in unfit and status not in responses:
            responses[status] = {"description": description, "content": content}


def _roles(app: FastAPI) -> dict[tuple[str, str], str]:
    """Return what role each operation needs, by path and method."""
    found: dict[tuple[str, str], str] = {}
    for context in iter_route_contexts(app.routes):
        path, dependant = context.path_format, getattr(context, "dependant", None)
        for needed in dependant.dependencies if dependant else ():
            if isinstance(needed.call, Needs) and path is not None:
                found |= {(path, method): needed.call.role for method in context.methods or ()}
    return found
