"""Whether the server lives, and whether it can be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from edgec.fleet.api._access import FleetOf
from edgec.fleet.service import Fleet

router = APIRouter(tags=["health"])
# Returns what is wrong, for people; None where nothing is.
Check = Callable[[], str | None]


class Health(BaseModel):
    """How the server is."""

    ok: bool
    problems: dict[str, str] = Field(default={}, examples=[{"database": "it cannot be reached"}])


@router.get("/healthz")
async def healthz() -> Health:
    """Answer as long as the server lives."""
    return Health(ok=True)


@router.get("/readyz", responses={503: {"model": Health}})
def readyz(request: Request, response: Response, fleet: FleetOf) -> Health:
    """Say whether the server can be used: its database, its repositories, and what it was given to check."""
    checks: Mapping[str, Check] = request.app.state.checks
    found = {"database": _database(fleet), "repository": _repository(fleet)}
    found |= {name: check() for name, check in checks.items()}
    problems = {name: problem for name, problem in found.items() if problem is not None}
    if problems:
        response.status_code = 503
    return Health(ok=not problems, problems=problems)


def _database(fleet: Fleet) -> str | None:
    try:
        with fleet.store.database.read() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as e:
        return f"it cannot be reached: {type(e).__name__}"
    return None


def _repository(fleet: Fleet) -> str | None:
    path = fleet.data_dir / "repo" / "image" / "timestamp.json"
    return None if path.is_file() else f"{path.name} of the image repository is missing"
