"""``edgec fleet simulate``: load for a fleet."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgec.cli._agent_settings import known_hardware
from edgec.cli._signals import Signals


@click.command()
@click.option("--devices", type=click.IntRange(1, 20_000), default=100, show_default=True)
@click.option("--url", help="Of a fleet server that runs; if left out, one is started for as long.")
@click.option("--claim", help="That lets the devices in, with as many uses.")
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Vouches for the server, PEM."
)
@click.option(
    "--hardware", default="cpu-x86_64", show_default=True, metavar="TARGET", callback=known_hardware,
    help="Class that devices say they are.",
)  # fmt: skip
@click.option("--prefix", default="sim", show_default=True, help="Of the ids of devices.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="To run; until Ctrl-C if left out.")
@click.option("--ramp", type=click.FloatRange(0), default=0.0, show_default=True, metavar="SECONDS",
              help="Devices are switched on evenly over so long.")  # fmt: skip
@click.option(
    "--poison",
    metavar="KIND:SHARE",
    help="What later releases are bad in, on which share.",
)
@click.option("--churn", type=click.FloatRange(0, 1), default=0.0, show_default=True, metavar="SHARE",
              help="Of devices that lose power each minute.")  # fmt: skip
@click.option("--calls-per-s", type=click.FloatRange(0, 10_000), default=20.0, show_default=True,
              help="Of each model on the median device; drawn, not made.")  # fmt: skip
@click.option("--window", type=click.FloatRange(0.1), default=60.0, show_default=True, metavar="SECONDS",
              help="How often a device tells what it observed.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 256), help="Over which devices are spread.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of all chance.")
@click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path),
    help="Keep the devices' state here, to go on with the same devices; in memory if left out.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end; the rest to stderr.")
def command(
    devices: int,
    url: str | None,
    claim: str | None,
    ca: Path | None,
    hardware: str,
    prefix: str,
    seconds: float | None,
    ramp: float,
    poison: str | None,
    churn: float,
    calls_per_s: float,
    window: float,
    processes: int | None,
    seed: int,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Simulate devices: real agents with certificates and state of their own, whose calls are drawn.

    Kinds of poison: crashes, slow, nan, wrong_outputs, low_confidence, disagreement, memory, install. The
    first release that a device gets is always sound.

    \b
    edgec fleet simulate --devices 200 --seconds 60
    edgec fleet simulate --devices 1000 --url https://fleet.example:8443 --ca ca.crt --claim CLAIM --ramp 30
    edgec fleet simulate --url https://fleet.example:8443 --claim CLAIM --poison slow:0.3 --churn 0.05
    """
    from edgec.simulation import LoadOptions, Poison, SimulationError, SimulationSettings, run_load

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    try:
        settings = SimulationSettings(
            seed=seed,
            calls_per_s=calls_per_s,
            window_s=window,
            poison=None if poison is None else Poison.parse(poison),
            churn_per_minute=churn,
            ramp_s=ramp,
        )
        options = LoadOptions(
            devices=devices,
            url=url,
            claim=claim,
            authority=ca,
            hardware=hardware,
            prefix=prefix,
            processes=processes,
            state_dir=state_dir,
            settings=settings,
        )
    except SimulationError as e:
        raise click.UsageError(str(e)) from e
    with Signals() as signals:
        told = run_load(options, say, signals.wait, seconds=seconds)
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(
            f"{told['devices']} devices, {told['connections']} connections, {told['orders']} orders, "
            f"{told['lost']} records of high priority lost, {told['seconds']:.0f} s"
        )
