"""``edgec fleet``: run a fleet, or command one over its API.

To add a subcommand: write it in a module ``cli/_fleet_<name>.py``, and name it in ``SUBCOMMANDS``.
"""

from __future__ import annotations

import click

from edgec.cli._lazy import LazyGroup

# By name: module:attribute of the click command, and its line of help.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "alerts": ("edgec.cli._fleet_operations:alerts", "List what a person should know now."),
    "audit": (
        "edgec.cli._fleet_operations:audit",
        "List who has changed what; check that nobody changed the log.",
    ),
    "backup": ("edgec.cli._fleet_backup:command", "Copy a fleet's directory while its server runs."),
    "claim": ("edgec.cli._fleet_operations:claim", "Make a claim, with which devices come into the fleet."),
    "claims": ("edgec.cli._fleet_operations:claims", "List claims; take one back."),
    "command": (
        "edgec.cli._fleet_devices:command",
        "Send a device a signed command, and wait for its answer.",
    ),
    "demo": ("edgec.cli._fleet_demo:command", "A whole fleet on this machine, to look at."),
    "device": (
        "edgec.cli._fleet_devices:device",
        "Show one device: what it has, and what is the matter with it.",
    ),
    "devices": ("edgec.cli._fleet_devices:devices", "List devices by query."),
    "drift": ("edgec.cli._fleet_operations:drift", "Show how far inputs and outputs have moved."),
    "groups": (
        "edgec.cli._fleet_devices:groups",
        "List the queries that have names; name one, or forget one.",
    ),
    "incidents": ("edgec.cli._fleet_operations:incidents", "List what a person must know; close one."),
    "label": ("edgec.cli._fleet_devices:label", "Give a device labels."),
    "login": ("edgec.cli._fleet_login:login", "Remember a fleet and a token for it."),
    "logout": ("edgec.cli._fleet_login:logout", "Forget them."),
    "quarantine": (
        "edgec.cli._fleet_releases:quarantine",
        "List what may not be installed; add to it, or release it.",
    ),
    "releases": ("edgec.cli._fleet_releases:releases", "List releases, or the artifacts of one."),
    "revoke": ("edgec.cli._fleet_devices:revoke", "Put a device out of the fleet."),
    "rollout": (
        "edgec.cli._fleet_rollouts:rollout",
        "Roll a release out in stages; pause, resume, abort, undo, retry it.",
    ),
    "settle": (
        "edgec.cli._fleet_devices:settle",
        "Say which of several machines with one identity is the device.",
    ),
    "simulate": ("edgec.cli._fleet_simulate:command", "Put simulated devices on a fleet, for load."),
    "status": ("edgec.cli._fleet_operations:status", "Show the fleet at a glance."),
    "telemetry": (
        "edgec.cli._fleet_operations:telemetry",
        "Show what all devices did with a model, by version.",
    ),
    "tokens": (
        "edgec.cli._fleet_operations:tokens",
        "List tokens of people and programs; make one, or take one back.",
    ),
    "up": ("edgec.cli._fleet_up:command", "Run the server of a fleet: broker, API and dashboard."),
    "upload": ("edgec.cli._fleet_releases:upload", "Upload artifacts."),
    "why": ("edgec.cli._fleet_devices:why", "Say what keeps a device from the newest version of a model."),
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
