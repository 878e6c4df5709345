"""Where things are: how the fleet reaches its broker, and what devices are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from edgec.errors import EdgecError
from edgec.fleet.enrolment import Whereabouts
from edgec.fleet.server._broker import fleet_password
from edgec.fleet.server._options import KINDS, FleetOptions
from edgec.protocol import LinkOptions, MqttLink, broker_address, tls_context
from edgec.protocol.brokers import FLEET, Broker, Nats
from edgec.protocol.certificates import CertificateAuthority

_log = logging.getLogger(__name__)
_SHUT_OUT_S = 5.0


def own_link(broker: Broker) -> Callable[[], LinkOptions]:
    """Return what gives, once the broker has its ports, how the fleet itself reaches it."""

    def link() -> LinkOptions:
        if isinstance(broker, Nats) and broker.password_port:
            return LinkOptions(
                host=broker.host,
                port=broker.password_port,
                client_id=FLEET,
                username=FLEET,
                password=fleet_password(broker.directory),
                tls=broker.authority.server_trust(),
            )
        tls = broker.authority.client(FLEET).client_context()
        return LinkOptions(host=broker.host, port=broker.port, client_id=FLEET, tls=tls)

    return link


def their_link(options: FleetOptions, authority: CertificateAuthority) -> LinkOptions:
    """Return how the fleet reaches a broker that somebody else runs.

    Raises:
        LinkError: The URL is none, or a file cannot be read.
    """
    host, port, tls = broker_address(options.broker)
    own = authority.client(FLEET)
    context = tls_context(
        options.broker_ca or own.authority,
        options.broker_cert or own.certificate,
        options.broker_key or own.key,
    )
    return LinkOptions(
        host=host,
        port=port,
        client_id=FLEET,
        tls=context if tls else None,
        username=options.broker_user,
        password=options.broker_password,
    )


def whereabouts(options: FleetOptions, http_port: int, broker: Broker | None) -> Whereabouts:
    """Return what devices are told that enrol.

    Args:
        options: Of the server.
        http_port: That it listens at.
        broker: That it runs; None where devices go to the one of the options.
    """
    scheme = "https" if options.tls else "http"
    sources = (f"{scheme}://{{host}}:{http_port}/repo",)
    names = options.all_names()
    if broker is None:
        theirs = "" if options.broker_ca is None else options.broker_ca.read_text("ascii")
        return Whereabouts(broker=options.broker, sources=sources, names=names, broker_authority=theirs)
    certificates = f"mqtts://{{host}}:{broker.port}"
    if not broker.password_port:
        return Whereabouts(broker=certificates, sources=sources, names=names)
    return Whereabouts(
        broker=certificates,
        password_broker=f"mqtts://{{host}}:{broker.password_port}",
        sources=sources,
        names=names,
        kinds=("token",) if isinstance(broker, Nats) else KINDS,
        brokers=(broker.name,),
    )


def shut_out(link: LinkOptions, device: str) -> None:
    """End the connection that a device has, which the broker lets in no more: who has its client id takes it.

    Where that fails the device stays connected, and may neither say nor hear anything.
    """
    try:
        with MqttLink(replace(link, client_id=device, subscriptions=(), session_expiry_s=0)) as taking:
            taking.wait_connected(_SHUT_OUT_S)
    except (EdgecError, OSError) as e:
        _log.warning("the connection of %s cannot be ended: %s", device, e)
