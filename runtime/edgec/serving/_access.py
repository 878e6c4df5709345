"""Who may ask: API keys."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from edgec.errors import RequestError, ServingError

_LEAST = 16


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the keys of a file: one per line; empty lines and those that begin with # are left out.

    Raises:
        ServingError: The file cannot be read, holds no key, or one that is too short or no plain text.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise ServingError(f"cannot read the keys in {path}: {e.strerror or e}") from e
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith(b"#"))
    bad = [i for i, key in enumerate(keys, 1) if len(key) < _LEAST or not key.isascii() or b" " in key]
    if bad or not keys:
        what = f"key {bad[0]} is too short or no plain text" if bad else "there is none"
        raise ServingError(f"{path}: {what}: expected keys of at least {_LEAST} characters, one per line")
    return keys


class Gate:
    """Lets requests pass that carry one of the keys, or all where there are none.

    Digests are compared, in constant time, so that neither the length of a key nor how much of it is
    right can be told from the time an answer takes.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._digests = [sha256(key).digest() for key in keys]

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Do nothing if a request may pass: ``Authorization: Bearer KEY``, or ``X-API-Key: KEY``.

        Raises:
            RequestError: It may not, status 401.
        """
        if not self._digests:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = headers.get(b"x-api-key", b"")
        digest = sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise RequestError(
                "expected an API key: send Authorization: Bearer KEY, or X-API-Key: KEY", status=401
            )
