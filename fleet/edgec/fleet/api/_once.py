"""Mutations: each is one transaction with its audit entry and, under an idempotency key, with its reply."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from edgec.fleet.api._access import FleetOf
from edgec.fleet.api._limits import ApiLimits
from edgec.fleet.service import Fleet
from edgec.fleet.store._replies import MOST_KEY, Replies, Reply

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MOST_KEY,
        pattern=r"^[!-~]+$",
        description="Of your choice, a new one for each intent: the same request under the same key is "
        "carried out once, and gets the same reply for two days. Another request under it is refused: 409.",
        examples=["5f0c9c0e-6f0a-4e0b-9d0a-1f5e8c2b7a11"],
    ),
]


class Once:
    """Carries out a request once under its idempotency key; without one, whenever it comes."""

    def __init__(
        self, fleet: Fleet, limits: ApiLimits, token: str, secret: str, key: str | None, what: str
    ) -> None:
        """Know a request.

        Args:
            fleet: It is about.
            limits: For how long replies are kept.
            token: Id of the token of who asks.
            secret: The token.
            key: Idempotency key; None for none.
            what: Digest of all of the request.
        """
        self._fleet, self._limits = fleet, limits
        self._replies = Replies(fleet.store.database)
        self._token, self._secret, self._key, self._what = token, secret, key, what

    @property
    def key(self) -> str | None:
        """The idempotency key."""
        return self._key

    def carry_out(self, deed: Callable[[], BaseModel | None], status: int = 200) -> Response:
        """Do it, with all it writes and its reply in one transaction; then tell who directs devices.

        Killed before the end, nothing was done and the same request does it; after it, the same request gets
        the same reply.

        Args:
            deed: Returns the body of the reply; None for none, status 204.
            status: Of the reply, where it has a body.
        """
        with self._fleet.store.database.together():
            reply = self.begun()
            if reply is None:
                reply = as_reply(deed(), status)
                self.ended(reply)
        self._fleet.wake()
        return to_response(reply)

    def begun(self, *, again: bool = True) -> Reply | None:
        """Return the reply that was given; None where it is to be done now.

        Args:
            again: Whether what was begun and has no reply may be done again.

        Raises:
            FleetError: It may not, or the key is another request's.
        """
        if self._key is None:
            return None
        return self._replies.begin(
            self._token,
            self._secret,
            self._key,
            self._what,
            now=self._fleet.clock(),
            kept_s=self._limits.replies_s,
            again=again,
        )

    def ended(self, reply: Reply) -> None:
        """Keep the reply."""
        if self._key is not None:
            self._replies.keep(self._token, self._secret, self._key, self._what, reply)

    def forget(self) -> None:
        """Say that nothing was done."""
        if self._key is not None:
            self._replies.forget(self._token, self._key)


async def once(request: Request, fleet: FleetOf, key: IdempotencyKey = None) -> Once:
    """Return what carries out this request, which has a body of bounded size."""
    return once_of(request, fleet, key, await request.body())


def once_of(request: Request, fleet: Fleet, key: str | None, body: bytes) -> Once:
    """Return what carries out a request, of which `body` stands for the body.

    The dependency that checks the token comes before: see `edgec.fleet.api._access.Needs`.
    """
    parts = (request.method, request.url.path, request.url.query)
    what = sha256("\n".join(parts).encode() + b"\n" + body).hexdigest()
    return Once(fleet, request.app.state.limits, request.state.token.id, request.state.secret, key, what)


def as_reply(body: BaseModel | None, status: int) -> Reply:
    """Return what is kept of a body."""
    if body is None:
        return Reply(status=204, body=b"")
    return Reply(status=status, body=body.model_dump_json().encode())


def to_response(reply: Reply) -> Response:
    """Return a reply as it is sent."""
    return Response(reply.body, reply.status, media_type="application/json" if reply.body else None)


OnceOf = Annotated[Once, Depends(once)]
