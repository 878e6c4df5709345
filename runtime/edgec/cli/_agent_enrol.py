"""``edgec agent enrol``: this device joins a fleet."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgec.cli._agent_settings import hardware_option, joining_options, next_line
from edgec.errors import AgentError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("url")
@click.option("--claim", envvar="EDGEC_CLAIM", help="That lets it in (edgec fleet claim); or in EDGEC_CLAIM.")
@click.option("--claim-file", type=_FILE, help="Its first line is the claim.")
@hardware_option
@click.option("--device", metavar="ID", help="The id that it wants; else the server makes one.")
@click.option("--ca", type=_FILE, help="Who may vouch for the server, PEM; else the system's.")
@click.option("--fingerprint", metavar="SHA256", help="Instead: of the authority's certificate, in hex.")
@click.option("--token", is_flag=True, help="A token of its own for the broker, instead of a certificate.")
@joining_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    url: str,
    claim: str | None,
    claim_file: Path | None,
    hardware: tuple[str, ...],
    device: str | None,
    ca: Path | None,
    fingerprint: str | None,
    token: bool,
    state_dir: Path,
    directory: Path,
    secrets_group: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Join the fleet whose server is at URL: get an identity, trusted roots and the broker's address.

    The private key is made here and never leaves the device. Stopped at any moment, run it again.

    \b
    edgec agent enrol https://fleet.example:8443 --claim CLAIM --fingerprint SHA256 --hardware rpi5
    edgec agent run
    """
    from edgec.device_agent._enrolment import KEY
    from edgec.device_agent._joining import Trusted, join

    if claim_file is not None:
        claim = _first_line(claim_file)
    if not claim:
        raise click.UsageError("give a --claim, or a --claim-file")
    made = join(
        url,
        claim,
        hardware=hardware,
        directory=directory,
        state_dir=state_dir,
        trusted=Trusted(
            authority=None if ca is None else ca.read_bytes()[: 1 << 20], fingerprint=fingerprint
        ),
        device=device,
        token=token,
        group=secrets_group,
        replace=force,
    )
    config = made.config
    broker = config.broker and f"{config.broker.host}:{config.broker.port}"
    facts = {"device": config.device, "config": str(made.path), "tenant": config.tenant, "broker": broker}
    lines = [f"enrolled  {config.device}", f"settings  {made.path}", f"broker    {broker}"]
    if config.hardware[0] not in hardware:
        lines.append(
            f"note      the fleet takes it for {config.hardware[0]}, as it did before; to change that, "
            f"remove {made.path.parent / KEY}, and enrol it with a claim of  "
            f"edgec fleet claim --device {config.device}"
        )
    lines.append(next_line(made.path))
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.readline(4096).strip()
    except (OSError, UnicodeDecodeError) as e:
        raise AgentError(f"{path} cannot be read: {e}") from e
