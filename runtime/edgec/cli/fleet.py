"""``edgec fleet``: run a fleet, or command one over its API.

To add a subcommand: write it in a module ``cli/_fleet_<name>.py``, and name it in ``SUBCOMMANDS``.
"""

from __future__ import annotations

import click

from edgec.cli._lazy import LazyGroup

# By name: module:attribute of the click command, and its line of help.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("edgec.cli._fleet_demo:command", "A whole fleet on this machine, to look at."),
    "simulate": ("edgec.cli._fleet_simulate:command", "Put simulated devices on a fleet, for load."),
    "up": ("edgec.cli._fleet_up:command", "Run the server of a fleet: broker, API and dashboard."),
}


@click.group(cls=LazyGroup, table=SUBCOMMANDS)
def command() -> None:
    """Releases, rollouts, devices: what runs where, and how it does.

    Commands that answer take --json.

    \b
    edgec fleet up --data-dir fleet
    edgec fleet login https://fleet.example:8443 --ca fleet/tls/ca.crt
    edgec fleet upload build/kws-cpu-x86_64.edgec
    edgec fleet rollout create kws 2 --start
    edgec fleet rollout status ROLLOUT --follow
    edgec fleet why cam-1
    """
