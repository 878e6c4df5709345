"""Who asks: a device by its certificate or its API key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgec.errors import RequestError, ServingError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LEAST = 16
_LARGEST_FILE = 64 * 2**20


def read_identities(path: Path) -> dict[str, bytes]:
    """Return the keys of a file by name of the device: ``NAME KEY`` in each line.

    Empty lines and those that begin with # are left out.

    Raises:
        ServingError: The file cannot be read, or a line is wrong; all that is wrong is said, no key is.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ServingError(f"{path}: expected at most {_LARGEST_FILE} bytes of keys")
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError as e:
        raise ServingError(f"cannot read the keys in {path}: {e.strerror or e}") from e
    keys: dict[str, bytes] = {}
    wrong = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().partition(" ")
        key = key.strip()
        fit = _NAME.fullmatch(name) and len(key) >= _LEAST and key.isprintable() and " " not in key
        if not fit or name in keys or not key.isascii():
            wrong.append(str(number))
        else:
            keys[name] = key.encode()
    if wrong or not keys:
        where = f"line {', '.join(wrong[:10])}" if wrong else "the whole file"
        raise ServingError(
            f"{path}: {where}: expected NAME KEY, a name once, and keys of at least {_LEAST} characters"
        )
    return keys


class Identities:
    """Tells who asks. Keys are looked up by digest, so that the time it takes tells nothing of them."""

    def __init__(self, keys: Mapping[str, bytes], certificates: bool) -> None:
        """Know some devices.

        Args:
            keys: By name of the device.
            certificates: Whether a verified certificate tells who asks, too.
        """
        self._names = {sha256(key).digest(): name for name, key in keys.items()}
        self._certificates = certificates
        self._open = not keys and not certificates

    def of(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
        """Return the device that asks, or the address of a client where everybody may.

        Raises:
            RequestError: Nobody who may, status 401.
        """
        if self._open:
            client = scope.get("client")
            return str(client[0]) if client else "local"
        peer = scope.get("edgec.peer", "")
        if self._certificates and _NAME.fullmatch(peer):
            return str(peer)
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = headers.get(b"x-api-key", b"")
        digest = sha256(key.strip()).digest()
        # The digest, not the key, decides where it is looked for: that tells nothing of other keys.
        name = self._names.get(digest)
        if name is None:
            raise RequestError(f"expected {self._wanted()}", status=401)
        return name

    def _wanted(self) -> str:
        certificate = "the certificate of a device, shown when the connection is made"
        key = "an API key: send Authorization: Bearer KEY, or X-API-Key: KEY"
        if not self._names:
            return certificate
        return f"{certificate}; or {key}" if self._certificates else key
