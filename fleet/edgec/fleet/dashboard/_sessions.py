"""Who is at the other end: a token of the API, once shown, becomes a signed cookie."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from itsdangerous import BadData, URLSafeSerializer

from edgec.artifact import atomic_write
from edgec.errors import OutputError
from edgec.fleet.service import Fleet
from edgec.fleet.store._tokens import Token

SESSION_S = 12 * 3600.0
_NAME, _NOTICE = "edgec_session", "edgec_notice"
_MOST_NOTICE = 700


@dataclass(frozen=True, kw_only=True)
class Session:
    """One person in one browser.

    Attributes:
        token: That it was opened with.
        csrf: What every form of it must send along.
    """

    token: Token
    csrf: str

    @property
    def name(self) -> str:
        """Of the person, as the audit log has it."""
        return self.token.name

    def can(self, role: str) -> bool:
        """Return whether it may do what needs a role."""
        return self.token.allows(role)


class Sessions:
    """All sessions; nothing is kept of them but the key that signs their cookies."""

    def __init__(self, fleet: Fleet) -> None:
        """Read the key, or make it on first use.

        Raises:
            OutputError: It cannot be written.
        """
        self._fleet = fleet
        self._key = _key(fleet.data_dir / "dashboard.key")
        self._cookies = URLSafeSerializer(self._key, salt="edgec.session")
        self._notices = URLSafeSerializer(self._key, salt="edgec.notice")

    def open(self, request: Request, response: Response, secret: str) -> Session | None:
        """Put a session into a response; None, and nothing, where the token is none that is in force."""
        now = self._fleet.clock()
        token = self._fleet.tokens.find(secret.strip(), now)
        if token is None:
            return None
        nonce = secrets.token_urlsafe(18)
        value = self._cookies.dumps({"token": token.id, "nonce": nonce, "until": now + SESSION_S})
        _set(request, response, _NAME, str(value), int(SESSION_S))
        return Session(token=token, csrf=self._csrf(nonce))

    def of(self, request: Request) -> Session | None:
        """Return the session of a request; None where there is none, it has ended, or its token has."""
        try:
            found = self._cookies.loads(request.cookies.get(_NAME, ""))
        except BadData:
            return None
        now = self._fleet.clock()
        if found["until"] <= now:
            return None
        token = next((t for t in self._fleet.tokens.all() if t.id == found["token"]), None)
        if token is None or token.revoked_at is not None or (token.expires_at or now + 1) <= now:
            return None
        return Session(token=token, csrf=self._csrf(found["nonce"]))

    def close(self, response: Response) -> None:
        """Take the cookie back."""
        response.delete_cookie(_NAME, path="/")

    def leave_notice(self, request: Request, response: Response, kind: str, text: str) -> None:
        """Say something on the next page: ``good`` or ``bad``."""
        value = self._notices.dumps([kind, text[:_MOST_NOTICE]])
        _set(request, response, _NOTICE, str(value), 60)

    def take_notice(self, request: Request, response: Response | None = None) -> tuple[str, str] | None:
        """Return what the last page left, and forget it where there is a response to say so."""
        value = request.cookies.get(_NOTICE)
        if value is None:
            return None
        if response is not None:
            response.delete_cookie(_NOTICE, path="/")
        try:
            kind, text = self._notices.loads(value)
        except BadData:
            return None
        return kind, text

    def _csrf(self, nonce: str) -> str:
        return hmac.new(self._key, b"csrf:" + nonce.encode(), sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Return whether two texts are the same, in a time that says nothing of where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    options: dict[str, Any] = {"httponly": True, "samesite": "lax", "path": "/"}
    response.set_cookie(name, value, max_age=seconds, secure=request.url.scheme == "https", **options)


def _key(path: Path) -> bytes:
    """Return the key in a file, made with 32 random bytes where there is none."""
    try:
        if not path.exists():
            with atomic_write(path) as out:
                os.fchmod(out.fileno(), 0o600)
                out.write(secrets.token_bytes(32))
        return path.read_bytes()
    except OSError as e:
        raise OutputError(f"cannot keep the key of the dashboard in {path}: {e.strerror}") from e
