"""Signing keys in files: a private half that never leaves its holder, a public half that anyone may have.

``root-1.pem`` is the private key (PKCS #8, encrypted where a passphrase is given, mode 0600), and
``root-1.pub`` the public one with its role. Whoever sets up a repository needs all public halves and
some private ones; the others sign later.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.errors import OutputError, TrustError
from edgec.trust._tuf import CryptoSigner, Key, SSlibKey

# In the order in which a ceremony names them; the last two are online.
ROLES = ("root", "targets", "online", "director")
OFFLINE_ROLES = ("root", "targets")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAX_FILE = 64 * 1024

Passphrase = Callable[[str], bytes | None]


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """The public half of a key.

    Attributes:
        name: Chosen when it was made, and the stem of its files: ``root-1``.
        role: One of `ROLES`.
        key: What verifies its signatures.
    """

    name: str
    role: str
    key: Any

    @property
    def keyid(self) -> str:
        """Identifier of the key in metadata, in hex."""
        return str(self.key.keyid)


def generate_key(directory: Path, name: str, role: str, *, passphrase: bytes | None = None) -> PublicKey:
    """Make an Ed25519 key and write both halves; a file that is there already is never replaced.

    Raises:
        TrustError: The name or role is none (``reason`` ``key``).
        OutputError: A file of that name is there already, or cannot be written.
    """
    if not _NAME.fullmatch(name) or role not in ROLES:
        raise TrustError(
            f"{name!r} of role {role!r} cannot be a key: a name has letters, digits, '_', '.', '-', "
            f"a role is one of {', '.join(ROLES)}",
            "key",
        )
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = PublicKey(name=name, role=role, key=SSlibKey.from_crypto(private.public_key()))
    _write_new(directory / f"{name}.pem", pem, 0o600)
    _write_new(directory / f"{name}.pub", public_to_bytes(public), 0o644)
    return public


def public_to_bytes(public: PublicKey) -> bytes:
    """Return the content of a ``.pub`` file."""
    document = {
        "v": 1,
        "name": public.name,
        "role": public.role,
        "keyid": public.keyid,
        "key": public.key.to_dict(),
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def read_public_key(path: Path) -> PublicKey:
    """Read a ``.pub`` file.

    Raises:
        TrustError: It is missing, too large or no such file (``reason`` ``key``).
    """
    try:
        document = json.loads(_read_small(path))
        name, role, keyid = (document[field] for field in ("name", "role", "keyid"))
        known = Key.from_dict(str(keyid), dict(document["key"]))
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise TrustError(f"{path} is no public key of edgec ({e}); give the .pub file of a key", "key") from e
    if not isinstance(name, str) or not _NAME.fullmatch(name) or role not in ROLES:
        raise TrustError(f"{path} names no key or no role of {', '.join(ROLES)}", "key")
    return PublicKey(name=name, role=role, key=known)


def read_public_keys(directories: Sequence[Path]) -> list[PublicKey]:
    """Read every ``.pub`` file of `directories`, ordered by role and name.

    Raises:
        TrustError: There is none, one is malformed, or two keys have one name (``reason`` ``key``).
    """
    paths = sorted(path for directory in directories for path in directory.glob("*.pub"))
    keys = [read_public_key(path) for path in paths]
    if not keys:
        where = ", ".join(map(str, directories))
        raise TrustError(f"no .pub files in {where}; run  edgec keys init {where}", "key")
    by_name: dict[str, PublicKey] = {}
    for key in keys:
        if by_name.setdefault(key.name, key).keyid != key.keyid:
            raise TrustError(f"two keys are called {key.name}; rename the files of one", "key")
    return sorted(by_name.values(), key=lambda key: (ROLES.index(key.role), key.name))


def no_passphrase(name: str) -> bytes | None:
    """Know no passphrase: keys that need one are refused."""
    return None


def load_signer(path: Path, public: PublicKey, passphrase: Passphrase = no_passphrase) -> Any:
    """Read a private key.

    Args:
        path: Of the ``.pem`` file.
        public: Its public half, which it must fit.
        passphrase: Called with the key's name if the file is encrypted.

    Returns:
        A signer of securesystemslib.

    Raises:
        TrustError: The file is missing or none, the passphrase is wrong, or it is another key
            (``reason`` ``key``).
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read_small(path)
    encrypted = b"ENCRYPTED PRIVATE KEY" in pem
    secret = passphrase(public.name) if encrypted else None
    if encrypted and not secret:
        raise TrustError(f"{path} is encrypted: give its passphrase (--passphrase-file)", "key")
    try:
        return CryptoSigner(load_pem_private_key(pem, secret or None), public.key)
    # A wrong passphrase is a ValueError, and a file of another kind may be any of these.
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise TrustError(f"{path} cannot be read as the private key of {public.name}: {e}", "key") from e


class KeyRing:
    """The keys at hand: all public halves of some directories, and the private ones that are there.

    A private key is read when it signs for the first time.
    """

    def __init__(self, directories: Sequence[Path], passphrase: Passphrase = no_passphrase) -> None:
        """Read the public halves.

        Raises:
            TrustError: There are none, or they are malformed (``reason`` ``key``).
        """
        self.directories = tuple(directories)
        self.keys = read_public_keys(self.directories)
        self._passphrase = passphrase
        self._signers: dict[str, Any] = {}

    def of_role(self, role: str) -> list[PublicKey]:
        """Return the keys of a role, by name."""
        return [key for key in self.keys if key.role == role]

    def named(self, name: str) -> PublicKey:
        """Return the key called `name`.

        Raises:
            TrustError: There is none (``reason`` ``key``).
        """
        for key in self.keys:
            if key.name == name:
                return key
        known = ", ".join(key.name for key in self.keys)
        raise TrustError(f"there is no key {name!r}; known keys: {known}", "key")

    def name_of(self, keyid: str) -> str:
        """Return the name of a key, or the begin of its identifier where it is not known."""
        return next((key.name for key in self.keys if key.keyid == keyid), keyid[:12])

    def signers(self, keyids: Sequence[str]) -> list[Any]:
        """Return signers for those of `keyids` whose private keys are here.

        Raises:
            TrustError: A private key is here and cannot be read (``reason`` ``key``).
        """
        found = (self._signer(key) for key in self.keys if key.keyid in keyids)
        return [signer for signer in found if signer is not None]

    def _signer(self, public: PublicKey) -> Any | None:
        if public.keyid not in self._signers:
            paths = [directory / f"{public.name}.pem" for directory in self.directories]
            path = next((path for path in paths if path.is_file()), None)
            self._signers[public.keyid] = path and load_signer(path, public, self._passphrase)
        return self._signers[public.keyid]


def _read_small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as e:
        raise TrustError(f"cannot read the key {path}: {e.strerror}", "key") from e
    if len(data) > _MAX_FILE:
        raise TrustError(f"{path} has more than {_MAX_FILE} bytes: it is no key", "key")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as e:
        raise OutputError(f"{path} is there already; a key is never replaced: choose another place") from e
    except OSError as e:
        raise OutputError(f"cannot write the key {path}: {e.strerror}") from e
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
