"""Who may use the API: tokens of people and programs, of which only digests are kept."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, select, update

from edgec.errors import FleetError
from edgec.fleet.store._audit import add_entry
from edgec.fleet.store._database import Database, clean
from edgec.fleet.store._schema import tokens

# Each may do what the ones before it may.
ROLES = ("viewer", "operator", "releaser", "admin")
_PREFIX = "edgec_"
_MOST_NAME = 128
# When a token was last used is written down no more often.
_USED_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Token:
    """What is known of a token; not the token.

    Attributes:
        id: Its id; no secret.
        name: Of the person or program that has it: the actor in the audit log. No two in force have one name.
        role: ``viewer``, ``operator``, ``releaser`` or ``admin``.
        created_at: When it was made, seconds by the fleet's clock.
        created_by: By whom.
        expires_at: When it ends; None for never.
        used_at: When it was last used, to a minute; None for never.
        revoked_at: When it was taken back; None where it was not.
    """

    id: str
    name: str
    role: str
    created_at: float
    created_by: str
    expires_at: float | None
    used_at: float | None
    revoked_at: float | None

    def allows(self, role: str) -> bool:
        """Return whether it may do what needs a role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Tokens:
    """All tokens of a fleet."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        role: str,
        *,
        now: float,
        actor: str,
        expires_at: float | None = None,
        instead_of: Collection[str] = (),
    ) -> tuple[Token, str]:
        """Make a token of 256 random bits; return what is known of it, and it, which is told only here.

        Args:
            name: Of the person or program that gets it; of no other token in force.
            role: Of `ROLES`.
            now: Seconds by the fleet's clock.
            actor: Who makes it.
            expires_at: When it ends; None for never.
            instead_of: Ids of tokens that are taken back at the same moment.

        Raises:
            FleetError: There is no such role, the name cannot be, or it would have ended (``reason``
                ``invalid``); or a token in force has the name (``conflict``).
        """
        problems = []
        if role not in ROLES:
            problems.append(f"expected a role of {', '.join(ROLES)}, got {role!r}")
        if not (name.strip() and name.isprintable() and len(name) <= _MOST_NAME):
            problems.append(f"expected a name of 1 to {_MOST_NAME} printable characters, got {name!r}")
        if expires_at is not None and expires_at <= now:
            problems.append(f"expected an end after now ({now:.0f}), got {expires_at:.0f}")
        if problems:
            raise FleetError("; ".join(problems), "invalid")
        secret = _PREFIX + secrets.token_urlsafe(32)
        made = Token(
            id=secrets.token_hex(6), name=clean(name), role=role, created_at=now, created_by=actor,
            expires_at=expires_at, used_at=None, revoked_at=None,
        )  # fmt: skip
        row = {**{k: getattr(made, k) for k in _COLUMNS}, "hash": _digest(secret)}
        with self._database.write() as connection:
            for other in instead_of:
                connection.execute(update(tokens).where(tokens.c.id == other).values(revoked_at=now))
                add_entry(connection, now, actor, "token.revoke", other, {"name": made.name})
            _refuse_taken(connection, made)
            connection.execute(tokens.insert(), row)
            body = {"name": made.name, "role": role, "expires_at": expires_at}
            add_entry(connection, now, actor, "token.create", made.id, body)
        return made, secret

    def find(self, secret: str, now: float) -> Token | None:
        """Return what is known of a token that is in force; None of any other.

        It is looked for by its digest, so the time that takes tells nothing of others.
        """
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.hash == _digest(secret))).first()
        if row is None or row.revoked_at is not None:
            return None
        if row.expires_at is not None and row.expires_at <= now:
            return None
        if row.used_at is None or now - row.used_at >= _USED_EVERY_S:
            with self._database.write() as connection:
                connection.execute(update(tokens).where(tokens.c.id == row.id).values(used_at=now))
        return _token(row)

    def all(self) -> Sequence[Token]:
        """Return all tokens, those taken back, too, by when they were made."""
        query = select(tokens).order_by(tokens.c.created_at, tokens.c.id)
        with self._database.read() as connection:
            return [_token(row) for row in connection.execute(query)]

    def revoke(self, token: str, *, now: float, actor: str) -> Token:
        """Take a token back by its id: it ends at once. Once more changes nothing.

        Raises:
            FleetError: There is none of this id (``reason`` ``not_found``), or nobody could command the fleet
                any more (``refused``).
        """
        with self._database.write() as connection:
            # Two admins who revoke each other come one after the other.
            admins = select(tokens).where(tokens.c.role == "admin").order_by(tokens.c.id).with_for_update()
            others = [row for row in connection.execute(admins) if row.id != token]
            query = select(tokens).where(tokens.c.id == token).with_for_update()
            row = connection.execute(query).first()
            if row is None:
                raise FleetError(f"there is no token {token!r}; list them", "not_found")
            if row.revoked_at is not None:
                return _token(row)
            lasting = [other for other in others if other.revoked_at is None and other.expires_at is None]
            if row.role == "admin" and not lasting:
                raise FleetError(
                    f"{token} is the last token of an admin that does not end; make another one first",
                    "refused",
                )
            connection.execute(update(tokens).where(tokens.c.id == token).values(revoked_at=now))
            add_entry(connection, now, actor, "token.revoke", token, {"name": row.name})
            return _token(connection.execute(query).one())


_COLUMNS = tuple(Token.__dataclass_fields__)


def _refuse_taken(connection: Connection, made: Token) -> None:
    """Refuse a second token in force with a name: whoever reads the audit log could not tell them apart."""
    # Two that are made at once come one after the other: both wait for the same rows.
    connection.execute(
        select(tokens.c.id).where(tokens.c.role == "admin").order_by(tokens.c.id).with_for_update()
    )
    named = select(tokens).where(tokens.c.name == made.name, tokens.c.revoked_at.is_(None))
    for row in connection.execute(named.order_by(tokens.c.id)):
        if row.expires_at is None or row.expires_at > made.created_at:
            raise FleetError(
                f"token {row.id} in force is named {made.name!r}, too, and the audit log tells tokens by "
                f"their names; choose another name, or revoke {row.id} first",
                "conflict",
            )


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: Row[Any]) -> Token:
    return Token(**{name: getattr(row, name) for name in _COLUMNS})
