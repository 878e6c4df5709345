"""What a device asks for that comes with a claim, and what it is given."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgec.errors import FleetError, ProtocolError, TargetError
from edgec.fleet.service import Fleet
from edgec.fleet.store._credentials import Request, digest
from edgec.protocol.brokers import hash_password
from edgec.protocol.certificates import CertificateAuthority, end_of, read_request
from edgec.targets import target_names

_log = logging.getLogger(__name__)
# Base64url of 32 random bytes and more; NATS takes up to 72 bytes.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43,72}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Devices cannot have the name that the fleet itself has at the broker, nor one that servers have.
_RESERVED = ("fleet", "localhost")


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """What devices are told of the server.

    Attributes:
        broker: ``mqtts://{host}:8883``, for certificates; ``{host}`` is the name that a device used.
        password_broker: Of those with tokens; None where there are none.
        sources: Base URLs of the repository; ``{host}`` as above.
        names: That the server is known under: the only ones that take the place of ``{host}``.
        kinds: Of identities that the broker takes: ``certificate``, ``token``.
        brokers: Names of the brokers that keep hashes of tokens: ``mosquitto``, ``nats``.
        broker_authority: Who else vouches for the broker, PEM; empty where the fleet's own authority does.
    """

    broker: str
    password_broker: str | None = None
    sources: Sequence[str] = ()
    names: Sequence[str] = ("127.0.0.1",)
    kinds: Sequence[str] = ("certificate",)
    brokers: Sequence[str] = ()
    broker_authority: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a device sends.

    Attributes:
        claim: That it was given.
        hardware: Classes of hardware that it is, the best first.
        device: The id that it wants; None for any.
        request: For its certificate, PEM (CSR); the private key stays on the device.
        token: Or its token, made by itself of 32 random bytes or more, base64url.
    """

    claim: str
    hardware: Sequence[str]
    device: str | None = None
    request: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a device is given: all that it needs besides its own secret.

    Attributes:
        device: Its id.
        tenant: Whose topics it uses.
        hardware: Class of hardware that the fleet takes it for.
        kind: ``certificate`` or ``token``.
        certificate: PEM; None with a token.
        authority: Who vouches for the server and the broker, PEM.
        broker: ``mqtts://host:port``.
        image_root: First root of the image repository.
        director_root: The same of the director.
        sources: Base URLs of the repository.
        labels: That it was given.
    """

    device: str
    tenant: str
    hardware: str
    kind: str
    certificate: str | None
    authority: str
    broker: str
    image_root: str
    director_root: str
    sources: tuple[str, ...]
    labels: dict[str, str]


class Enrolment:
    """Lets devices in."""

    def __init__(
        self, fleet: Fleet, authority: CertificateAuthority, where: Whereabouts, *, days: int = 3650
    ) -> None:
        """Let devices into a fleet.

        Args:
            fleet: With the claims.
            authority: Signs certificates of devices, and vouches for server and broker.
            where: What devices are told.
            days: How long their certificates hold.
        """
        self._fleet, self._authority, self._where, self._days = fleet, authority, where, days
        # What is installed later counts from the next start on; plugins are not read for each device.
        self._targets = _targets()

    @property
    def authority(self) -> str:
        """The certificate that devices are to trust, PEM."""
        return self._authority.root.read_text("ascii")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of that certificate, in hex."""
        return self._authority.fingerprint

    def enrol(self, asked: Asked, *, host: str | None = None) -> Enrolled:
        """Take a device in; the same question again gets the same answer.

        Args:
            asked: By the device.
            host: Name under which it has reached the server, as it says.

        Raises:
            FleetError: What it asks for cannot be (``reason`` ``invalid``), or as `Claims.redeem` has it.
        """
        kind, fingerprint = self._proof(asked)
        device = asked.device or f"device-{fingerprint[:12]}"
        problems = self._problems(asked, device, kind)
        if problems:
            raise FleetError("; ".join(problems), "invalid")
        request = Request(
            device=device,
            hardware=tuple(asked.hardware),
            kind=kind,
            fingerprint=fingerprint,
            targets=self._targets,
        )
        given = self._fleet.claims.redeem(
            asked.claim, request, lambda name: self._issue(name, asked), now=self._fleet.clock()
        )
        # Before the device hears of it, the broker is to know it.
        self._fleet.wake()
        record = self._fleet.store.devices.get(device)
        named = host if host is not None and host in self._where.names else self._where.names[0]
        broker = self._where.broker if kind == "certificate" else self._where.password_broker
        assert broker is not None
        return Enrolled(
            device=device,
            tenant=self._fleet.tenant,
            hardware=record.hardware,
            kind=kind,
            certificate=given.document if kind == "certificate" else None,
            authority=self.authority + self._where.broker_authority,
            broker=broker.replace("{host}", _in_url(named)),
            image_root=self._root("image"),
            director_root=self._root("director"),
            sources=tuple(source.replace("{host}", _in_url(named)) for source in self._where.sources),
            labels=dict(record.labels),
        )

    def _proof(self, asked: Asked) -> tuple[str, str]:
        """Return the kind of identity that is asked for, and the fingerprint of its secret."""
        if (asked.request is None) == (asked.token is None):
            raise FleetError("expected a request for a certificate, or a token", "invalid")
        if asked.request is None:
            token = asked.token or ""
            if not _TOKEN.fullmatch(token):
                raise FleetError("expected a token of 43 to 72 letters, digits, '_' and '-'", "invalid")
            return "token", digest(token)
        try:
            return "certificate", read_request(asked.request.encode())[1]
        except ProtocolError as e:
            raise FleetError(str(e), "invalid") from e

    def _problems(self, asked: Asked, device: str, kind: str) -> list[str]:
        found = []
        if not _ID.fullmatch(device) or self._is_a_server(device):
            found.append(f"{device!r:.80} cannot be the id of a device")
        bad = [name for name in asked.hardware if not _ID.fullmatch(name)]
        if bad or not 1 <= len(asked.hardware) <= 16:
            found.append(f"expected 1 to 16 names of hardware, got {list(asked.hardware)!r:.200}")
        if kind not in self._where.kinds:
            found.append(f"this fleet's broker takes {' and '.join(self._where.kinds)}s, not {kind}s")
        return found

    def _is_a_server(self, device: str) -> bool:
        """Return whether an id would name the fleet, a server of it, or any machine by its address."""
        try:
            ipaddress.ip_address(device)
        except ValueError:
            taken = {*_RESERVED, *self._where.names, urlsplit(self._where.broker).hostname or ""}
            return device.lower().rstrip(".") in {name.lower() for name in taken}
        return True

    def _issue(self, device: str, asked: Asked) -> tuple[str, str, float | None]:
        if asked.request is not None:
            serial, document = self._authority.sign(asked.request.encode(), device, days=self._days)
            return serial, document, end_of(document)
        kept = {name: hash_password(asked.token or "", name) for name in self._where.brokers}
        return "", json.dumps(kept), None

    def _root(self, kind: str) -> str:
        repository = self._fleet.image if kind == "image" else self._fleet.director
        return repository.root_files()[1].decode()


def _targets() -> list[str]:
    """Return the names of all targets; none where an installed package offers what cannot be read."""
    try:
        return target_names()
    except TargetError as e:
        _log.warning("devices come in without a look at their hardware: %s", e)
        return []


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
