"""Swapping a model under load: calls that fail, their latency meanwhile, and memory afterwards.

    python -m benchmarks.swap [--swaps 100] [--callers 2] [--weights-mib 16] [--output swap.json]

Two artifacts of the same interface take turns in one session that several threads call without a pause.
Memory is what the process has resident: after a few swaps, which is when engines and the C library have
what they keep, and after the last. The claims it checks: no call fails, memory is back within 5 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.errors import EdgecError
from edgec.runtime import Session, load
from edgec.runtime.benchmark import this_machine
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

ROOT = Path(__file__).resolve().parent.parent
SETTLING = 5
MOST_GROWTH = 0.05


def artifact(path: Path, seed: int, weights_mib: int) -> Path:
    """Pack a product of a vector with a large matrix."""
    columns = weights_mib * 2**20 // (4 * 256)
    w = np.random.default_rng(seed).standard_normal((256, columns)).astype(np.float32)
    inputs, outputs = (TensorSpec("x", "float32", (1, 256)),), (TensorSpec("y", "float32", (1, columns)),)
    manifest = Manifest(
        model="swap",
        model_version=str(seed),
        target="cpu-x86_64",
        engine=onnxruntime_spec(),
        inputs=inputs,
        outputs=outputs,
    )
    return pack(path, manifest, onnx_members([Node("MatMul", ["x", "w"], ["y"])], inputs, outputs, {"w": w}))


class Caller(Thread):
    """Calls a session until it is told to end."""

    def __init__(self, session: Session, over: Event) -> None:
        super().__init__()
        self.session = session
        self.over = over
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Call."""
        inputs = {"x": np.ones((1, 256), np.float32)}
        while not self.over.is_set():
            start = perf_counter()
            try:
                self.session.run(inputs)
            except EdgecError as e:
                self.failures.append(str(e))
            self.seconds.append(perf_counter() - start)


def resident_mib() -> float:
    """Return how much of this process is in memory, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def measure(swaps: int, callers: int, weights_mib: int) -> dict[str, Any]:
    """Swap under load."""
    with tempfile.TemporaryDirectory() as directory:
        paths = [artifact(Path(directory) / f"{seed}.edgec", seed, weights_mib) for seed in (0, 1)]
        over = Event()
        with load(paths[0], threads=1) as session:
            threads = [Caller(session, over) for _ in range(callers)]
            for thread in threads:
                thread.start()
            memory, taken = [], []
            try:
                for i in range(swaps + SETTLING):
                    start = perf_counter()
                    session.swap(paths[(i + 1) % 2])
                    taken.append(perf_counter() - start)
                    memory.append(resident_mib())
            finally:
                over.set()
                for thread in threads:
                    thread.join()
    seconds = sorted(s for thread in threads for s in thread.seconds)
    failures = [message for thread in threads for message in thread.failures]
    # An even number apart, so that the same artifact is loaded; medians, since calls take memory, too.
    before, after = median(memory[: 2 * SETTLING][SETTLING:]), median(memory[-SETTLING:])
    return {
        "swaps": swaps + SETTLING,
        "callers": callers,
        "weights_mib": weights_mib,
        "calls": len(seconds),
        "failed": len(failures),
        "failures": sorted(set(failures)),
        "call_ms": {"p50": seconds[len(seconds) // 2] * 1e3, "max": seconds[-1] * 1e3},
        "swap_ms": {"median": median(taken) * 1e3, "max": max(taken) * 1e3},
        "resident_mib": {"settled": round(before, 1), "end": round(after, 1), "max": round(max(memory), 1)},
        "growth": round(after / before - 1, 4),
        "kept": not failures and after / before - 1 <= MOST_GROWTH,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--weights-mib", type=int, default=16)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/swap.json")
    arguments = parser.parse_args()
    machine = this_machine()
    result = measure(arguments.swaps, arguments.callers, arguments.weights_mib)
    print(
        f"{result['swaps']} swaps, {result['calls']} calls, {result['failed']} failed; memory "
        f"{result['resident_mib']['settled']} -> {result['resident_mib']['end']} MiB "
        f"({result['growth']:+.1%}): {'kept' if result['kept'] else 'NOT KEPT'}"
    )
    result |= {
        "machine": asdict(machine),
        "versions": {p: version(p) for p in ("edgec", "numpy", "onnxruntime")},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
