"""``edgec fleet up``: the server of a fleet."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._signals import Signals
from edgec.cli._text import columns, printable
from edgec.errors import FleetError

if TYPE_CHECKING:
    from edgec.fleet.server import FleetServer

_log = logging.getLogger(__name__)
_LOOK_S = 2.0
# Of that, between two looks at what does not work.
_LOOKS = 5
_LEVELS = ("debug", "info", "warning", "error")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PORT = click.IntRange(0, 65535)


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("edgec-fleet"),
    show_default=True,
    envvar="EDGEC_FLEET_DATA_DIR",
    help="Directory for all that it keeps; made on first use.",
)
@click.option(
    "--database",
    metavar="URL",
    envvar="EDGEC_FLEET_DATABASE",
    help="postgresql://user@host/name, or sqlite:///path, instead of fleet.db in the data directory; or in "
    "EDGEC_FLEET_DATABASE.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for all.")
@click.option("--port", type=_PORT, default=8443, show_default=True, help="Of API and dashboard; 0 for any.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="Name or address that it is reached under from elsewhere; several times, the best first.",
)
@click.option("--no-tls", is_flag=True, help="API and dashboard over HTTP, for a proxy in front to encrypt.")
@click.option(
    "--broker",
    default="auto",
    show_default=True,
    metavar="auto|mosquitto|nats|URL",
    help="Which broker to run: Mosquitto where it is installed, else nats-server; or mqtts://... of another.",
)
@click.option("--broker-port", type=_PORT, default=8883, show_default=True, help="Of the broker; 0 for any.")
@click.option(
    "--token-port",
    type=_PORT,
    default=8884,
    show_default=True,
    help="Of Mosquitto for devices with tokens; 0 for any.",
)
@click.option(
    "--identity",
    type=click.Choice(["certificate", "token"]),
    default="certificate",
    show_default=True,
    help="Of devices, with nats-server, which takes one kind only.",
)
@click.option(
    "--broker-ca", type=_FILE, help="With a URL: who vouches for that broker, PEM; else this fleet."
)
@click.option("--broker-cert", type=_FILE, help="With a URL: certificate to show to it, PEM.")
@click.option("--broker-key", type=_FILE, help="The private key of --broker-cert.")
@click.option("--broker-user", help="With a URL: name to show to it; with --broker-password-file.")
@click.option("--broker-password-file", type=_FILE, help="Its first line is the password.")
@click.option("--tenant", default="default", show_default=True, help="Whose topics devices use.")
@click.option(
    "--files/--no-files",
    default=True,
    help="Serve files over the broker, too, to devices that reach nothing else; by default so.",
)
@click.option(
    "--certificate-days",
    type=click.IntRange(1, 7320),
    default=3650,
    show_default=True,
    help="How long certificates of devices hold.",
)
@click.option(
    "--connections-per-address",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="To API and dashboard at once, this machine excepted; 0 for any number.",
)
@click.option("--webhook", help="URL that is told of alerts by POST, signed; with --webhook-secret-file.")
@click.option("--webhook-secret-file", type=_FILE, help="Its first line is the secret of --webhook.")
@click.option("--log-level", type=click.Choice(_LEVELS), default="warning", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it is ready, not text.")
def command(
    no_tls: bool,
    broker_password_file: Path | None,
    webhook_secret_file: Path | None,
    log_level: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Run the server of a fleet in the foreground: broker, API and dashboard, until SIGTERM or SIGINT.

    The first start makes keys, certificates and a token of an admin; the token is shown until it is used for
    the first time. Everything is in one directory, whose copy is the backup.

    \b
    edgec fleet up
    edgec fleet up --data-dir /srv/fleet --host 0.0.0.0 --name fleet.example
    edgec fleet up --database postgresql://edgec@db/fleet --broker mqtts://broker.example
    """
    from edgec.fleet.server import FleetOptions, FleetServer

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = FleetOptions(
        tls=not no_tls,
        broker_password=_password(broker_password_file),
        webhook_secret=_password(webhook_secret_file),
        **values,
    )
    if options.in_clear:
        click.echo(
            f"warning: API and dashboard at {printable(options.host)} are not encrypted: who is on the way "
            "reads tokens; leave --no-tls out, or --host, with the proxy that encrypts on this machine",
            err=True,
        )
    with Signals() as signals, FleetServer(options) as server:
        facts = _facts(server)
        click.echo(json.dumps(facts) if as_json else "\n".join(_told(facts)))
        sys.stdout.flush()
        troubles = _Troubles(server)
        while server.alive and not signals.wait(_LOOK_S):
            troubles.look()
        lost, died = server.lost, not server.alive
    if lost is not None:
        raise FleetError(lost, "conflict")
    if died:
        raise FleetError("the API has died; the log says why", "address")


class _Troubles:
    """Tells the log of what begins not to work, and of what works again, as ``/readyz`` has it."""

    def __init__(self, server: FleetServer) -> None:
        self._server = server
        self._told: set[str] = set()
        self._looks = 0

    def look(self) -> None:
        """Look whether it has changed; now and then only, and not while the server begins."""
        self._looks += 1
        if self._looks % _LOOKS == 0:
            # Without figures: a time that runs would be news each time.
            found = {re.sub(r"\d+", "", problem): problem for problem in self._server.problems()}
            for what in sorted(found.keys() - self._told):
                _log.warning("%s", printable(found[what]))
            if self._told and not found:
                _log.warning("all works again")
            self._told = set(found)


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open(encoding="utf-8") as file:
        return file.readline(4096).rstrip("\r\n")


def _facts(server: FleetServer) -> dict[str, Any]:
    first = server.first
    return {
        "url": server.url,
        "broker": server.broker_url,
        "broker_runs": None if server.broker is None else server.broker.name,
        "data_dir": str(server.fleet.data_dir),
        "ca": str(server.authority.root),
        "fingerprint": server.authority.fingerprint,
        "admin_token": first and first.admin_token,
        "made": list(first.made) if first else [],
        "advice": [*(first.advice if first else ()), *server.advice],
    }


def _told(facts: dict[str, Any]) -> list[str]:
    token = facts["admin_token"]
    enrol = f"edgec agent enrol {facts['url']} --claim CLAIM --fingerprint {facts['fingerprint']}"
    rows = [
        *(["made", what] for what in facts["made"]),
        ["dashboard", f"{facts['url']}/"],
        *([["token", f"{token}  (admin; another one at each start, until one is used)"]] if token else []),
        ["broker", f"{facts['broker']}  ({facts['broker_runs'] or 'of somebody else'})"],
        ["authority", f"{facts['ca']}  (browsers and clients are to trust it)"],
        ["command", f"edgec fleet login {facts['url']} --ca {facts['ca']}"],
        ["devices", "edgec fleet claim  makes a CLAIM; on the device:"],
        ["", f"{enrol} --hardware TARGET"],
        *(["advice", what] for what in facts["advice"]),
    ]
    return columns(rows)
