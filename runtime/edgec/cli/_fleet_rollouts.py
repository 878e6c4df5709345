"""``edgec fleet rollout``: made, ordered and followed."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._fleet_follow import follow as followed
from edgec.cli._fleet_login import json_option, show, with_fleet
from edgec.cli._fleet_text import rollout_lines, rollout_row, table
from edgec.cli._lazy import SentencesGroup
from edgec.cli._text import printable
from edgec.errors import FleetError

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient
    from edgec.fleet.views import RolloutView, Word

_HEAD = ["rollout", "name", "state", "stage", "devices", "made", "why"]
_reason = click.option("--reason", default="", help="For the log of decisions.")


@click.group(cls=SentencesGroup)
def rollout() -> None:
    """Rollouts: a release to devices in stages, with a gate on behaviour, and taken back where it fails.

    \b
    edgec fleet rollout create kws 2 --start
    edgec fleet rollout status
    edgec fleet rollout status ROLLOUT --follow
    edgec fleet rollout pause ROLLOUT
    """


def _stage(text: str) -> dict[str, float]:
    percent, _, soak = text.partition(":")
    try:
        return {"percent": float(percent)} | ({"soak_s": float(soak)} if soak else {})
    except ValueError as e:
        raise click.BadParameter(f"expected PERCENT or PERCENT:SOAK_SECONDS, got {text!r}") from e


@rollout.command()
@click.argument("model")
@click.argument("version", required=False)
@click.option("--query", default="", help="Which devices; all if left out.")
@click.option("--group", help="Instead of --query: a query that has a name.")
@click.option("--name", default="", help="For people.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="PERCENT[:SOAK_S]",
    help="In order; 1, 5, 25, 100 if left out.",
)
@click.option(
    "--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML, for all else."
)
@click.option("--start", is_flag=True, help="Begin at once; else it is a draft.")
@json_option
@with_fleet
def create(
    client: FleetClient,
    model: str,
    version: str | None,
    query: str,
    group: str | None,
    name: str,
    stages: tuple[str, ...],
    plan: Path | None,
    start: bool,
    as_json: bool,
) -> None:
    """Write down a rollout of MODEL, its newest version without VERSION.

    \b
    edgec fleet rollout create kws 2 --start
    edgec fleet rollout create kws --query site=lab --stage 10:600 --stage 100:60 --start
    edgec fleet rollout create kws 2 --plan careful.toml
    """
    from pydantic import ValidationError

    from edgec.fleet._wrong import problem_of
    from edgec.fleet.views import RolloutWanted

    flags = {"version": version, "query": query, "group": group, "name": name, "start": start}
    asked = {**_plan(plan), "model": model, **{key: value for key, value in flags.items() if value}}
    if stages:
        asked["stages"] = [_stage(text) for text in stages]
    try:
        wanted = RolloutWanted.model_validate(asked)
    except ValidationError as e:
        told = "; ".join(f"{'.'.join(map(str, p['loc']))}: {problem_of(p)}" for p in e.errors())
        raise FleetError(f"this is no rollout: {told}", "invalid") from e
    found = client.create_rollout(wanted)
    _warn(found)
    show(as_json, found, lambda: rollout_lines(found))


def _warn(found: RolloutView) -> None:
    for warning in found.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)


def _plan(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise FleetError(f"{path} cannot be read: {e}", "invalid") from e
    return document


@rollout.command()
@click.argument("rollout_id", metavar="[ROLLOUT]", required=False)
@click.option(
    "--follow", is_flag=True, help="Tell every decision until it is over; exit status 1 where it was undone."
)
@click.option(
    "--every", "every_s", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds."
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Most rollouts.")
@json_option
@with_fleet
def status(
    client: FleetClient, rollout_id: str | None, follow: bool, every_s: float, limit: int, as_json: bool
) -> None:
    """Show how far a rollout is, stage by stage; or list all, newest first.

    \b
    edgec fleet rollout status
    edgec fleet rollout status ROLLOUT
    edgec fleet rollout status ROLLOUT --follow
    """
    if rollout_id is None:
        if follow:
            raise click.UsageError("--follow needs a ROLLOUT")
        found = list(islice(client.rollouts(), limit))
        show(as_json, found, lambda: table(_HEAD, map(rollout_row, found), "no rollout"))
        return
    whole = followed(client, rollout_id, every_s, as_json=as_json) if follow else client.rollout(rollout_id)
    show(as_json, whole, lambda: rollout_lines(whole))
    if follow and whole.state != "finished":
        raise SystemExit(1)


def _ordering(word: Word, help_text: str) -> None:
    @rollout.command(name=word, help=f"{help_text}\n\n\b\nedgec fleet rollout {word} ROLLOUT")
    @click.argument("rollout_id", metavar="ROLLOUT")
    @_reason
    @json_option
    @with_fleet
    def order(client: FleetClient, rollout_id: str, reason: str, as_json: bool) -> None:
        found = client.order(rollout_id, word, reason)
        _warn(found)
        show(as_json, found, lambda: rollout_lines(found))


_ordering("start", "Begin with the first stage of a draft.")
_ordering("pause", "Tell no more devices until it is resumed.")
_ordering("resume", "Go on after a pause.")
_ordering("abort", "End it; what is installed stays.")
_ordering("undo", "Take back what was installed: devices get what they had before.")
_ordering("retry", "Tell the devices once more where the update failed.")
