"""What the commands that talk over a broker share: where it is, as whom, and its options."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgec.cli._trust import read_passphrase

if TYPE_CHECKING:
    from edgec.protocol import LinkOptions, Subscription

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_INBOUND = 100_000


@dataclass(frozen=True, kw_only=True)
class BrokerAccess:
    """A broker and an identity there, as options say it.

    Attributes:
        url: ``mqtts://broker.example:8883``.
        tenant: Whose topics are used.
        ca: Who may vouch for the broker; the system's authorities if None.
        certificate: Shown to the broker.
        key: Of the certificate.
        username: For brokers that ask for one.
        password_file: Its first line is the password, or a token.
    """

    url: str
    tenant: str
    ca: Path | None
    certificate: Path | None
    key: Path | None
    username: str | None
    password_file: Path | None

    def link_options(self, purpose: str, subscriptions: Sequence[Subscription]) -> LinkOptions:
        """Return how to connect for one command, which leaves no session behind with the broker.

        Raises:
            LinkError: The URL is wrong, or a file cannot be read.
        """
        from edgec.protocol import LinkOptions, broker_address, tls_context

        host, port, encrypted = broker_address(self.url)
        password = None if self.password_file is None else read_passphrase(self.password_file).decode()
        return LinkOptions(
            host=host,
            port=port,
            client_id=f"{purpose}-{uuid.uuid4().hex[:12]}",
            tls=tls_context(self.ca, self.certificate, self.key) if encrypted else None,
            username=self.username,
            password=password,
            subscriptions=tuple(subscriptions),
            session_expiry_s=0,
            inbound_messages=_INBOUND,
        )


def broker_options(required: bool) -> Callable[[F], F]:
    """Return the decorator that gives a command the options of a broker; `broker_access` reads them."""
    options = [
        click.option(
            "--broker",
            "broker_url",
            metavar="URL",
            required=required,
            help="The MQTT broker: mqtts://broker.example:8883.",
        ),
        click.option("--tenant", default="default", show_default=True, help="Whose topics are used."),
        click.option("--ca", type=_FILE, help="Who may vouch for the broker, PEM; else the system's."),
        click.option("--cert", "certificate", type=_FILE, help="Certificate to show to the broker, PEM."),
        click.option("--key", type=_FILE, help="Private key of the certificate, PEM."),
        click.option("--username", help="For brokers that ask for one."),
        click.option("--password-file", type=_FILE, help="Its first line is the password, or a token."),
    ]

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def broker_access(values: dict[str, Any]) -> BrokerAccess:
    """Return what the options of `broker_options` say; takes them out of `values`."""
    names = ("tenant", "ca", "certificate", "key", "username", "password_file")
    return BrokerAccess(url=values.pop("broker_url"), **{name: values.pop(name) for name in names})
