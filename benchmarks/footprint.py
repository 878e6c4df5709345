"""What edgec weighs: resident memory over the bare engine, and the size of its wheel.

    python -m benchmarks.footprint [--processes 5] [--output benchmarks/results/footprint.json]

A process imports numpy and an engine, loads a model from its file and runs it 100 times, on one thread;
another does the same through `edgec.runtime.load`. What each then has in memory (VmRSS) is compared, in an
order drawn anew for each round: a small model, and one with 64 MiB of weights, which somebody could hold
twice. The claims it checks: at most 10 MB over the bare engine in the median; at most 1 MB of wheel without
what no device needs, which is the compiler and the fleet's server.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.overhead import ROOT, Model, model_of, payload, tiny, write
from tests.wheel import wheel_sizes

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.runtime.benchmark import this_machine
from edgec.runtime.testing import Node

MOST_ADDED_MB = 10.0
MOST_WHEEL_MB = 1.0
ENGINES = ("onnxruntime", "openvino", "litert")

AFTER = """
for _ in range(100):
    call()
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")))
"""
BARE = {
    "onnxruntime": """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
feeds = {"x": np.ones((1, int(sys.argv[2])), np.float32)}
call = lambda: session.run(None, feeds)
""",
    "openvino": """
import sys, numpy as np, openvino as ov
hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
compiled = ov.Core().compile_model(sys.argv[1] + "/model.xml", "CPU", hints)
x = np.ones((1, int(sys.argv[2])), np.float32)
call = lambda: compiled(x)
""",
    "litert": """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1] + "/model.tflite", num_threads=1)
interpreter.allocate_tensors()
into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
x = np.ones((1, int(sys.argv[2])), np.float32)
def call():
    interpreter.set_tensor(into, x)
    interpreter.invoke()
    return interpreter.get_tensor(out)
""",
}
OURS = """
import sys, numpy as np
from edgec.runtime import load
session = load(sys.argv[1] + "/model.edgec", threads=1)
feeds = {"x": np.ones((1, int(sys.argv[2])), np.float32)}
call = lambda: session.run(feeds)
"""


def large() -> Model:
    """A product with 64 MiB of weights."""
    w = np.random.default_rng(0).standard_normal((256, 65536)).astype(np.float32)
    inputs, outputs = (TensorSpec("x", "float32", (1, 256)),), (TensorSpec("y", "float32", (1, 65536)),)
    return model_of("64 MiB of weights", [Node("MatMul", ["x", "w"], ["y"])], inputs, outputs, {"w": w})


def prepare(model: Model, engine: str, folder: Path) -> None:
    """Write a model as the engine's file and as an artifact."""
    members, spec = payload(model, engine)
    write(members, folder)
    manifest = Manifest(
        model="footprint",
        model_version="1",
        target="cpu-x86_64",
        engine=spec,
        inputs=model.inputs,
        outputs=model.outputs,
    )
    pack(folder / "model.edgec", manifest, members)


def resident_mb(code: str, folder: Path, columns: int) -> float:
    """Return what a process has in memory after its calls, in 1e6 bytes."""
    command = [sys.executable, "-c", code + AFTER, str(folder), str(columns)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout) * 1024 / 1e6


def measure_memory(model: Model, engine: str, processes: int) -> dict[str, Any]:
    """Measure one engine on one model."""
    columns = model.inputs[0].shape[1]
    assert isinstance(columns, int)
    taken: dict[str, list[float]] = {"bare": [], "edgec": []}
    codes = {"bare": BARE[engine], "edgec": OURS}
    with tempfile.TemporaryDirectory() as name:
        prepare(model, engine, Path(name))
        for _ in range(processes):
            for which in random.sample(list(codes), len(codes)):
                taken[which].append(resident_mb(codes[which], Path(name), columns))
    added = median(taken["edgec"]) - median(taken["bare"])
    return {
        "engine": engine,
        "model": model.name,
        "processes": processes,
        "bare_mb": {"median": round(median(taken["bare"]), 2), "max": round(max(taken["bare"]), 2)},
        "edgec_mb": {"median": round(median(taken["edgec"]), 2), "max": round(max(taken["edgec"]), 2)},
        "added_mb": round(added, 2),
        "kept": added <= MOST_ADDED_MB,
    }


def measure_wheel() -> dict[str, Any]:
    """Build the wheel, and return its size, whole and without what no device needs."""
    with tempfile.TemporaryDirectory() as folder:
        whole, of_a_device = wheel_sizes(Path(folder))
    return {
        "whole_mb": round(whole / 1e6, 3),
        "of_a_device_mb": round(of_a_device / 1e6, 3),
        "kept": of_a_device <= MOST_WHEEL_MB * 1e6,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=5, help="of each kind")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/footprint.json")
    arguments = parser.parse_args()
    machine = this_machine()
    rows = []
    for engine in ENGINES:
        for model in (tiny(1), large()):
            row = measure_memory(model, engine, arguments.processes)
            rows.append(row)
            print(
                f"{engine:12} {model.name:18} bare {row['bare_mb']['median']:7.1f}"
                f"  edgec {row['edgec_mb']['median']:7.1f}  added {row['added_mb']:+6.1f} MB"
                f"  {'kept' if row['kept'] else 'NOT KEPT'}",
                flush=True,
            )
    wheel = measure_wheel()
    print(f"wheel {wheel['whole_mb']} MB, of a device {wheel['of_a_device_mb']} MB")
    result = {
        "what": "resident memory over the bare engine after 100 calls, in processes of their own; the wheel",
        "claims": {"added_mb": MOST_ADDED_MB, "wheel_mb": MOST_WHEEL_MB},
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {p: version(p) for p in ("edgec", "numpy", "onnxruntime", "openvino", "ai-edge-litert")},
        "memory": rows,
        "wheel": wheel,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
