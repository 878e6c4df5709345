"""Poisoned and healthy releases through whole rollouts: what is stopped, at which share of the fleet.

Each release goes through the planner and the gate of `edgec.fleet` on a fleet of simulated devices, which
differ in load, latency, inputs and luck (`tests.fleet.world`). Reported with exact intervals of 95 %:
how many poisoned releases were stopped, how many healthy ones were, and the share of the fleet that a poison
reached.

    python benchmarks/verdicts.py [--releases 10] [--healthy 100] [--devices 400]
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import scipy
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).parent / "results" / "verdicts.json"

from tests.fleet.world import HEALTHY, POISONS, Release, World  # noqa: E402

from edgec.fleet.rollouts import (  # noqa: E402
    Assign,
    DeviceFacts,
    Facts,
    Order,
    Plan,
    Rollout,
    Stage,
    Stop,
    Undo,
    advance,
    look_due,
    place,
    plan,
)
from edgec.fleet.verdicts import Evidence  # noqa: E402

OLD, NEW = "a" * 64, "b" * 64
STEP_S = 300.0
# Controls and candidates beyond this many change the intervals little and cost time.
MOST = 120


def rollout_of(release: Release, devices: int, seed: int) -> dict[str, Any]:
    """Roll a release out to a fleet; return what became of it."""
    stages = tuple(Stage(percent=p, soak_s=3600) for p in (1, 5, 25, 100))
    wanted = Plan(id=f"r{seed}", name="", model="m", version="2", artifacts={"cpu": NEW}, stages=stages)
    rollout = Order(word="start", by="benchmark").apply(Rollout(plan=wanted), 0.0)
    world = World(seed, calls_per_hour=240)
    fleet = {f"d{i}": DeviceFacts(id=f"d{i}", hardware="cpu", active=OLD, wanted=OLD) for i in range(devices)}
    now, touched, stopped_by, stage = 0.0, set[str](), "", 0
    for _ in range(1000):
        evidence = (
            _evidence(world, rollout, list(fleet.values()), release, now) if look_due(rollout, now) else None
        )
        made = plan(rollout, Facts(devices=tuple(fleet.values()), evidence=evidence), now)
        for decision in made:
            if isinstance(decision, Assign):
                touched.add(decision.device)
                failed = world.rng.random() < release.install
                fleet[decision.device] = replace(
                    fleet[decision.device], assigned=NEW, previous=OLD, wanted=NEW, assigned_at=now,
                    attempts=1, noticed=True, seen_at=now, phase="failed" if failed else "installed",
                    active=OLD if failed else NEW,
                )  # fmt: skip
            elif isinstance(decision, Undo):
                fleet[decision.device] = replace(
                    fleet[decision.device], undone=True, confirmed=True, active=OLD, wanted=OLD
                )
            elif isinstance(decision, Stop):
                stopped_by, stage = decision.reason, rollout.stage
        rollout = advance(rollout, made, now)
        if rollout.state in ("finished", "undone"):
            break
        now += STEP_S
    return {
        "state": rollout.state if rollout.state in ("finished", "undone") else f"held: {rollout.held}",
        "stopped_by": stopped_by,
        "stage": stage + 1,
        "touched": len(touched) / devices,
        "hours": now / 3600,
    }


def _evidence(
    world: World, rollout: Rollout, fleet: list[DeviceFacts], release: Release, now: float
) -> Evidence:
    hours = max((now - rollout.since) / 3600, STEP_S / 3600)
    fleet = sorted(fleet, key=lambda d: place(f"{rollout.plan.id}/evidence", d.id))
    new = [d for d in fleet if d.assigned and d.active == NEW][:MOST]
    old = [d for d in fleet if not d.assigned][:MOST]
    return Evidence(
        candidate=tuple(world.device(d.id, release, hours, digest=NEW) for d in new),
        control=tuple(world.device(d.id, HEALTHY, hours, digest=OLD) for d in old),
        before=() if old else tuple(world.device(d.id, HEALTHY, 24.0, digest=OLD) for d in new),
    )


def share(count: int, n: int) -> dict[str, Any]:
    """Return a share with its exact interval."""
    bounds = binomtest(count, n).proportion_ci(0.95, method="exact")
    return {"count": count, "n": n, "share": count / n, "ci95": [float(bounds.low), float(bounds.high)]}


@click.command()
@click.option("--releases", default=10, help="Of each kind of poison.")
@click.option("--healthy", default=100)
@click.option("--devices", default=400)
def main(releases: int, healthy: int, devices: int) -> None:
    """Run all and write the results."""
    started, kinds = time.time(), {}
    every: list[dict[str, Any]] = []
    for number, (kind, release) in enumerate(sorted(POISONS.items())):
        runs = [rollout_of(release, devices, 1000 * (number + 1) + i) for i in range(releases)]
        every += runs
        stopped = [r for r in runs if r["state"] == "undone"]
        touched = [r["touched"] for r in runs]
        kinds[kind] = {
            "stopped": share(len(stopped), len(runs)),
            "stopped_in_first_stage": sum(r["stage"] == 1 for r in stopped),
            "stopped_by": sorted({r["stopped_by"] for r in stopped}),
            "touched_median": float(np.median(touched)),
            "touched_max": max(touched),
            "hours_median": float(np.median([r["hours"] for r in runs])),
        }
        click.echo(f"{kind}: {json.dumps(kinds[kind])}")
    good = [rollout_of(HEALTHY, devices, 100_000 + i) for i in range(healthy)]
    finished = sum(r["state"] == "finished" for r in good)
    stops = sum(r["state"] == "undone" for r in good)
    result = {
        "about": "simulated devices, real planner and gate; see benchmarks/verdicts.py",
        "machine": f"{platform.machine()}, Python {platform.python_version()}, scipy {scipy.__version__}",
        "devices": devices,
        "stages_percent": [1, 5, 25, 100],
        "soak_s": 3600,
        "poisoned": {
            "stopped": share(sum(r["state"] == "undone" for r in every), len(every)),
            "touched_median": float(np.median([r["touched"] for r in every])),
            "touched_max": max(r["touched"] for r in every),
            "kinds": kinds,
        },
        "healthy": {
            "false_stops": share(stops, healthy),
            "finished": share(finished, healthy),
            "held": healthy - stops - finished,
            "stopped_by": sorted({r["stopped_by"] for r in good if r["stopped_by"]}),
        },
        "seconds": round(time.time() - started, 1),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result["healthy"]))


if __name__ == "__main__":
    main()
