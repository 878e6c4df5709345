"""Replies that were given under idempotency keys, so that the same request again gets the same reply."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, select, update

from edgec.errors import FleetError
from edgec.fleet.store._database import Database, insert_new
from edgec.fleet.store._schema import idempotency

MOST_KEY = 128
# Each sealing key is used once: it is made of the token and the idempotency key.
_NONCE = bytes(12)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What was answered.

    Attributes:
        status: Of HTTP.
        body: JSON.
    """

    status: int
    body: bytes


class Replies:
    """Replies by token and key, sealed with the token itself: the database alone tells nobody what they say.

    A reply may hold what is told only once, as a new token does.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        token: str,
        secret: str,
        key: str,
        request: str,
        *,
        now: float,
        kept_s: float,
        again: bool = True,
    ) -> Reply | None:
        """Return the reply of this request, where there was one; else note that it is worked on.

        In a transaction of `Database.together` with the work and `keep`, the same request waits here until
        the other one has ended, and nothing is kept of one that failed.

        Args:
            token: Id of the token of who asks.
            secret: The token.
            key: Idempotency key, of their choice.
            request: Digest of all of the request.
            now: Seconds by the fleet's clock.
            kept_s: How long replies are kept.
            again: Whether what was begun and has no reply may be done again.

        Raises:
            FleetError: The key was used for another request, or for one that was begun and may not be done
                again (``reason`` ``conflict``).
        """
        mine = (idempotency.c.token == token) & (idempotency.c.key == key)
        row = {"token": token, "key": key, "request": request, "at": now, "status": None, "reply": None}
        with self._database.write() as connection:
            connection.execute(delete(idempotency).where(idempotency.c.at < now - kept_s))
            new = insert_new(connection, idempotency, row)
            query = select(idempotency).where(mine).with_for_update()
            while (found := connection.execute(query).first()) is None:
                # It was there, and has just been forgotten.
                new = insert_new(connection, idempotency, row)
        if found.request != request:
            raise FleetError(
                f"the idempotency key {key!r} was used for another request; take a new one", "conflict"
            )
        if found.status is None:
            if not new and not again:
                raise FleetError(
                    f"what came under the idempotency key {key!r} was begun, and how it ended is not known; "
                    "see what became of it before you take a new key",
                    "conflict",
                )
            return None
        try:
            body = AESGCM(_seal(secret, key)).decrypt(_NONCE, bytes(found.reply), request.encode())
        except InvalidTag as e:
            raise FleetError(
                f"the reply under the idempotency key {key!r} is damaged; take a new one", "conflict"
            ) from e
        return Reply(status=found.status, body=body)

    def keep(self, token: str, secret: str, key: str, request: str, reply: Reply) -> None:
        """Keep the reply of a request that has begun."""
        mine = (idempotency.c.token == token) & (idempotency.c.key == key)
        sealed = AESGCM(_seal(secret, key)).encrypt(_NONCE, reply.body, request.encode())
        with self._database.write() as connection:
            connection.execute(update(idempotency).where(mine).values(status=reply.status, reply=sealed))

    def forget(self, token: str, key: str) -> None:
        """Forget a request that has begun, since nothing of it was done."""
        mine = (idempotency.c.token == token) & (idempotency.c.key == key)
        with self._database.write() as connection:
            connection.execute(delete(idempotency).where(mine, idempotency.c.status.is_(None)))


def _seal(secret: str, key: str) -> bytes:
    return sha256(f"edgec reply\n{secret}\n{key}".encode()).digest()
