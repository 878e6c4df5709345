"""What a process of its own costs a call: the same model in this process and isolated, in turns.

    python -m benchmarks.isolation [--calls 2000] [--output benchmarks/results/isolation.json]

Three sizes of tensors: where they are small, what is measured is two changes of process; where they are
large, two copies in and two out. The model does next to nothing, so that the difference is the transport.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.runtime import Isolation, load
from edgec.runtime.benchmark import this_machine
from edgec.runtime.measurement import measure_interleaved
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"256 B": 64, "64 KiB": 2**14, "4.7 MiB (3x640x640)": 3 * 640 * 640}
GOAL_US = 200


def artifact(path: Path, size: int) -> Path:
    """Pack ``y = -x``."""
    inputs, outputs = (TensorSpec("x", "float32", (size,)),), (TensorSpec("y", "float32", (size,)),)
    manifest = Manifest(
        model="negative",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
    )
    return pack(path, manifest, onnx_members([Node("Neg", ["x"], ["y"])], inputs, outputs))


def measure(size: int, calls: int) -> dict[str, Any]:
    """Measure one size."""
    inputs = {"x": np.ones(size, np.float32)}
    with tempfile.TemporaryDirectory() as directory:
        path = artifact(Path(directory) / "negative.edgec", size)
        with (
            load(path, threads=1) as here,
            load(path, threads=1, isolate=True) as there,
            load(path, threads=1, isolate=Isolation(memory_mib=2048)) as watched,
        ):
            samples = measure_interleaved(
                {
                    "in this process": lambda: here.run(inputs),
                    "isolated": lambda: there.run(inputs),
                    "isolated, memory watched": lambda: watched.run(inputs),
                },
                duration_s=60.0,
                warmup_s=0.5,
                max_rounds=calls,
            )
    rows = {
        name: {"p50_us": s.p50_ms * 1e3, "p90_us": s.p90_ms * 1e3, "p99_us": s.p99_ms * 1e3, "calls": s.n}
        for name, s in samples.items()
    }
    return {**rows, "added_p50_us": (samples["isolated"].p50_ms - samples["in this process"].p50_ms) * 1e3}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=2000, help="of each, per size")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/isolation.json")
    options = parser.parse_args()
    sizes = {name: measure(size, options.calls) for name, size in SIZES.items()}
    for name, row in sizes.items():
        print(f"{name:22} added p50 {row['added_p50_us']:8.1f} us")
    small = next(iter(sizes.values()))["added_p50_us"]
    report = {
        "machine": asdict(this_machine()),
        "onnxruntime": version("onnxruntime"),
        "sizes": sizes,
        "claim": f"small tensors: at most {GOAL_US} us more in the median",
        "kept": small <= GOAL_US,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
