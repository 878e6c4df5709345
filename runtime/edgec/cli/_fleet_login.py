"""Which fleet the commands of ``edgec fleet`` speak to; ``edgec fleet login`` and ``logout``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from edgec.cli._home import config_home
from edgec.errors import FleetError

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient

P = ParamSpec("P")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MOST_SETTINGS = 64 * 1024
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@dataclass(frozen=True, kw_only=True)
class Login:
    """What ``edgec fleet login`` keeps, readable by its user only.

    Attributes:
        url: Of the fleet.
        token: What may be done depends on its role.
        ca: File with the certificate of who vouches for the server; None for the system's.
    """

    url: str
    token: str
    ca: str | None


def with_fleet(function: Callable[Concatenate[FleetClient, P], None]) -> Callable[P, None]:
    """Give a command a client of the fleet that flags, environment or login name, and the flags for that."""

    @click.option("--server", metavar="URL", envvar="EDGEC_FLEET_URL", help="The fleet, instead of login's.")
    @click.option("--ca", type=_FILE, envvar="EDGEC_FLEET_CA", help="Who vouches for it, PEM; with --server.")
    @click.option(
        "--token-file",
        type=_FILE,
        envvar="EDGEC_FLEET_TOKEN_FILE",
        help="Its first line is the token; or EDGEC_FLEET_TOKEN.",
    )
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        server, ca, token_file = (kwargs.pop(name) for name in ("server", "ca", "token_file"))
        with _client(server, ca, token_file) as client:  # type: ignore[arg-type] # click's, checked by it
            function(client, *args, **kwargs)

    # Its name and help, and the options that are on it already.
    return update_wrapper(command, function)


def _client(server: str | None, ca: Path | None, token_file: Path | None) -> FleetClient:
    from edgec.fleet.client import FleetClient

    kept = read_login()
    url = server or (kept.url if kept else None)
    if url is None:
        raise FleetError("no fleet is known: run  edgec fleet login URL, or give --server", "invalid")
    # A token is for its own server, and is told to no other.
    mine = kept if kept is not None and kept.url == url.rstrip("/") else None
    token = os.environ.get("EDGEC_FLEET_TOKEN") or (_first_line(token_file) if token_file else None)
    token = token or (mine.token if mine else None)
    if token is None:
        raise FleetError(f"no token for {url} is known: run  edgec fleet login {url}", "invalid")
    authority = ca or (Path(mine.ca) if mine and mine.ca else None)
    return FleetClient(url, token, ca=authority)


def _asked_token() -> str:
    """Ask for the token, hidden, or read it from what is piped in."""
    if sys.stdin.isatty():
        return str(click.prompt("Token", hide_input=True, err=True))
    return sys.stdin.readline(4096).strip()


@click.command()
@click.argument("url")
@click.option("--ca", type=_FILE, help="Who vouches for the server, PEM, as edgec fleet up has printed it.")
@click.option("--token-file", type=_FILE, help="Its first line is the token; asked for otherwise.")
@json_option
def login(url: str, ca: Path | None, token_file: Path | None, as_json: bool) -> None:
    """Remember a fleet and a token for it; for this user only.

    \b
    edgec fleet login https://fleet.example:8443 --ca fleet/tls/ca.crt
    edgec fleet login https://fleet.example:8443 --token-file token.txt
    """
    from edgec.fleet.client import FleetClient

    if token_file is not None:
        token = _first_line(token_file)
    else:
        token = os.environ.get("EDGEC_FLEET_TOKEN") or _asked_token()
    with FleetClient(url, token.strip(), ca=ca, tries=2) as client:
        known = client.own_token()
        kept = Login(url=client.url, token=token.strip(), ca=None)
    path = _write(kept, ca)
    facts = {"url": kept.url, "name": known.name, "role": known.role, "settings": str(path)}
    click.echo(
        json.dumps(facts, indent=2)
        if as_json
        else f"{known.name} ({known.role}) at {kept.url}; kept in {path}"
    )


@click.command()
@json_option
def logout(as_json: bool) -> None:
    """Forget the fleet and the token. The token itself stays in force: edgec fleet tokens --revoke.

    \b
    edgec fleet logout
    """
    known = read_login() is not None
    for path in (_settings(), _authority()):
        path.unlink(missing_ok=True)
    click.echo(json.dumps({"forgotten": known}) if as_json else "forgotten" if known else "nothing was kept")


def read_login() -> Login | None:
    """Return what login has kept; None where there is nothing.

    Raises:
        FleetError: It is damaged.
    """
    path = _settings()
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.read(_MOST_SETTINGS))
        login = Login(url=found["url"], token=found["token"], ca=found["ca"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise FleetError(f"{path} cannot be read: {e}; run edgec fleet login again", "invalid") from e
    if not isinstance(login.url, str) or not isinstance(login.token, str):
        raise FleetError(f"{path} is damaged; run edgec fleet login again", "invalid")
    return login


def _write(kept: Login, ca: Path | None) -> Path:
    from edgec.artifact import atomic_write

    path = _settings()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    values = asdict(kept)
    if ca is not None:
        # The file may be on a stick, or move: what it says is kept.
        with atomic_write(_authority()) as file:
            file.write(ca.read_bytes())
        values["ca"] = str(_authority())
    else:
        _authority().unlink(missing_ok=True)
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(json.dumps(values, indent=2).encode())
    return path


def _settings() -> Path:
    return config_home() / "fleet.json"


def _authority() -> Path:
    return config_home() / "fleet-ca.crt"


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(4096).strip()


def show(as_json: bool, value: Any, lines: Callable[[], list[str]]) -> None:
    """Print views as JSON, or lines for people."""
    if as_json:
        from pydantic import TypeAdapter

        data: bytes = TypeAdapter(Any).dump_json(value, indent=2)
        click.echo(data.decode())
    else:
        click.echo("\n".join(lines()))
