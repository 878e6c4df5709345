"""The server of a fleet: its parts started in order, and stopped in the other one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from edgec.errors import FleetError
from edgec.fleet.alerts import Sink, Topic, Watch, Webhook
from edgec.fleet.api import create_app
from edgec.fleet.dashboard import mount
from edgec.fleet.enrolment import BrokerAccess, Enrolment
from edgec.fleet.mqtt import MqttSettings, MqttSide
from edgec.fleet.server._alone import alone_on
from edgec.fleet.server._broker import Keeper, make_broker, moved
from edgec.fleet.server._http import Http
from edgec.fleet.server._leader import Leader
from edgec.fleet.server._options import FleetOptions, Ports, in_url, read_ports, write_ports
from edgec.fleet.server._places import own_link, shut_out, their_link, whereabouts
from edgec.fleet.server._upkeep import Upkeep, remove_leftovers
from edgec.fleet.service import FirstStart, Fleet
from edgec.protocol import LinkOptions, Topics
from edgec.protocol.brokers import FLEET, Broker
from edgec.protocol.certificates import CertificateAuthority

_log = logging.getLogger(__name__)
_AUTHORITY_DAYS = 20 * 365
_CONNECT_S = 30.0


class FleetServer:
    """A fleet with a broker, an API and a dashboard.

        with FleetServer(FleetOptions(data_dir=Path("fleet"))) as server:
            print(server.url, server.first and server.first.admin_token)

    Everything is kept before it is acknowledged: killed at any moment, the next start goes on.

    Attributes:
        options: That it runs with.
        fleet: Without transports; from `start` on, as all that follows.
        authority: Vouches for server, broker and devices.
        broker: That the server runs itself; None where somebody else does.
        side: The fleet's side of the broker.
        advice: What people should know of this start; empty where all is as it was.
    """

    fleet: Fleet
    authority: CertificateAuthority
    broker: Broker | None
    side: MqttSide
    _keeper: Keeper | None
    _access: BrokerAccess | None
    _leader: Leader | None

    def __init__(self, options: FleetOptions) -> None:
        """Describe the server; `start` starts it."""
        self.options = options
        self._names = options.all_names()
        self.advice: list[str] = []
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """Where API and dashboard are."""
        scheme = "https" if self.options.tls else "http"
        return f"{scheme}://{in_url(self._names[0])}:{self._http.port}"

    @property
    def broker_url(self) -> str:
        """Where devices connect to."""
        where = self._where
        url = where.broker if "certificate" in where.kinds else where.password_broker
        return str(url).replace("{host}", in_url(self._names[0]))

    @property
    def first(self) -> FirstStart | None:
        """What this start has made; None where nothing was missing."""
        return self.fleet.first

    def start(self) -> None:
        """Start all parts; return when devices and people can come.

        Raises:
            FleetError: Another server has the directory or the database, the address is taken, or there is no
                broker.
            LinkError: The broker does not start, or cannot be reached.
            OutputError: The directory cannot be written to.
            MissingExtraError: The extra ``fleet`` is not installed.
        """
        try:
            self._open()
            link = self._own_broker() if self.options.own_broker else their_link(self.options, self.authority)
            self._link = link
            self._serve(link)
        except BaseException:  # whatever it was, Ctrl-C as well: broker and threads must not stay
            self.close()
            raise

    def close(self) -> None:
        """Stop: requests in hand are answered, what was taken is kept, then all parts end."""
        self._stack.close()

    @property
    def alive(self) -> bool:
        """Whether requests are answered, and no other server has taken the database over."""
        return self._http.alive and self.lost is None

    @property
    def lost(self) -> str | None:
        """Why this server may go on no longer: another one has the database. None where it may."""
        return None if self._leader is None else self._leader.lost

    def renew_certificates(self) -> bool:
        """Renew the certificates of server, broker and fleet if they end soon; return whether one did.

        Raises:
            OutputError: One cannot be written.
            FleetError: One cannot be read.
        """
        before = self._certificates()
        if self.options.tls:
            self._http.renew(self.authority.server("http", self._names))
        own = self.authority.client(FLEET)
        if self._link.tls is not None and self.options.broker_cert is None:
            try:
                self._link.tls.load_cert_chain(str(own.certificate), str(own.key))
            except OSError as e:
                raise FleetError(f"{own.certificate} cannot be read: {e}", "data") from e
        if self.broker is not None:
            self.authority.server(hosts=self._names)
            if self._certificates() != before:
                self.broker.reload()
        return self._certificates() != before

    def problems(self) -> list[str]:
        """Return what does not work now, for people; nothing where all does."""
        found = [check() for check in self._checks().values()]
        return [problem for problem in found if problem is not None]

    def __enter__(self) -> FleetServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _certificates(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.authority.directory.glob("*.crt")}

    def _open(self) -> None:
        options, enter = self.options, self._stack.enter_context
        enter(alone_on(options.data_dir / ".lock", str(options.data_dir)))
        self._leader = None
        database = options.database
        if (path := options.sqlite) is not None:
            enter(alone_on(Path(f"{path}.lock"), str(path)))
            database = str(path)
        elif database is not None:
            self._leader = enter(closing(Leader(database)))
        self.fleet = enter(Fleet(options.data_dir, database=database, tenant=options.tenant))
        remove_leftovers(self.fleet)
        self.authority = CertificateAuthority(self.fleet.data_dir / "tls", authority_days=_AUTHORITY_DAYS)
        self._ports = read_ports(self.fleet.data_dir / "ports.json")
        self._http = self._listen()
        self._stack.callback(self._http.close)
        self.broker = self._keeper = self._access = None
        self._upkeep = Upkeep(self.fleet, also=self.renew_certificates)

    def _listen(self) -> Http:
        """Take the port that is asked for, or the one that was chosen before; another where that is taken."""
        options, known = self.options, self._ports.http
        each = options.connections_per_address
        if options.port or not known:
            return Http(options.host, options.port, each)
        try:
            return Http(options.host, known, each)
        except FleetError as e:
            http = Http(options.host, 0, each)
            _log.info("%s", e)
        # What devices wait for is told anew at each start, and with it where files are.
        self.advice.append(
            f"port {known}, chosen at an earlier start, is taken: API and dashboard are at {http.port} from "
            "now on. Log in there again, and start gateways with its URL; devices hear of it over the broker"
        )
        return http

    def _own_broker(self) -> LinkOptions:
        """Start a broker that lets in whom the books let in; return how the fleet reaches it."""
        self.broker = make_broker(self.options, self.authority, self._ports)
        link = own_link(self.broker)
        self._access = access = BrokerAccess(
            self.fleet, self.broker, shut_out=lambda device: shut_out(link(), device)
        )
        access.look()
        self._keeper = keeper = Keeper(self.broker)
        self._stack.callback(keeper.close)
        keeper.start()
        self.advice += moved(self.options, self._ports, self.broker)
        access.start()
        self._stack.callback(access.close)
        return link()

    def _serve(self, link: LinkOptions) -> None:
        self._where = whereabouts(self.options, self._http.port, self.broker)
        self._keep_ports()
        sources = tuple(s.replace("{host}", in_url(self._names[0])) for s in self._where.sources)
        self.side = MqttSide(
            self.fleet, link, settings=MqttSettings(sources=sources, files=self.options.files)
        )
        self._stack.callback(self.side.close)
        self.side.start()
        if self.broker is not None:
            self.side.wait_connected(_CONNECT_S)
        watch = self._watch = Watch(self.fleet, sinks=self._sinks())
        self._stack.callback(watch.close)
        watch.start()
        app = create_app(self.fleet, commands=self.side, checks=self._checks())
        app.state.counted = self.side.counters
        app.state.enrolment = Enrolment(
            self.fleet, self.authority, self._where, days=self.options.certificate_days
        )
        mount(app, self.fleet)
        certificate = self.authority.server("http", self._names) if self.options.tls else None
        self._http.start(app, certificate)
        # Stops before what is above: no request finds half a server.
        self._stack.callback(self._http.close)
        self._stack.callback(self._upkeep.close)
        self._upkeep.start()

    def _sinks(self) -> list[Sink]:
        """Return who is told of alerts."""
        sinks: list[Sink] = [Topic(topic=Topics(self.options.tenant).alerts(), publish=self.side.publish)]
        url, secret = self.options.webhook, self.options.webhook_secret
        if url is not None and secret is not None:
            sinks.append(Webhook(name="webhook", url=url, secret=secret))
        return sinks

    def _keep_ports(self) -> None:
        broker = self.broker
        ports = Ports(
            http=self._http.port,
            broker=broker.port if broker else self._ports.broker,
            token=broker.password_port if broker else self._ports.token,
        )
        if ports != self._ports:
            write_ports(self.fleet.data_dir / "ports.json", ports)

    def _checks(self) -> Mapping[str, Callable[[], str | None]]:
        keeper, side, watch, leader = self._keeper, self.side, self._watch, self._leader
        checks: dict[str, Callable[[], str | None]] = {
            "mqtt": lambda: "; ".join(side.problems()) or None,
            "alerts": lambda: "; ".join(watch.problems()) or None,
        }
        if leader is not None:
            checks["leader"] = leader.problem
        if keeper is not None:
            checks["broker"] = keeper.problem
        if self._access is not None:
            checks["access"] = self._access.problem
        checks["upkeep"] = self._upkeep.problem
        return checks
