"""Who asks, what they may do, and how often."""

from __future__ import annotations

import math
import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from edgec.fleet.api._limits import ApiLimits
from edgec.fleet.api._problems import ApiError
from edgec.fleet.service import Fleet
from edgec.fleet.store._tokens import Token
from edgec.protocol._rates import Rates

_bearer = HTTPBearer(auto_error=False, description="A token of `POST /api/v1/tokens`, or the first one.")


class Gate:
    """Knows tokens, and how often each was used; for one event loop."""

    def __init__(self, fleet: Fleet, limits: ApiLimits) -> None:
        self._fleet = fleet
        self._rates = Rates(limits.rate, limits.burst, time.monotonic)
        self._refused = Rates(limits.refused_rate, 20 * limits.refused_rate, time.monotonic)

    async def enter(self, secret: str | None, role: str, address: str) -> Token:
        """Return the token of who asks.

        Raises:
            ApiError: It is none, does not allow this, or is used too often.
        """
        token = (
            await run_in_threadpool(self._fleet.tokens.find, secret, self._fleet.clock()) if secret else None
        )
        if token is None:
            _slow_down(self._refused.wait_s(address))
            detail = "the token is not known, was taken back, or has ended" if secret else "no token was sent"
            raise ApiError(401, "unauthorised", detail, headers={"WWW-Authenticate": "Bearer"})
        _slow_down(self._rates.wait_s(token.id))
        if not token.allows(role):
            detail = f"this needs the role {role}, and {token.name} is {token.role}"
            raise ApiError(403, "forbidden", detail)
        return token

    def look(self, address: str) -> None:
        """Refuse an attempt to come in without a token where too many of an address have failed.

        Raises:
            ApiError: They have.
        """
        _slow_down(self._refused.left_s(address))

    def failed(self, address: str) -> None:
        """Note an attempt to come in without a token that has failed; those that succeed cost nothing."""
        self._refused.wait_s(address)


class Needs:
    """A dependency: a token of a role, or of one that may do more."""

    def __init__(self, role: str) -> None:
        self.role = role

    async def __call__(
        self, request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Token:
        """Return the token of who asks."""
        address = address_of(request)
        gate: Gate = request.app.state.gate
        token = await gate.enter(sent.credentials if sent else None, self.role, address)
        request.state.token = token
        request.state.secret = sent.credentials if sent else ""
        return token


def address_of(request: Request) -> str:
    """Return whence a request comes."""
    return request.client.host if request.client else "local"


def fleet_of(request: Request) -> Fleet:
    """Return the fleet that is asked about."""
    fleet: Fleet = request.app.state.fleet
    return fleet


def limits_of(request: Request) -> ApiLimits:
    """Return the limits of the API."""
    limits: ApiLimits = request.app.state.limits
    return limits


FleetOf = Annotated[Fleet, Depends(fleet_of)]
LimitsOf = Annotated[ApiLimits, Depends(limits_of)]
Viewer = Annotated[Token, Depends(Needs("viewer"))]
Operator = Annotated[Token, Depends(Needs("operator"))]
Releaser = Annotated[Token, Depends(Needs("releaser"))]
Admin = Annotated[Token, Depends(Needs("admin"))]


def _slow_down(wait_s: float) -> None:
    if wait_s:
        raise ApiError(
            429, "rate", "too many requests", headers={"Retry-After": str(max(1, math.ceil(wait_s)))}
        )
