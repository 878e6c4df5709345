"""``edgec fleet devices``, ``device``, ``groups``, ``why``, ``command`` and what changes devices."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._fleet_login import json_option, show, with_fleet
from edgec.cli._fleet_text import behaviour_row, device_lines, device_row, table

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient

_HEAD = ["device", "state", "heard of", "hardware", "models", "labels"]


@click.command()
@click.argument("query", default="")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Most devices.")
@json_option
@with_fleet
def devices(client: FleetClient, query: str, limit: int, as_json: bool) -> None:
    """List devices that QUERY names; all without one.

    Conditions that all hold: key, !key, key=a|b, key!=a; hardware and id are keys, too.

    \b
    edgec fleet devices
    edgec fleet devices 'site=lab|hall, ring!=prod, hardware=rpi5' --json
    """
    found = list(islice(client.devices(query), limit))
    show(as_json, found, lambda: table(_HEAD, map(device_row, found), "no device"))


@click.command()
@click.argument("device_id", metavar="DEVICE")
@click.option("--records", type=click.IntRange(1, 1000), help="So many of its newest events, too.")
@click.option("--telemetry", metavar="MODEL", help="What it did with this model, hour by hour, too.")
@json_option
@with_fleet
def device(
    client: FleetClient, device_id: str, records: int | None, telemetry: str | None, as_json: bool
) -> None:
    """Show one device: what it has, since when, and what is the matter with it.

    \b
    edgec fleet device cam-1
    edgec fleet device cam-1 --records 20 --telemetry kws
    """
    found = client.device(device_id)
    said = client.records(device_id, records) if records else []
    did = client.device_telemetry(device_id, telemetry) if telemetry else []
    whole: dict[str, Any] = {"device": found}
    whole |= {"records": said} if records else {}
    whole |= {"telemetry": did} if telemetry else {}

    def lines() -> list[str]:
        told = device_lines(found)
        if telemetry:
            head = ["version", "hour", "calls", "errors", "NaN", "crashes", "latency"]
            told += ["", *table(head, map(behaviour_row, did), "it said nothing of it")]
        if records:
            rows = [[r.kind, r.severity, r.reason, json.dumps(r.event) if r.event else ""] for r in said]
            told += ["", *table(["event", "severity", "reason", "all of it"], rows, "no event")]
        return told

    show(as_json, whole if len(whole) > 1 else found, lines)


@click.command()
@click.argument("device_id", metavar="DEVICE")
@click.argument("model", required=False)
@json_option
@with_fleet
def why(client: FleetClient, device_id: str, model: str | None, as_json: bool) -> None:
    """Say what keeps a device from the newest version of MODEL, or of each of its models.

    \b
    edgec fleet why cam-1
    edgec fleet why cam-1 kws
    """
    found = [client.why(device_id, model)] if model else client.why_all(device_id)
    rows = [
        [w.model, w.has or "-", w.newest or "-", w.reason.replace("_", " "), w.rollout or "-", w.detail]
        for w in found
    ]
    head = ["model", "has", "newest", "why", "rollout", "detail"]
    show(as_json, found, lambda: table(head, rows, "there is no model for its hardware"))


@click.command()
@click.argument("device_id", metavar="DEVICE")
@click.argument("labels", nargs=-1, metavar="KEY=VALUE...")
@json_option
@with_fleet
def label(client: FleetClient, device_id: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Give a device labels, beside those it has; KEY= takes one away.

    \b
    edgec fleet label cam-1 site=lab ring=canary
    edgec fleet label cam-1 ring=
    """
    wanted = dict(client.device(device_id).labels)
    for text in labels:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="KEY=VALUE")
        wanted[key] = value
    found = client.label(device_id, {k: v for k, v in wanted.items() if v})
    show(as_json, found, lambda: device_lines(found))


@click.command()
@click.argument("device_id", metavar="DEVICE")
@click.option("--reason", default="", help="For the audit log.")
@click.confirmation_option(prompt="It is given nothing any more, and has to be enrolled anew. Revoke it?")
@json_option
@with_fleet
def revoke(client: FleetClient, device_id: str, reason: str, as_json: bool) -> None:
    """Put a device out of the fleet.

    \b
    edgec fleet revoke cam-1 --reason stolen
    """
    found = client.revoke(device_id, reason)
    show(as_json, found, lambda: [f"{found.id} is revoked"])


@click.command()
@click.argument("device_id", metavar="DEVICE")
@click.argument("boot_id", metavar="BOOT")
@json_option
@with_fleet
def settle(client: FleetClient, device_id: str, boot_id: str, as_json: bool) -> None:
    """Say which of several machines with one identity is the device.

    Switch the others off first: what they say does not count from now on, until they start anew. Of a wrong
    choice, settle on the other one.

    \b
    edgec fleet device cam-1
    edgec fleet settle cam-1 b7f2c0
    """
    found = client.settle(device_id, boot_id)
    show(as_json, found, lambda: device_lines(found))


@click.command()
@click.option("--set", "wanted", nargs=2, metavar="NAME QUERY", help="Name a query.")
@click.option("--drop", metavar="NAME", help="Forget one.")
@json_option
@with_fleet
def groups(client: FleetClient, wanted: tuple[str, str] | None, drop: str | None, as_json: bool) -> None:
    """List the queries that have names; name one, or forget one.

    \b
    edgec fleet groups
    edgec fleet groups --set canaries 'ring=canary, site=lab'
    edgec fleet groups --drop canaries
    """
    if wanted:
        client.set_group(*wanted)
    if drop:
        client.drop_group(drop)
    found = client.groups()
    show(as_json, found, lambda: table(["group", "query"], [[g.name, g.query] for g in found], "no group"))


@click.command()
@click.argument("device_id", metavar="DEVICE")
@click.argument("name")
@click.argument("args", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 60), default=30.0, show_default=True)
@json_option
@with_fleet
def command(
    client: FleetClient, device_id: str, name: str, args: tuple[str, ...], timeout_s: float, as_json: bool
) -> None:
    """Send a device a signed command, and wait for what it answers. VALUE is JSON, or text.

    \b
    edgec fleet command cam-1 logs lines=100
    """
    values: dict[str, Any] = {}
    for text in args:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="KEY=VALUE")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    found = client.command(device_id, name, values, timeout_s=timeout_s)

    def lines() -> list[str]:
        told = [f"{found.state}{f': {found.reason}' if found.reason else ''} {found.detail}".rstrip()]
        text = found.result if isinstance(found.result, str) else json.dumps(found.result, indent=2)
        return told if found.result is None else [*told, text]

    show(as_json, found, lines)
    if found.state not in ("done", "accepted"):
        raise SystemExit(1)
