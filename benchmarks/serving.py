"""What serving costs: `edgec serve` against the bare engine, and against other servers of the same protocol.

    python -m benchmarks.serving [--quick] [--seconds 4] [--rounds 5] [--pytriton PYTHON] [--kserve PYTHON]

PYTHON is the interpreter of an environment with that server and onnxruntime (``pip install nvidia-pytriton
onnxruntime``, ``pip install kserve onnxruntime``); servers that are not named are left out. All serve the
same ONNX files with ONNX Runtime, one thread per inference, and are asked by the same client, one after the
other, in an order drawn anew for each round; those whose turn it is not are stopped, for some compute while
nobody asks them. The client sends the same bytes on each connection as soon as
the answer is there, from a process of its own on the same machine: rates are floors, ratios are what counts.
A single caller waits at a socket, several are of one event loop.
One server more is a control: the least that answers, forty lines without any check around the same engine.
What it adds is the price of the loopback, of waking threads and of the client on this machine.
Claims: added median latency at most 1 ms; at least 90 % of the bare engine's rate for a model above 5 ms; at
least twice the rate of pytriton with 64 callers of a small model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from benchmarks.servers import KSERVE, LEAST, PYTRITON, Model, Served, ask, served_by, served_by_edgec

from edgec.artifact import Manifest, pack
from edgec.runtime.benchmark import this_machine
from edgec.runtime.testing import onnxruntime_spec

ROOT = Path(__file__).resolve().parent.parent

# `narrow` computes what `slow` does, of 4 KiB in place of 256: what both add differs by what bytes cost.
MODELS = (Model("small", 1, 8, 1), Model("slow", 64, 1024, 3), Model("narrow", 1, 1024, 3, inner_rows=64))
CALLERS = {"small": (1, 64), "slow": (1, 8), "narrow": (1,)}


def prepare(model: Model, folder: Path) -> tuple[Path, Path]:
    """Write a model as an artifact and as a bare ONNX file."""
    members = model.members()
    inputs, outputs = model.specs()
    manifest = Manifest(
        model=model.name,
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
    )
    onnx = folder / f"{model.name}.onnx"
    onnx.write_bytes(members["model.onnx"])
    return pack(folder / f"{model.name}.edgec", manifest, members), onnx


def bare(onnx: Path, model: Model) -> Callable[[float], dict[str, float]]:
    """Return what calls the engine in a loop, on one thread, for some seconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((model.rows, model.columns), np.float32)}

    def call(seconds: float) -> dict[str, float]:
        taken, end = [], time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            session.run(None, feeds)
            taken.append(time.perf_counter() - start)
        taken.sort()
        p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
        return {"rate": len(taken) / sum(taken), "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "failed": 0}

    return call


def measure(
    servers: Mapping[str, Served], onnx: Mapping[Model, Path], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Measure everything in turn, and return one row per model, number of callers and server."""

    def asked(served: Served, model: Model, callers: int) -> dict[str, float]:
        served.go_on()
        try:
            return ask(served.port, model, callers, seconds)
        finally:
            served.stop()

    for served in servers.values():
        served.stop()
    cases: dict[tuple[str, int, str], Callable[[], dict[str, float]]] = {}
    for model, path in onnx.items():
        cases[model.name, 1, "engine"] = partial(bare(path, model), seconds)
        for callers in CALLERS[model.name]:
            for name, served in servers.items():
                cases[model.name, callers, name] = partial(asked, served, model, callers)
    taken: dict[tuple[str, int, str], list[dict[str, float]]] = {case: [] for case in cases}
    for case in cases:
        cases[case]()  # warm-up
    for _ in range(rounds):
        for case in random.sample(list(cases), len(cases)):
            taken[case].append(cases[case]())
    return [summary(*case, rows) for case, rows in taken.items()]


def summary(model: str, callers: int, server: str, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians over rounds, and the range of the rates."""
    rates = [row["rate"] for row in rows]
    return {
        "model": model,
        "callers": callers,
        "server": server,
        "rate": round(median(rates), 1),
        "rate_range": [round(min(rates), 1), round(max(rates), 1)],
        "p50_ms": round(median(row["p50_ms"] for row in rows), 4),
        "p99_ms": round(median(row["p99_ms"] for row in rows), 4),
        "failed": sum(row["failed"] for row in rows),
    }


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the claims come to."""
    by = {(row["model"], row["callers"], row["server"]): row for row in rows}
    slow = by["slow", 1, "engine"]
    result: dict[str, Any] = {
        f"added_p50_ms_{model}{end}": round(
            by[model, 1, server]["p50_ms"] - by[model, 1, "engine"]["p50_ms"], 4
        )
        for model in CALLERS
        for server, end in (("edgec", ""), ("least", "_by_least"))
    }
    result |= {
        "slow_model_ms": slow["p50_ms"],
        "rate_over_engine_slow": round(by["slow", 8, "edgec"]["rate"] / slow["rate"], 3),
    }
    for peer in ("pytriton", "kserve"):
        if ("small", 64, peer) in by:
            ratio = by["small", 64, "edgec"]["rate"] / by["small", 64, peer]["rate"]
            result[f"rate_over_{peer}_small_64"] = round(ratio, 2)
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of half a second")
    parser.add_argument("--pytriton", help="Python of an environment with nvidia-pytriton and onnxruntime")
    parser.add_argument("--kserve", help="Python of an environment with kserve and onnxruntime")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/serving.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 0.5, 2
    machine = this_machine()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        prepared = {model: prepare(model, Path(folder)) for model in MODELS}
        onnx = {model: path for model, (_, path) in prepared.items()}
        servers = {"edgec": stack.enter_context(served_by_edgec([a for a, _ in prepared.values()]))}
        for name, program, python in (
            ("least", LEAST, sys.executable),
            ("pytriton", PYTRITON, arguments.pytriton),
            ("kserve", KSERVE, arguments.kserve),
        ):
            if python:
                servers[name] = stack.enter_context(served_by(program, python, onnx))
        rows = measure(servers, onnx, arguments.rounds, arguments.seconds)
    for row in rows:
        print(
            f"{row['model']:7} {row['callers']:3} callers  {row['server']:9} {row['rate']:9.1f}/s"
            f"  p50 {row['p50_ms']:8.3f} ms  p99 {row['p99_ms']:8.3f} ms  failed {row['failed']:.0f}"
        )
    kept = claims(rows)
    print(json.dumps(kept, indent=1))
    result = {
        "what": "serving over HTTP against the bare engine and other servers, same files, same client",
        "method": {
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "threads": 1,
            "order": "drawn anew for each round; one warm-up of each before; the servers of others are "
            "stopped (SIGSTOP)",
            "figures": "medians over rounds",
        },
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {
            p: version(p) for p in ("edgec", "numpy", "onnxruntime", "uvicorn", "httptools", "uvloop")
        },
        "rows": rows,
        "claims": kept,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
