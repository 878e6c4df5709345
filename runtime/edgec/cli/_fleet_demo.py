"""``edgec fleet demo``: a whole fleet on this machine, to look at."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from edgec.cli._signals import Signals, ends_in_order

# Named here as well, so that help needs none of the extras; a test holds them together.
_POISONS = (
    "crashes", "slow", "nan", "wrong_outputs", "low_confidence", "disagreement", "memory", "install"
)  # fmt: skip


@click.command()
@click.option("--once", is_flag=True, help="End after both rollouts, rather than stay for the dashboard.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Of the fleet, which stays there; a temporary one if left out.",
)
@click.option("--devices", type=click.IntRange(20, 500), default=50, show_default=True)
@click.option(
    "--poison", type=click.Choice(_POISONS), default="wrong_outputs", show_default=True,
    help="What the second release is bad in.",
)  # fmt: skip
@click.option(
    "--broker", type=click.Choice(("auto", "mosquitto", "nats")), default="auto", show_default=True,
    help="auto: Mosquitto where it is installed, else nats-server.",
)  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end, and what happens on stderr."
)
def command(once: bool, data_dir: Path | None, devices: int, poison: str, broker: str, as_json: bool) -> None:
    """Run a fleet server with simulated devices: one rollout that finishes, and one that is undone.

    The devices are real agents in this process, over a real broker with TLS; their hardware and the calls of
    their models are drawn. Needs the extras fleet and onnxruntime. With --once it takes less than a minute.

    \b
    edgec fleet demo
    edgec fleet demo --once --json
    """
    from edgec.simulation import DemoOptions, run_demo

    begin = time.monotonic()

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    def stay() -> None:
        if not once:
            say("both rollouts are over; the fleet runs on until Ctrl-C: look at the dashboard")
            with Signals() as signals:
                while not signals.wait(3600):
                    pass

    options = DemoOptions(data_dir=data_dir, devices=devices, poison=poison, broker=broker)
    with ends_in_order():
        told = run_demo(options, say, then=stay)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for rollout in told["rollouts"]:
        click.echo(f"{rollout['name']}: {rollout['state']}")
    click.echo(f"{told['devices']} devices, {time.monotonic() - begin:.0f} s")
