"""What watching costs: a session with an observer against one without, and a cache's hits and misses.

    python -m benchmarks.observe [--quick] [--duration-s 5] [--output benchmarks/results/observe.json]

A session with one thread runs blocks of calls with and without an observer, in an order drawn anew for each
round. It is the same one, because two sessions of one artifact differ by more than an observer costs; and
blocks, because looking into a call now and then is in the mean of many and in the median of none. What is
measured is processor time, so that other work on the machine does not count. The claims it checks, per call:
an observer adds at most 1.5 microseconds and 1 % of the call; a miss of the cache costs at most 1 % of a
call that takes 5 ms or more. From which call time on hits pay is what the rows of the cache say.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time_ns
from typing import Any

import numpy as np
from benchmarks.overhead import ROOT, Model, digits, frame, tiny
from numpy.typing import NDArray

from edgec.artifact import Manifest, Observation, Scores, TensorSpec, pack
from edgec.runtime import Observer, ResultCache, Session, load
from edgec.runtime.benchmark import measure_interleaved, median_ratio, this_machine
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

BLOCK_S = 0.02
# Of a block, so that each has several calls that are looked into.
LEAST_CALLS = 64
REFERENCE = {"0.01": -2.0, "0.05": -1.5, "0.25": -0.5, "0.5": 0.0, "0.75": 0.5, "0.95": 1.5, "0.99": 2.0}
MOST_ADDED_US, MOST_SHARE = 1.5, 0.01


def network() -> Model:
    """Convolutions over a camera frame that take some milliseconds: what an edge device usually runs."""
    random = np.random.default_rng(3)
    inputs = (TensorSpec("image", "float32", (1, 3, 224, 224)),)
    outputs = (TensorSpec("scores", "float32", (1, 64)),)
    weights, nodes, x, channels = {}, [], "image", 3
    for i, size in enumerate((32, 64, 64)):
        weights[f"w{i}"] = (random.standard_normal((size, channels, 3, 3)) / 10).astype(np.float32)
        attributes = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        nodes += [Node("Conv", [x, f"w{i}"], [f"c{i}"], attributes), Node("Relu", [f"c{i}"], [f"r{i}"])]
        x, channels = f"r{i}", size
    nodes += [Node("GlobalAveragePool", [x], ["p"]), Node("Flatten", ["p"], ["scores"])]
    return Model("3 convolutions, 224x224", onnx_members(nodes, inputs, outputs, weights), inputs, outputs)


def write(model: Model, folder: Path) -> Path:
    """Pack a model with everything an observer can look at."""
    output = model.outputs[0]
    scored = output.dtype == "float32" and len(output.shape) == 2
    manifest = Manifest(
        model=model.name,
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights="weights.bin" in model.members),
        inputs=model.inputs,
        outputs=model.outputs,
        reference={output.name: REFERENCE},
        input_reference={
            spec.name: dict.fromkeys(("mean", "std", "min", "max"), REFERENCE) for spec in model.inputs
        },
        observe=Observation(
            inputs={spec.name: ("mean", "std", "min", "max") for spec in model.inputs},
            scores=Scores(output=output.name, activation="softmax") if scored else None,
        ),
    )
    return pack(folder / "model.edgec", manifest, model.members)


def block(session: Session, feeds: dict[str, NDArray[Any]], calls: int) -> Callable[[], None]:
    """Return a function that runs a session some times."""

    def run() -> None:
        for _ in range(calls):
            session.run(feeds)

    return run


def calls_per_block(session: Session, feeds: dict[str, NDArray[Any]]) -> int:
    """Return how many calls take as long as a block should."""
    start, calls = perf_counter(), 0
    while perf_counter() - start < 0.2:
        session.run(feeds)
        calls += 1
    return max(LEAST_CALLS, round(calls * BLOCK_S / 0.2))


def measure_observer(model: Model, duration_s: float) -> dict[str, Any]:
    """Measure one model with and without an observer."""
    with tempfile.TemporaryDirectory() as folder, load(write(model, Path(folder)), threads=1) as session:
        observer = session.observe()
        feeds = model.arrays()
        calls = calls_per_block(session, feeds)
        run = block(session, feeds, calls)

        def with_observer(chosen: Observer | None) -> Callable[[], None]:
            def switch_and_run() -> None:
                session.set_observer(chosen)
                run()

            return switch_and_run

        measured = measure_interleaved(
            {"plain": with_observer(None), "observed": with_observer(observer)},
            duration_s=duration_s,
            warmup_s=1.0,
            clock=process_time_ns,
        )
        window = observer.take()
    us = {name: samples.p50_ms * 1e3 / calls for name, samples in measured.items()}
    added = us["observed"] - us["plain"]
    ratio = median_ratio(measured["observed"], measured["plain"])
    return {
        "model": model.name,
        "blocks": measured["plain"].n,
        "calls_per_block": calls,
        "us_per_call": {name: round(value, 3) for name, value in us.items()},
        "added_us": round(added, 3),
        "added_share": round(ratio.ratio - 1, 4),
        "added_share_ci95": [round(ratio.lower - 1, 4), round(ratio.upper - 1, 4)],
        "looked_into": round(window.sampled / window.calls, 6),
        "kept": added <= MOST_ADDED_US + MOST_SHARE * us["plain"],
    }


def measure_cache(model: Model, duration_s: float) -> dict[str, Any]:
    """Measure hits and misses of one model."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(model, Path(folder))
        hits, misses = ResultCache(max_bytes=2**26), ResultCache(max_bytes=1)  # which keeps nothing
        feeds = model.arrays()
        with (
            load(path, threads=1) as plain,
            load(path, threads=1, cache=hits) as hit,
            load(path, threads=1, cache=misses) as miss,
        ):
            sessions = {"run": plain, "hit": hit, "miss": miss}
            measured = measure_interleaved(
                {name: block(session, feeds, 1) for name, session in sessions.items()},
                duration_s=duration_s,
                warmup_s=0.5,
                clock=process_time_ns,
            )
    us = {name: samples.p50_ms * 1e3 for name, samples in measured.items()}
    lookup = us["miss"] - us["run"]
    return {
        "model": model.name,
        "input_bytes": sum(array.nbytes for array in feeds.values()),
        "us_per_call": {name: round(value, 2) for name, value in us.items()},
        "miss_added_us": round(lookup, 2),
        "hit_is_times_as_fast": round(us["run"] / us["hit"], 3),
        # Of all calls; hits below it cost more than they bring.
        "pays_from_hit_share": round(min(1.0, lookup / max(us["miss"] - us["hit"], 1e-9)), 3)
        if us["hit"] < us["run"]
        else None,
        "kept": us["run"] < 5000 or lookup <= 0.01 * us["run"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--duration-s", type=float, default=5.0, help="of each comparison")
    parser.add_argument("--quick", action="store_true", help="half a second of each")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/observe.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.duration_s = 0.5
    machine = this_machine()
    models = [tiny(1), *filter(None, [digits()]), frame(), network()]
    observers = [measure_observer(model, arguments.duration_s) for model in models]
    for row in observers:
        print(
            f"{row['model']:26} {row['us_per_call']['plain']:9.2f} us, observed {row['added_us']:+7.2f} us "
            f"({row['added_share']:+.1%}), 1 call in {1 / max(row['looked_into'], 1e-9):.0f} looked into  "
            f"{'kept' if row['kept'] else 'NOT KEPT'}"
        )
    caches = [measure_cache(model, arguments.duration_s) for model in models]
    for row in caches:
        print(
            f"{row['model']:26} run {row['us_per_call']['run']:9.2f}, hit {row['us_per_call']['hit']:9.2f}, "
            f"miss {row['miss_added_us']:+8.2f}; pays from a share of hits of "
            f"{row['pays_from_hit_share']}  {'kept' if row['kept'] else 'NOT KEPT'}"
        )
    result = {
        "what": "sessions with an observer, and with a cache of results, against one without; interleaved",
        "method": {
            "duration_s": arguments.duration_s,
            "threads": 1,
            "order": "drawn anew for each round",
            "clock": "processor time",
        },
        "claims": {"added_us": MOST_ADDED_US, "and_share": MOST_SHARE, "miss_share_from_5_ms": 0.01},
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {p: version(p) for p in ("edgec", "numpy", "onnxruntime")},
        "observer": observers,
        "cache": caches,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
