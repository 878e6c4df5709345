"""How long a compile takes with 64 samples for calibration: first, and again from the cache.

    EDGEC_TEST_MODELS=DIR python -m benchmarks.compile_time [CASE ...] [--target T ...] [--output F]

`edgec compile` in a process of its own, with an empty cache, as from a shell: calibration, every candidate,
parity, accuracy and measurement, with the options of a new user. The same command is then run again. ResNet50
and MobileNetV2 have random weights (`--max-drop none`); MobileNetV2 as its author quantized it is judged on
the half of the 64 photos that does not calibrate, with the default budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.cases import ROOT, crops
from benchmarks.structures import STRUCTURES, pictures

from edgec.artifact import atomic_write
from edgec.compiler.figures import machine_info, tool_versions

RESULTS = ROOT / "benchmarks" / "results" / "compile_time.json"
TARGETS = ("cpu-x86_64", "intel-cpu", "jetson")
QUANTIZED = "mobilenet_v2, quantized by its author"
SAMPLES = 64
_GOALS_S = {"mobilenet_v2": 60.0, QUANTIZED: 60.0, "resnet50": 180.0}
_CACHED_GOAL_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(_GOALS_S))
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if unknown := set(asked.cases) - set(_GOALS_S):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(_GOALS_S)}")
    for name in asked.cases or _GOALS_S:
        with tempfile.TemporaryDirectory(prefix="edgec-compile-time-") as scratch:
            prepared = prepare(name, Path(scratch))
            if prepared is None:
                print(f"{name}: left out: EDGEC_TEST_MODELS names no folder of models", flush=True)
                continue
            for target in asked.target or TARGETS:
                row = measured(prepared, target, Path(scratch) / target)
                print(f"{name} {target}: {row}", flush=True)
                store(asked.output, name, target, row)


def prepare(name: str, work: Path) -> list[str] | None:
    """Write what a case needs; return its part of the command line, None where its model is not at hand."""
    data = work / "calibration.npz"
    if name in STRUCTURES:
        model = work / f"{name}.onnx"
        onnx.save(STRUCTURES[name](), model)
        np.savez(data, image=pictures(SAMPLES))
        return [str(model), "--calibration", str(data), "--max-drop", "none"]
    models = os.environ.get("EDGEC_TEST_MODELS")
    if not models:
        return None
    np.savez(data, input=crops(Path(models), SAMPLES, 224))
    folder = Path(models) / "coral_mobilenet_v2_224_quant" / "derived"
    return [str(folder / "mobilenet_v2_1.0_224_quant.qdq.onnx"), "--calibration", str(data)]


def measured(prepared: list[str], target: str, work: Path) -> dict[str, Any]:
    """Compile with an empty cache, and again.

    Raises:
        RuntimeError: The command failed.
    """
    command = [
        str(Path(sys.executable).with_name("edgec")),
        "compile",
        *prepared,
        "--target",
        target,
        "--json",
    ]
    command += ["--cache-dir", str(work / "cache"), "-o", str(work / "built")]
    took: list[float] = []
    load = machine_info().get("load_1m")
    report: dict[str, Any] = {}
    for _ in range(2):
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        took.append(round(time.monotonic() - start, 2))
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
            )
        report = json.loads(done.stdout)
    [artifact] = report["artifacts"]
    winner = next(c for c in artifact["candidates"] if c["status"] == "winner")
    return {
        "ships": winner["name"],
        "candidates": len(artifact["candidates"]),
        "compile_s": took[0],
        "again_s": took[1],
        "load_1m": load,
    }


def store(path: Path, name: str, target: str, row: dict[str, Any]) -> None:
    """Replace one row."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    rows.setdefault(name, {})[target] = row
    content = {
        "benchmark": "compile_time",
        "machine": machine_info(),
        "tools": tool_versions(),
        "note": f"{SAMPLES} samples calibrate; whole processes, with starting Python",
        "goals": {"compile_s": _GOALS_S, "again_s": _CACHED_GOAL_S},
        "rows": {n: rows[n] for n in _GOALS_S if n in rows},
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
