"""What edgec costs: ``session.run`` against the engine's own call, and the import of ``edgec.runtime``.

    python benchmarks/overhead.py [--duration-s 5] [--output benchmarks/results/overhead.json]

For each engine and model, two sessions of the same model with the same options, one thread each, are
called in turn, in an order drawn anew for each round, warmed up, as their documentation shows:
``InferenceSession.run(None, {...})`` of ONNX Runtime, ``compiled_model(x)`` of OpenVINO, ``set_tensor``,
``invoke`` and ``get_tensor`` of LiteRT's interpreter, and ``session.run({...})`` of edgec. The claims it
checks: at most 1 microsecond over ONNX Runtime and LiteRT in the median, not slower than OpenVINO, import at
most 30 ms over numpy's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgec.artifact import Artifact, EngineSpec, Manifest, TensorSpec, pack
from edgec.compiler import CompileOptions, compile_model
from edgec.runtime import load
from edgec.runtime.benchmark import LatencySamples, measure_interleaved, median_ratio, this_machine
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec
from edgec.runtime.testing.litert import litert_members, litert_spec
from edgec.runtime.testing.openvino import openvino_members, openvino_spec
from edgec.targets import load_target

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples/digits/digits.onnx"
IMPORTS = 25
MOST_CALLS = 200_000
CLAIMS = {"onnxruntime": 1.0, "openvino": 0.0, "litert": 1.0}  # microseconds added


@dataclass(frozen=True)
class Model:
    """A model to call.

    Attributes:
        name: Of the row.
        members: Its ONNX payload.
        inputs: What it takes.
        outputs: What it gives.
        litert: Its TFLite payload; None where LiteRT has no part in it.
        batch: Size of a named dimension.
    """

    name: str
    members: dict[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    litert: dict[str, bytes] | None = None
    batch: int = 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return inputs, the same at every call."""
        random = np.random.default_rng(0)
        arrays = {}
        for spec in self.inputs:
            shape = [size if isinstance(size, int) else self.batch for size in spec.shape]
            arrays[spec.name] = random.standard_normal(shape).astype(spec.dtype)
        return arrays


def tiny(batch: int | str) -> Model:
    """Four numbers in, three out: nothing but the call."""
    w = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    inputs, outputs = (TensorSpec("x", "float32", (batch, 4)),), (TensorSpec("y", "float32", (batch, 3)),)
    return model_of(
        "4 numbers" if isinstance(batch, int) else "4 numbers, any batch",
        [Node("MatMul", ["x", "w"], ["y"])],
        inputs,
        outputs,
        {"w": w},
    )


def model_of(
    name: str,
    nodes: list[Node],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    weights: dict[str, NDArray[Any]],
) -> Model:
    """Return the same graph for all engines."""
    members = onnx_members(nodes, inputs, outputs, weights)
    return Model(name, members, inputs, outputs, litert_members(nodes, inputs, outputs, weights))


def frame() -> Model:
    """A camera frame in, its mean colour out: an input too large to copy for nothing."""
    inputs = (TensorSpec("image", "float32", (1, 3, 224, 224)),)
    outputs = (TensorSpec("mean", "float32", (1, 3, 1, 1)),)
    nodes = [Node("GlobalAveragePool", ["image"], ["mean"])]
    return Model("224x224 frame", onnx_members(nodes, inputs, outputs), inputs, outputs)


def two_inputs() -> Model:
    """Two inputs and two outputs, as recurrent models have."""
    w = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    inputs = (TensorSpec("x", "float32", (1, 64)), TensorSpec("state", "float32", (1, 64)))
    outputs = (TensorSpec("y", "float32", (1, 64)), TensorSpec("new_state", "float32", (1, 64)))
    nodes = [
        Node("Add", ["x", "state"], ["s"]),
        Node("MatMul", ["s", "w"], ["y"]),
        Node("Relu", ["y"], ["new_state"]),
    ]
    return model_of("64 numbers and a state", nodes, inputs, outputs, {"w": w})


def digits() -> Model | None:
    """The example model; None where it is not there."""
    if not DIGITS.is_file():
        return None
    session = ort.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
    inputs, outputs = (
        tuple(
            TensorSpec(n.name, types[n.type], tuple(d if isinstance(d, int) else "n" for d in n.shape))
            for n in nodes
        )
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Model("digits", {"model.onnx": DIGITS.read_bytes()}, inputs, outputs, digits_for_litert())


def digits_for_litert() -> dict[str, bytes]:
    """Return the example model as edgec's compiler writes it for LiteRT."""
    cpu = load_target("cpu-x86_64")
    target = replace(cpu, name="litert", engines=tuple(e for e in cpu.engines if e.name == "litert"))
    with tempfile.TemporaryDirectory() as folder:
        options = CompileOptions(precision="fp32", fold="off", measure_s=0.1)
        made = compile_model(DIGITS, [target], folder, options=options)
        with Artifact.open(made.artifacts[0]) as artifact:
            return {"model.tflite": bytes(artifact.read("model.tflite"))}


def raw_onnxruntime(model: Model, directory: Path) -> Callable[[], object]:
    """Return the call that the documentation of ONNX Runtime shows."""
    write(model.members, directory)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = model.arrays()
    return lambda: session.run(None, feeds)


def raw_openvino(model: Model, directory: Path) -> Callable[[], object]:
    """Return the call that the documentation of OpenVINO shows."""
    write(openvino_members(model.members), directory)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(str(directory / "model.xml"), "CPU", hints)
    arrays = model.arrays()
    x: Any = next(iter(arrays.values())) if len(arrays) == 1 else arrays
    return lambda: compiled(x)


def raw_litert(model: Model, directory: Path) -> Callable[[], object]:
    """Return the calls that the documentation of LiteRT shows."""
    members, _ = payload(model, "litert")
    write(members, directory)
    interpreter = Interpreter(model_path=str(directory / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    taken = {d["name"]: d["index"] for d in interpreter.get_input_details()}
    feeds = [(taken[name], array) for name, array in model.arrays().items()]
    wanted = [d["index"] for d in interpreter.get_output_details()]

    def call() -> list[Any]:
        for index, array in feeds:
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in wanted]

    return call


def payload(model: Model, engine: str) -> tuple[dict[str, bytes], EngineSpec]:
    """Return the members of a model for an engine, and how they are run."""
    if engine == "onnxruntime":
        return model.members, onnxruntime_spec(weights="weights.bin" in model.members)
    if engine == "litert":
        if model.litert is None:
            raise ValueError(f"LiteRT has no part in {model.name}")
        return model.litert, litert_spec()
    members = openvino_members(model.members)
    return members, openvino_spec(weights="model.bin" in members)


def edgec_call(model: Model, engine: str, directory: Path) -> Callable[[], object]:
    """Return the call of a session of edgec."""
    members, spec = payload(model, engine)
    manifest = Manifest(
        model=model.name,
        model_version="1",
        target="cpu-x86_64",
        engine=spec,
        inputs=model.inputs,
        outputs=model.outputs,
    )
    session = load(pack(directory / f"{engine}.edgec", manifest, members), threads=1)
    feeds = model.arrays()
    return lambda: session.run(feeds)


def write(members: dict[str, bytes], directory: Path) -> None:
    """Write a payload to files."""
    for name, data in members.items():
        (directory / name).write_bytes(data)


def measure_call(model: Model, engine: str, duration_s: float) -> dict[str, Any]:
    """Measure one engine on one model, side by side with edgec."""
    raw = {"onnxruntime": raw_onnxruntime, "openvino": raw_openvino, "litert": raw_litert}[engine]
    with tempfile.TemporaryDirectory() as directory:
        calls = {"raw": raw(model, Path(directory)), "edgec": edgec_call(model, engine, Path(directory))}
        measured = measure_interleaved(calls, duration_s=duration_s, warmup_s=0.5, max_rounds=MOST_CALLS)
    ratio = median_ratio(measured["edgec"], measured["raw"])
    added_us = (measured["edgec"].p50_ms - measured["raw"].p50_ms) * 1e3
    return {
        "engine": engine,
        "model": model.name,
        "calls": measured["raw"].n,
        "raw_us": figures_us(measured["raw"]),
        "edgec_us": figures_us(measured["edgec"]),
        "added_us": round(added_us, 3),
        "ratio": {"median": round(ratio.ratio, 4), "ci95": [round(ratio.lower, 4), round(ratio.upper, 4)]},
        "kept": added_us <= CLAIMS[engine],
    }


def figures_us(samples: LatencySamples) -> dict[str, float]:
    """Return median, 95th percentile, minimum and spread in microseconds."""
    p5, p50, p95 = (samples.percentile_ms(percent) * 1e3 for percent in (5, 50, 95))
    return {
        "median": round(p50, 3),
        "p95": round(p95, 3),
        "min": round(samples.min_ms * 1e3, 3),
        "spread_p5_p95": round(p95 - p5, 3),
    }


def measure_import() -> dict[str, Any]:
    """Measure what importing edgec.runtime adds to importing numpy, in fresh processes."""
    code = (
        "import time, numpy; t = time.perf_counter(); import edgec.runtime; "
        "print((time.perf_counter() - t) * 1e3)"
    )
    with tempfile.TemporaryDirectory() as compiled:
        # Byte code as an installed package has it, whatever the environment says.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        added = [_printed_number(code, environment) for _ in range(IMPORTS + 1)][1:]  # the first one compiles
    return {
        "processes": IMPORTS,
        "added_ms": {
            "median": round(median(added), 2),
            "min": round(min(added), 2),
            "max": round(max(added), 2),
        },
        "kept": median(added) <= 30,
    }


def _printed_number(code: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--duration-s", type=float, default=5.0, help="of each comparison")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/overhead.json")
    arguments = parser.parse_args()
    machine = this_machine()
    models = [tiny(1), tiny("n"), two_inputs(), frame(), *filter(None, [digits()])]
    rows = []
    for engine in CLAIMS:
        for model in models if engine != "litert" else [m for m in models if m.litert]:
            row = measure_call(model, engine, arguments.duration_s)
            rows.append(row)
            print(
                f"{engine:12} {model.name:24} raw {row['raw_us']['median']:9.2f}"
                f"  edgec {row['edgec_us']['median']:9.2f}"
                f"  added {row['added_us']:+8.2f} us  {'kept' if row['kept'] else 'NOT KEPT'}"
            )
    imports = measure_import()
    print(
        f"import of edgec.runtime adds {imports['added_ms']['median']} ms to numpy's (median): "
        f"{'kept' if imports['kept'] else 'NOT KEPT'}"
    )
    result = {
        "what": "session.run against the engine's documented call, interleaved; import over numpy's",
        "method": {
            "warm_up_s": 0.5,
            "duration_s": arguments.duration_s,
            "most_calls": MOST_CALLS,
            "threads": 1,
            "order": "drawn anew for each round",
            "interval": "circular block bootstrap over rounds, 1000 resamples",
        },
        "claims": {f"{engine}_added_us": most for engine, most in CLAIMS.items()} | {"import_ms": 30.0},
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {p: version(p) for p in ("edgec", "numpy", "onnxruntime", "openvino", "ai-edge-litert")},
        "calls": rows,
        "import": imports,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
