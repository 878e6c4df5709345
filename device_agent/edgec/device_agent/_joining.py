"""A device joins a fleet: it shows a claim and a key that it made, and is given all else that it needs."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgec.device_agent._enrolment import (
    CERTIFICATE,
    CONFIG,
    KEY,
    Enrolment,
    make_request,
    provision,
    write_secret,
)
from edgec.errors import AgentError
from edgec.protocol import broker_address, client_context

AUTHORITY, PASSWORD = "fleet-ca.crt", "broker-password"
_HERE = frozenset(("localhost", "127.0.0.1", "::1"))
_MAX_REPLY = 1 << 20
_MAX_DETAIL = 1000
_TEXTS = ("device", "tenant", "hardware", "kind", "authority", "broker", "image_root", "director_root")


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """Whom a device believes that it talks to the right server; with neither, the system's authorities.

    Attributes:
        authority: Certificates, PEM.
        fingerprint: SHA-256 of the authority's certificate, in hex, with colons or without: the certificate
            is then fetched from the server, and must be that one.
    """

    authority: bytes | None = None
    fingerprint: str | None = None


class _Refused(AgentError):
    """A server does not do what it was asked to; `reason` is its word for programs, or empty."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def join(
    url: str,
    claim: str,
    *,
    hardware: Sequence[str],
    directory: Path,
    state_dir: Path,
    trusted: Trusted,
    device: str | None = None,
    token: bool = False,
    group: str | None = None,
    replace: bool = False,
    timeout_s: float = 30.0,
) -> Enrolment:
    """Ask a fleet to take this device in, and write its identity and settings.

    The private key or the token is made here and kept before anything is sent, so that a device that is
    stopped, or does not hear the answer, asks again with the same one and gets the same answer.

    Args:
        url: Of the fleet's server: ``https://fleet.example:8443``.
        claim: That lets it in.
        hardware: Targets that it can run, the best first.
        directory: For settings and identity.
        state_dir: Of the agent.
        trusted: Whom to believe.
        device: The id that it wants; any if None.
        token: Whether it is to have a token rather than a certificate.
        group: System group that may read its secrets.
        replace: Write over settings that are there.
        timeout_s: For each step.

    Raises:
        AgentError: There are settings already, the server cannot be reached or believed, or it refuses.
        OutputError: Something cannot be written.
        MissingExtraError: The extra ``agent`` is not installed.
    """
    _check(url)
    if (directory / CONFIG).exists() and not replace:
        raise AgentError(
            f"{directory / CONFIG} is there already: this device is enrolled; --force writes it anew"
        )
    asked: dict[str, Any] = {"claim": claim, "hardware": list(hardware), "device": device}
    if token:
        asked["token"] = _token(directory / PASSWORD, group)
    else:
        asked["request"] = make_request(directory, device or "device", group).decode()
    try:
        given = _read(_ask(url, asked, _context(url, trusted, timeout_s), timeout_s))
    except _Refused as e:
        if e.reason != "key":
            raise
        again = "with --force" if (directory / CONFIG).exists() else "again"
        secret = directory / (PASSWORD if token else KEY)
        raise AgentError(f"{e}: remove {secret}, and enrol it {again}") from e
    if not token:
        _fits(given["certificate"], asked["request"])
    settings = _settings(given, hardware, state_dir, token)
    files = {name: given[kind].encode() for name, kind in _FILES.items()}
    if not token:
        files[CERTIFICATE] = given["certificate"].encode()
    return provision(directory, settings, files, replace=replace)


_FILES = {"image-root.json": "image_root", "director-root.json": "director_root", AUTHORITY: "authority"}


def _check(url: str) -> None:
    expected = f"expected a server such as https://fleet.example:8443, got {url!r:.80}"
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError as e:
        raise AgentError(f"{expected}: {e}") from e
    if not fine or parts.query or parts.fragment or parts.username is not None:
        raise AgentError(expected)
    if parts.scheme == "http" and parts.hostname not in _HERE:
        raise AgentError(f"{url} would be reached without encryption: use https://")


def _context(url: str, trusted: Trusted, timeout_s: float) -> ssl.SSLContext:
    authority = trusted.authority
    if trusted.fingerprint is not None and authority is None and url.startswith("https:"):
        authority = _authority(url, trusted.fingerprint, timeout_s)
    if authority is None:
        return client_context()
    try:
        return client_context(cadata=authority.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as e:
        raise AgentError(f"the authority is no certificate (PEM): {e}") from e


def _authority(url: str, fingerprint: str, timeout_s: float) -> bytes:
    """Return the certificate that a server shows as its authority's, if it is the one that was expected."""
    expected = re.sub(r"[:\s]", "", fingerprint).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise AgentError(f"expected a fingerprint of 64 hexadecimal digits, got {fingerprint!r:.100}")
    # Nothing secret is sent, and what comes is compared with the fingerprint.
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    shown = _fetch(urllib.request.Request(f"{url.rstrip('/')}/api/v1/authority"), blind, timeout_s)
    try:
        der = ssl.PEM_cert_to_DER_cert(shown.decode("ascii").strip())
    except ValueError as e:
        raise AgentError(f"{url} shows no certificate: is it the server of a fleet?") from e
    found = hashlib.sha256(der).hexdigest()
    if found != expected:
        raise AgentError(
            f"{url} has an authority with the fingerprint {found}, not {expected}: it is another server, or "
            "somebody is in between"
        )
    # Only what was compared is believed, whatever else came with it.
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _ask(url: str, asked: Mapping[str, Any], context: ssl.SSLContext, timeout_s: float) -> bytes:
    return _fetch(
        urllib.request.Request(
            f"{url.rstrip('/')}/api/v1/enrol",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        ),
        context,
        timeout_s,
    )


def _fetch(request: urllib.request.Request, context: ssl.SSLContext, timeout_s: float) -> bytes:
    opener = urllib.request.build_opener(
        # Proxies come from the environment otherwise.
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=context),
    )
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            data = bytes(reply.read(_MAX_REPLY + 1))
    except urllib.error.HTTPError as e:
        with e:
            detail, word = _refusal(e)
        raise _Refused(f"{request.host} refuses: {detail} ({e.code})", word) from e
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", e)
        hint = ""
        if isinstance(reason, ssl.SSLCertVerificationError):
            hint = "; give its authority with --ca, or --fingerprint"
        elif isinstance(reason, http.client.RemoteDisconnected) and request.type == "http":
            hint = "; does it speak TLS? Then its address begins with https://"
        elif isinstance(reason, ssl.SSLError):
            hint = "; is this the address of the fleet's API, not of its broker?"
        raise AgentError(f"{request.host} cannot be asked: {reason}{hint}") from e
    if len(data) > _MAX_REPLY:
        raise AgentError(
            f"{request.host} answers with more than {_MAX_REPLY} bytes: is it the server of a fleet?"
        )
    return data


def _refusal(error: urllib.error.HTTPError) -> tuple[str, str]:
    """Return what a refusal says for people, and its word for programs."""
    try:
        said = json.loads(error.read(64 * 1024))
        return str(said["detail"])[:_MAX_DETAIL], str(said.get("reason", ""))
    except (
        OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ):  # fmt: skip
        return str(error.reason)[:_MAX_DETAIL], ""


def _read(data: bytes) -> dict[str, Any]:
    """Return an answer whose fields are what they should be."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise AgentError(f"the server's answer is no JSON: {e}") from e
    if not isinstance(given, dict):
        raise AgentError("the server's answer is no object of JSON: is it the server of a fleet?")
    wrong = [name for name in _TEXTS if not isinstance(given.get(name), str)]
    sources = given.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        wrong.append("sources")
    if given.get("kind") == "certificate" and not isinstance(given.get("certificate"), str):
        wrong.append("certificate")
    if wrong:
        raise AgentError(f"the server's answer lacks {', '.join(wrong)}, or has something else there")
    return given


def _fits(certificate: str | None, request: str) -> None:
    """Refuse a certificate that is for another key than the one that was made here."""
    from cryptography import x509

    try:
        key = x509.load_pem_x509_certificate((certificate or "").encode()).public_key()
    except ValueError as e:
        raise AgentError(f"the server gave no certificate: {e}") from e
    if key != x509.load_pem_x509_csr(request.encode()).public_key():
        raise AgentError("the server gave a certificate for another key")


def _settings(
    given: Mapping[str, Any], hardware: Sequence[str], state_dir: Path, token: bool
) -> dict[str, Any]:
    host, port, tls = broker_address(given["broker"])
    broker: dict[str, Any] = {"host": host, "port": port, "tls": tls, "authority": AUTHORITY}
    if token:
        broker |= {"username": given["device"], "password_file": PASSWORD}
    else:
        broker |= {"certificate": CERTIFICATE, "key": KEY}
    first = given["hardware"]
    return {
        "device": given["device"],
        "tenant": given["tenant"],
        "hardware": [first, *(name for name in hardware if name != first)],
        "state_dir": str(state_dir.absolute()),
        "image_root": "image-root.json",
        "director_root": "director-root.json",
        "sources": list(given["sources"]),
        "authority": AUTHORITY,
        "broker": broker,
    }


def _token(path: Path, group: str | None) -> str:
    """Return the token in a file; a new one of 32 random bytes where there is none."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
    except (OSError, UnicodeDecodeError) as e:
        raise AgentError(f"{path} cannot be read: {e}; move it away") from e
    write_secret(path, token.encode(), group)
    return token
