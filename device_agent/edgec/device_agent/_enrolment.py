"""How a device gets its identity: settings, roots, and a key of its own or a token, written to one directory.

Who signs the request, and how the answer comes back, is left open: a publisher by hand, or a server.
"""

from __future__ import annotations

import grp
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.artifact import atomic_write
from edgec.device_agent._config import AgentConfig, make_config
from edgec.device_agent._durable import make_directory
from edgec.errors import AgentError, OutputError
from edgec.errors.extras import needs_extra

CONFIG = "agent.toml"
KEY, CERTIFICATE, REQUEST = "device.key", "device.crt", "device.csr"
_COMMENT = (
    "# Written by  edgec agent enrol  or  provision ; edgec's guide explains every setting: docs/agent.md.\n"
)


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What was written.

    Attributes:
        config: The settings.
        path: The file with them.
        request: A request for a certificate that somebody must sign; None where none is needed.
    """

    config: AgentConfig
    path: Path
    request: Path | None


def provision(
    directory: Path,
    settings: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    secrets: Mapping[str, bytes] | None = None,
    make_key: bool = False,
    group: str | None = None,
    replace: bool = False,
) -> Enrolment:
    """Write the identity and the settings of a device.

    The settings come last: as long as they are missing, no agent starts on half an identity.

    Args:
        directory: Where to; made if missing.
        settings: As of `make_config`; paths of files relative to `directory`.
        files: Roots, certificates: content by name.
        secrets: Private key, token: content by name; for the owner and `group` only.
        make_key: Make a private key, and a request for its certificate, whose common name is the device's id.
            A key that is there is kept.
        group: System group that may read secrets; None for nobody else.
        replace: Write over settings that are there.

    Raises:
        AgentError: The settings are wrong, or there are some already.
        OutputError: Something cannot be written.
        MissingExtraError: The extra ``agent`` is not installed.
    """
    path = directory / CONFIG
    if path.exists() and not replace:
        raise AgentError(f"{path} is there already: this device is enrolled; --force writes it anew")
    config = make_config(settings, base=directory)
    _prepare(directory)
    for name, content in files.items():
        _write(directory / name, content, 0o644)
    for name, content in (secrets or {}).items():
        _write(directory / name, content, 0o600, group)
    request = None
    if make_key:
        make_request(directory, config.device, group)
        request = directory / REQUEST
    _write(path, (_COMMENT + to_toml(settings)).encode(), 0o644)
    return Enrolment(config=config, path=path, request=request)


def make_request(directory: Path, device: str, group: str | None = None) -> bytes:
    """Make a private key that never leaves the device, and a request for its certificate (CSR, PEM).

    A key that is there is kept.

    Raises:
        AgentError: The key that is there cannot be read.
        OutputError: Something cannot be written.
        MissingExtraError: The extra ``agent`` is not installed.
    """
    _prepare(directory)
    request = _certificate_request(_private_key(directory / KEY, group), device)
    _write(directory / REQUEST, request, 0o644)
    return request


def write_secret(path: Path, content: bytes, group: str | None = None) -> None:
    """Write a file that only the owner and `group` may read.

    Raises:
        OutputError: It cannot be written.
    """
    _prepare(path.parent)
    _write(path, content, 0o600, group)


def to_toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML: plain values first, then tables."""
    plain = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_literal(value)}\n" for name, value in plain.items()]
    for name, table in tables.items():
        lines.append(f"\n[{name}]\n")
        lines += [f"{key} = {_literal(value)}\n" for key, value in table.items()]
    return "".join(lines)


def _literal(value: Any) -> str:
    # Texts of JSON are texts of TOML, as long as no character needs two escapes.
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(v) for v in value)}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _prepare(directory: Path) -> None:
    try:
        make_directory(directory)
    except OSError as e:
        raise OutputError(f"{directory} cannot be made: {e.strerror}") from e


def _write(path: Path, content: bytes, mode: int, group: str | None = None) -> None:
    """Write a file; a secret is never, not for a moment, readable by others."""
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), mode)
        gid = _group_id(group)
        if gid is not None:
            try:
                os.fchown(file.fileno(), -1, gid)
                os.fchmod(file.fileno(), mode | 0o040)
            except PermissionError as e:
                raise OutputError(f"{path} cannot be given to group {group}: run this as root") from e
        file.write(content)


def _group_id(group: str | None) -> int | None:
    if group is None:
        return None
    with suppress(KeyError):
        return grp.getgrnam(group).gr_gid
    raise OutputError(f"there is no group {group!r} on this system: make it, or choose another one")


def _private_key(path: Path, group: str | None) -> Any:
    """Return the private key in a file; a new one (ECDSA P-256) where there is none."""
    _, serialization, ec, _ = _cryptography()
    if path.exists():
        try:
            return serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as e:
            raise AgentError(f"{path} is no private key that can be read: {e}; move it away") from e
    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, data, 0o600, group)
    return key


def _certificate_request(key: Any, device: str) -> bytes:
    x509, serialization, _, hashes = _cryptography()
    name = x509.Name(
        [
            x509.NameAttribute(x509.oid.NameOID.ORGANIZATION_NAME, "edgec"),
            x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, device),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return bytes(request.public_bytes(serialization.Encoding.PEM))


def _cryptography() -> tuple[Any, Any, Any, Any]:
    with needs_extra("making a device's key", "agent"):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    return x509, serialization, ec, hashes
