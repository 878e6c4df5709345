"""What joining calls gains: throughput and latency of many callers, with a Batcher and without.

    python -m benchmarks.batching [--callers 16] [--duration-s 5] [--output batching.json]

A product of a vector with a large matrix, whose weights each call reads anew, is a model where batching
pays; both ways run in turns, in short parts, with one thread per inference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.runtime import Batcher, load
from edgec.runtime.benchmark import this_machine
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

ROOT = Path(__file__).resolve().parent.parent
SIZE, PARTS = 2048, 5
Call = Callable[[dict[str, NDArray[Any]]], object]


def artifact(path: Path) -> Path:
    """Pack the model."""
    w = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    inputs, outputs = (TensorSpec("x", "float32", ("n", SIZE)),), (TensorSpec("y", "float32", ("n", SIZE)),)
    manifest = Manifest(
        model="batching",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(),
        inputs=inputs,
        outputs=outputs,
    )
    return pack(path, manifest, onnx_members([Node("MatMul", ["x", "w"], ["y"])], inputs, outputs, {"w": w}))


def part(call: Call, callers: int, duration_s: float) -> list[float]:
    """Return how long each call of all callers took, in seconds."""
    over, seconds = Event(), [list[float]() for _ in range(callers)]

    def use(mine: list[float]) -> None:
        inputs = {"x": np.ones((1, SIZE), np.float32)}
        while not over.is_set():
            start = perf_counter()
            call(inputs)
            mine.append(perf_counter() - start)

    threads = [Thread(target=use, args=(mine,)) for mine in seconds]
    for thread in threads:
        thread.start()
    sleep(duration_s)
    over.set()
    for thread in threads:
        thread.join()
    return [s for mine in seconds for s in mine]


def measure(callers: int, duration_s: float) -> dict[str, Any]:
    """Measure both ways in turns."""
    with (
        tempfile.TemporaryDirectory() as directory,
        load(artifact(Path(directory) / "a.edgec"), threads=1) as session,
        Batcher(session, max_batch=16, max_delay_ms=2) as batcher,
    ):
        ways: dict[str, Call] = {"single": partial(session.run), "joined": batcher.run}
        found: dict[str, list[list[float]]] = {name: [] for name in ways}
        for _ in range(PARTS):
            for name, call in ways.items():
                found[name].append(part(call, callers, duration_s / PARTS))
        reason, gain = batcher.reason, batcher.gain
    figures = {
        name: {
            "calls_per_s": round(median(len(p) for p in parts) * PARTS / duration_s, 1),
            "p50_ms": round(median(s for p in parts for s in p) * 1e3, 3),
        }
        for name, parts in found.items()
    }
    ratio = figures["joined"]["calls_per_s"] / figures["single"]["calls_per_s"]
    return {
        "callers": callers,
        "probe": {"gain": gain, "reason": reason},
        **figures,
        "ratio": round(ratio, 3),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--duration-s", type=float, default=5.0, help="of each way")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/batching.json")
    arguments = parser.parse_args()
    machine = this_machine()
    result = measure(arguments.callers, arguments.duration_s)
    print(f"{result['single']} {result['joined']} ratio {result['ratio']}: {result['probe']['reason']}")
    result |= {
        "machine": asdict(machine),
        "versions": {p: version(p) for p in ("edgec", "numpy", "onnxruntime")},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
