"""How a fleet's server listens, and what it is called."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from edgec.artifact import atomic_write
from edgec.errors import FleetError
from edgec.fleet.server._listener import PER_ADDRESS

KINDS = ("certificate", "token")
BROKERS = ("auto", "mosquitto", "nats")
_ANY = ("0.0.0.0", "::")
_HERE = ("localhost", "127.0.0.1")
_SQLITE = "sqlite:///"
_DATABASE = re.compile(rf"{_SQLITE}.|postgresql(\+\w+)?://")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How a fleet's server runs.

    Attributes:
        data_dir: All that it keeps; made on first use.
        database: ``postgresql://user@host/name``, or ``sqlite:///path`` of an SQLite file, absolute with one
            more stroke; an SQLite file in `data_dir` if None.
        tenant: Whose topics devices use.
        host: Address that API, dashboard and the server's own broker listen at.
        port: Of API and dashboard; 0 for any that is free, the same at the next start unless it is taken.
        names: Names and addresses that the server is reached under from elsewhere, the best first.
        tls: Whether API and dashboard are served over HTTPS; without it, a proxy in front is to do that.
        broker: ``auto`` for Mosquitto where it is installed, else nats-server; ``mosquitto``, ``nats``; or
            the URL of one that somebody else runs, ``mqtts://broker.example:8883``.
        broker_port: Of the server's own broker, for devices with certificates; 0 as above.
        token_port: Of the server's own broker, for devices with tokens; 0 as above. nats-server has one port.
        identity: Of devices, where nats-server is the broker, which takes one kind only: ``certificate``
            or ``token``. Mosquitto takes both.
        broker_ca: Who vouches for the broker of a URL, PEM; the fleet's own authority if None.
        broker_cert: What the fleet shows to it, PEM; a certificate of its own authority if None.
        broker_key: Of `broker_cert`.
        broker_user: Name to show to it, where it asks for one.
        broker_password: That goes with the name.
        certificate_days: How long certificates of devices hold.
        connections_per_address: How many connections an address may have to API and dashboard at once, this
            machine excepted; 0 for any number.
        webhook: URL that is told of alerts, by POST.
        webhook_secret: That what it is told is signed with.
    """

    data_dir: Path
    database: str | None = None
    tenant: str = "default"
    host: str = "127.0.0.1"
    port: int = 8443
    names: tuple[str, ...] = ()
    tls: bool = True
    broker: str = "auto"
    broker_port: int = 8883
    token_port: int = 8884
    identity: str = "certificate"
    broker_ca: Path | None = None
    broker_cert: Path | None = None
    broker_key: Path | None = None
    broker_user: str | None = None
    broker_password: str | None = None
    files: bool = True
    certificate_days: int = 3650
    connections_per_address: int = PER_ADDRESS
    webhook: str | None = None
    webhook_secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, all of it at once.

        Raises:
            FleetError: With every problem (``reason`` ``invalid``).
        """
        problems = [
            f"expected a name or an address, such as fleet.example, got {name!r:.80}"
            for name in self.names
            if not _is_host(name)
        ]
        if self.database is not None and not _DATABASE.match(self.database):
            scheme, found, _ = self.database.partition("://")
            # A URL may have a password.
            got = f"{scheme}://..." if found else repr(self.database)
            problems.append(f"expected a database sqlite:///path or postgresql://user@host/name, got {got}")
        if "://" not in self.broker and self.broker not in BROKERS:
            problems.append(f"expected a broker of {', '.join(BROKERS)} or mqtts://..., got {self.broker!r}")
        if self.identity not in KINDS:
            problems.append(f"expected an identity of {' or '.join(KINDS)}, got {self.identity!r}")
        if (self.broker_cert is None) != (self.broker_key is None):
            problems.append("the broker's certificate and key go together")
        if (self.broker_user is None) != (self.broker_password is None):
            problems.append("the broker's user and password go together")
        if (self.webhook is None) != (self.webhook_secret is None):
            problems.append("the webhook and its secret go together: give both")
        elif self.webhook is not None and self.webhook_secret is not None:
            from edgec.fleet.alerts import Webhook

            try:
                Webhook(name="webhook", url=self.webhook, secret=self.webhook_secret)
            except ValueError as e:
                problems.append(str(e))
        if not 1 <= self.certificate_days <= 20 * 366:
            problems.append(f"expected certificates for 1 to 7320 days, got {self.certificate_days}")
        if self.connections_per_address < 0:
            problems.append(
                f"expected connections of an address, or 0 for any number, got {self.connections_per_address}"
            )
        if problems:
            raise FleetError("; ".join(problems), "invalid")

    @property
    def own_broker(self) -> bool:
        """Whether the server runs a broker itself."""
        return "://" not in self.broker

    @property
    def sqlite(self) -> Path | None:
        """The SQLite file that `database` names; None where it names none."""
        named = self.database is not None and self.database.startswith(_SQLITE)
        return Path(str(self.database)[len(_SQLITE) :]) if named else None

    @property
    def in_clear(self) -> bool:
        """Whether the network can read what is said to API and dashboard, tokens too."""
        if self.tls or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    def all_names(self) -> tuple[str, ...]:
        """Return all names and addresses of the server, the best first: for its certificate."""
        found = list(self.names)
        if self.host not in _ANY:
            found.append(self.host)
        else:
            found += [socket.gethostname(), *_own_address()]
        return tuple(dict.fromkeys([*found, *_HERE]))


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports that were chosen at the first start: devices know them."""

    http: int = 0
    broker: int = 0
    token: int = 0


def read_ports(path: Path) -> Ports:
    """Return the ports that were chosen before; zeros where none were."""
    try:
        values = json.loads(path.read_bytes())
        return Ports(**{name: int(values[name]) for name in ("http", "broker", "token")})
    except FileNotFoundError:
        return Ports()
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise FleetError(
            f"{path} is damaged ({e}); remove it, and tell devices of other ports", "data"
        ) from e


def write_ports(path: Path, ports: Ports) -> None:
    """Keep the ports.

    Raises:
        OutputError: They cannot be written.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(vars(ports)).encode())


def in_url(host: str) -> str:
    """Return a name or an address as URLs have it."""
    return f"[{host}]" if ":" in host else host


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return len(name) <= 253 and _HOST.fullmatch(name) is not None
    return True


def _own_address() -> list[str]:
    """Return the address that this machine has in its network, where it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
