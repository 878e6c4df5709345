"""The fleet at a glance: status, telemetry, incidents, alerts, drift, audit, tokens and claims."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING

import click

from edgec.cli._agent_settings import known_hardware
from edgec.cli._fleet_login import json_option, show, with_fleet
from edgec.cli._fleet_text import behaviour_row, incident_row, table
from edgec.cli._text import columns, moment
from edgec.errors import FleetError

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient
    from edgec.fleet.views import Role

_ROLES = ("viewer", "operator", "releaser", "admin")
_DAY_S = 86400.0


@click.command()
@json_option
@with_fleet
def status(client: FleetClient, as_json: bool) -> None:
    """Show the fleet at a glance.

    \b
    edgec fleet status
    """
    found = client.fleet()
    rows = [[name, value] for name, value in found.model_dump().items()]
    show(as_json, found, lambda: columns(rows, indent=""))


@click.command()
@click.argument("model")
@click.option("--hours", type=click.FloatRange(0.1, 9600), default=24.0, show_default=True)
@click.option("--hardware", help="Of this class of hardware only.")
@json_option
@with_fleet
def telemetry(client: FleetClient, model: str, hours: float, hardware: str | None, as_json: bool) -> None:
    """Show what all devices did with MODEL, by version: calls, errors, percentiles of the latency.

    \b
    edgec fleet telemetry kws
    edgec fleet telemetry kws --hours 168 --hardware rpi5
    """
    found = client.telemetry(model, hours, hardware)
    head = ["version", "", "calls", "errors", "NaN", "crashes", "latency"]
    show(as_json, found, lambda: table(head, map(behaviour_row, found), "nothing was said of it"))


@click.command()
@click.option("--all", "everything", is_flag=True, help="Closed ones, too.")
@click.option("--rollout", help="Of this rollout only.")
@click.option("--close", type=click.IntRange(1), metavar="NUMBER", help="Say that one is settled.")
@click.option("--reason", default="", help="With --close: for the audit log.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most incidents.")
@json_option
@with_fleet
def incidents(
    client: FleetClient,
    everything: bool,
    rollout: str | None,
    close: int | None,
    reason: str,
    limit: int,
    as_json: bool,
) -> None:
    """List what a person must know, newest first; with its evidence in --json.

    \b
    edgec fleet incidents
    edgec fleet incidents --close 3 --reason 'the camera was covered'
    """
    if close is not None:
        client.close_incident(close, reason)
    found = list(islice(client.incidents(only_open=not everything, rollout=rollout), limit))
    head = ["incident", "since", "state", "about", "reason", "detail"]
    show(as_json, found, lambda: table(head, map(incident_row, found), "no incident"))


@click.command()
@click.option("--all", "everything", is_flag=True, help="Those that no longer hold, too.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most alerts.")
@json_option
@with_fleet
def alerts(client: FleetClient, everything: bool, limit: int, as_json: bool) -> None:
    """List what a person should know now, newest first; figures are in --json.

    \b
    edgec fleet alerts
    edgec fleet alerts --all --json
    """
    found = list(islice(client.alerts(only_open=not everything), limit))
    rows = [
        [moment(a.raised_at), a.severity, a.rule, a.subject, a.summary,
         f"until {moment(a.cleared_at)}" if a.cleared_at else
         f"over since {moment(a.quiet_since)}" if a.quiet_since else ""]
        for a in found
    ]  # fmt: skip
    head = ["since", "severity", "rule", "about", "what", ""]
    show(as_json, found, lambda: table(head, rows, "nothing"))


@click.command()
@click.argument("model", required=False)
@click.option("--hours", type=click.FloatRange(0.1, 9600), default=24.0, show_default=True)
@json_option
@with_fleet
def drift(client: FleetClient, model: str | None, hours: float, as_json: bool) -> None:
    """Show how far inputs and outputs have moved from calibration data.

    Of MODEL hour by hour, or the newest of each. Of an input it is the mean or the deviation of one call.

    \b
    edgec fleet drift
    edgec fleet drift kws --hours 168
    """
    found = client.drift(model, hours)
    rows = [
        [d.model, d.version or d.digest[:12], d.hardware, d.kind, d.output, moment(d.hour), d.n,
         f"{d.psi:.3f}", f"{d.ks:.3f}"]
        for d in found
    ]  # fmt: skip
    head = ["model", "version", "hardware", "kind", "name", "hour", "values", "PSI", "KS"]
    show(as_json, found, lambda: table(head, rows, "nothing was measured: it takes 1,000 values"))


@click.command()
@click.option("--after", type=click.IntRange(0), default=0, help="Entries after this number.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most entries.")
@click.option(
    "--verify", is_flag=True, help="Check the hashes of the whole log; exit status 1 where it was changed."
)
@click.option(
    "--expect", metavar="NUMBER:HASH", default="", help="With --verify: what an earlier check printed."
)
@json_option
@with_fleet
def audit(client: FleetClient, after: int, limit: int, verify: bool, expect: str, as_json: bool) -> None:
    """List who has changed what, oldest first; or check that nobody has changed the log.

    \b
    edgec fleet audit
    edgec fleet audit --verify
    edgec fleet audit --verify --expect 128:9f8e...
    """
    if verify:
        number, _, digest = expect.partition(":")
        if expect and not number.isdigit():
            raise click.BadParameter(f"expected NUMBER:HASH, got {expect!r}", param_hint="--expect")
        check = client.verify_audit(int(number or 0), digest)
        told = f"intact; expect it again with --expect {check.entries}:{check.hash}"
        show(as_json, check, lambda: [told if check.intact else check.problem])
        if not check.intact:
            raise SystemExit(1)
        return
    found = list(islice(client.audit(after), limit))
    rows = [[e.seq, moment(e.at), e.actor, e.action, e.subject, json.dumps(e.body)] for e in found]
    head = ["entry", "at", "who", "what", "of what", "how"]
    show(as_json, found, lambda: table(head, rows, "nothing after it"))


@click.command()
@click.option("--create", metavar="NAME", help="Make one for this person or program; it is told once.")
@click.option("--role", type=click.Choice(_ROLES), default="viewer", show_default=True, help="With --create.")
@click.option("--days", type=click.FloatRange(0.01, 3650), help="With --create: how long it is in force.")
@click.option("--revoke", metavar="ID", help="Take one back.")
@json_option
@with_fleet
def tokens(
    client: FleetClient, create: str | None, role: Role, days: float | None, revoke: str | None, as_json: bool
) -> None:
    """List tokens of people and programs; make one, or take one back.

    \b
    edgec fleet tokens
    edgec fleet tokens --create ci --role releaser --days 90
    edgec fleet tokens --revoke 74f4dcf2a064
    """
    if create:
        made = client.create_token(create, role, None if days is None else days * _DAY_S)
        show(as_json, made, lambda: [f"{made.token}  ({made.name}, {made.role}; it is told only here)"])
        return
    if revoke:
        client.revoke_token(revoke)
    found = client.tokens()
    rows = [
        [t.id, t.name, t.role, moment(t.used_at) or "never", moment(t.expires_at) or "never",
         f"taken back {moment(t.revoked_at)}" if t.revoked_at else ""]
        for t in found
    ]  # fmt: skip
    show(as_json, found, lambda: table(["token", "name", "role", "used", "ends", ""], rows, "no token"))


def _claimed(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Put a target in place of an alias, but not this computer's for that of devices."""
    from edgec.targets import meanings

    meant = () if name is None else meanings(name)
    if len(meant) > 1:
        raise click.BadParameter(f"{name!r} is {' or '.join(meant)}: say which one devices are")
    return known_hardware(context, parameter, name)


@click.command()
@click.option(
    "--uses", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many devices."
)
@click.option(
    "--days", type=click.FloatRange(0.01, 3650), default=7.0, show_default=True, help="In force so long."
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="That each device is given.")
@click.option(
    "--hardware", metavar="TARGET", callback=_claimed, help="That each device must be (edgec targets)."
)
@click.option("--device", help="The only one, also one that is in the fleet and has a new key.")
@json_option
@with_fleet
def claim(
    client: FleetClient,
    uses: int,
    days: float,
    labels: tuple[str, ...],
    hardware: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Make a claim, with which devices come into the fleet; it is told once.

    \b
    edgec fleet claim --uses 20 --label site=lab
    edgec agent enrol https://fleet.example:8443 --claim CLAIM --fingerprint F --hardware rpi5
    """
    wrong = [text for text in labels if "=" not in text]
    if wrong:
        raise FleetError(f"expected labels as KEY=VALUE, got {', '.join(wrong)}", "invalid")
    named = dict(text.split("=", 1) for text in labels)
    made = client.create_claim(
        uses=uses, valid_s=days * _DAY_S, labels=named, hardware=hardware, device=device
    )
    how = f"edgec agent enrol {client.url} --claim {made.claim} --hardware TARGET"
    if made.fingerprint:
        how += f" --fingerprint {made.fingerprint}"
    show(as_json, made, lambda: [made.claim, f"on the device:  {how}"])


@click.command()
@click.option("--withdraw", metavar="ID", help="Take one back; devices that came with it stay.")
@json_option
@with_fleet
def claims(client: FleetClient, withdraw: str | None, as_json: bool) -> None:
    """List claims; take one back. edgec fleet claim makes one.

    \b
    edgec fleet claims
    edgec fleet claims --withdraw 5be1c7f0aa10
    """
    if withdraw:
        client.withdraw_claim(withdraw)
    found = client.claims()
    rows = [
        [c.id, c.uses_left, moment(c.expires_at) or "never", c.device or c.hardware or "any",
         ", ".join(f"{k}={v}" for k, v in c.labels.items()), "withdrawn" if c.withdrawn_at else ""]
        for c in found
    ]  # fmt: skip
    show(as_json, found, lambda: table(["claim", "uses left", "ends", "for", "labels", ""], rows, "no claim"))
