"""edgec's choice against the one-liners of the tools that it builds on, in one interleaved run per model.

    EDGEC_TEST_MODELS=DIR python -m benchmarks.peers [CASE ...] [--measure-s 1] [--timeout-s 1200]

Peers are called as their documentation shows, with its defaults, and one thread: `quantize_static` and
`quantize_dynamic` of ONNX Runtime, `nncf.quantize` run by OpenVINO, OpenVINO as it is (bf16 where the CPU has
it), and both engines in true fp32. edgec's choice is the faster of what it ships for `cpu-x86_64` and
`intel-cpu`. Everything is scored on the same data by the same gate (one per cent at most, 95 % bound of the
paired difference; without labels 99 % agreement or 20 dB); a peer that misses it counts with its engine's
fp32. ResNet50 and MobileNetV2 with random weights are compiled with the gate off, for speed and compile time.

Each case runs in a process of its own and replaces its entry in `benchmarks/results/peers.json`. Needs the
dependency group `bench` (NNCF).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from benchmarks.cases import MINILM, ROOT, Case, case_names, make_case
from benchmarks.structures import STRUCTURES, pictures
from numpy.typing import NDArray

from edgec.artifact import Pipeline, atomic_write
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.accuracy import Baseline, judge_labelled, judge_unlabelled, measure_baseline
from edgec.compiler.figures import machine_info, tool_versions
from edgec.compiler.model import load_model
from edgec.compiler.samples import Samples
from edgec.compiler.variants import Variant, plain_variant
from edgec.errors import EdgecError
from edgec.evaluation import get_metric, open_dataset
from edgec.runtime import load
from edgec.runtime.measurement import LatencySamples, measure_interleaved, median_ratio

TARGETS = ("cpu-x86_64", "intel-cpu")
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
CALIBRATION = 64  # samples given to the peers; edgec takes what the case has
FP32 = {"onnxruntime": "onnxruntime fp32", "openvino": "openvino f32"}
TOOLS = {
    "onnxruntime fp32": "onnxruntime",
    "onnxruntime quantize_static": "onnxruntime",
    "onnxruntime quantize_dynamic": "onnxruntime",
    "openvino f32": "openvino",
    "openvino default": "openvino",
    "nncf.quantize": "openvino",
}

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Entry = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all by default")
    parser.add_argument("--measure-s", type=float, default=1.0, help="seconds per contestant")
    parser.add_argument("--timeout-s", type=float, default=1200.0, help="for one case")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        with redirect_stdout(sys.stderr):
            entry = one(asked.one, asked.measure_s)
        print(json.dumps(entry))
        return
    for name in asked.cases or names():
        if name == "minilm" and not (MINILM / "minilm.onnx").exists():
            print("minilm: left out: run benchmarks/export_minilm.py first", flush=True)
            continue
        store(asked.output, name, in_process(name, asked.measure_s, asked.timeout_s))


def names() -> list[str]:
    """Return every case that peers can be given: their quantizers take models in fp32."""
    return [*(n for n in case_names() if not n.endswith("-qdq")), *STRUCTURES]


def in_process(name: str, measure_s: float, timeout_s: float) -> Entry:
    """Run a case in a process of its own; a crash or a hang is an entry too."""
    command = [sys.executable, "-m", "benchmarks.peers", "--one", name, "--measure-s", str(measure_s)]
    print(f"== {name}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, timeout=timeout_s, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished within {timeout_s:g} s"}
    if done.returncode:
        return {"failed": f"ended with exit code {done.returncode}"}
    entry: Entry = json.loads(done.stdout.splitlines()[-1])
    return entry


def one(name: str, measure_s: float) -> Entry:
    """Compile, score and time one case."""
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as scratch:
        work = Path(scratch)
        if name in STRUCTURES:
            return structure(name, work, measure_s)
        case = make_case(name, work / "data")
        built, skipped = compiled(case, work / "built", CompileOptions(shapes=case.shapes, name="model"))
        return contest(case, built, skipped, work, measure_s, gate=True)


# -- edgec -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """What edgec ships for a target.

    Attributes:
        path: Where it is.
        candidate: Which candidate won.
        reason: What the accuracy gate said of it.
        compile_s: How long that took.
        cached_s: How long the same build took again; None where it was not repeated.
    """

    path: Path
    candidate: str
    reason: str
    compile_s: float
    cached_s: float | None = None


def compiled(
    case: Case, output: Path, options: CompileOptions, cache: Path | None = None
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Compile a case for each target by itself; return artifacts and, for the others, what stops them."""
    built, skipped = {}, {}
    for target in TARGETS:
        build = partial(
            compile_model,
            case.model,
            [target],
            output / target,
            pipeline=case.pipeline,
            calibration=case.calibration,
            evaluation=case.evaluation,
            metric=case.metric,
            options=options,
            cache_dir=cache,
        )
        start = time.monotonic()
        try:
            result = build()
        except EdgecError as e:
            skipped[target] = str(e)
            continue
        compile_s, cached_s = time.monotonic() - start, None
        if cache is not None:
            start = time.monotonic()
            build()
            cached_s = round(time.monotonic() - start, 2)
        [info] = result.report["artifacts"]
        winner = next(c for c in info["candidates"] if c["status"] == "winner")
        built[target] = Artifact(
            result.artifacts[0], winner["name"], winner.get("reason") or "", round(compile_s, 1), cached_s
        )
    return built, skipped


# -- peers -------------------------------------------------------------------------------------------------


class Reader:
    """What ONNX Runtime's quantizer takes calibration samples from."""

    def __init__(self, samples: Sequence[Arrays]) -> None:
        self._left: Iterator[Arrays] = iter(samples)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


def onnxruntime_call(model: Path) -> Run:
    """Load a model in ONNX Runtime with its defaults, but for one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, dict(inputs)), strict=True))


def openvino_call(model: Any, hints: Mapping[str, Any]) -> Run:
    """Load a model in OpenVINO for latency, with one thread."""
    all_hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, **hints}
    compiled_model = ov.Core().compile_model(model, "CPU", all_hints)
    request = compiled_model.create_infer_request()
    names = [sorted(o.get_names()) for o in compiled_model.outputs]  # a tensor may have several

    def run(inputs: Arrays) -> Arrays:
        results = request.infer(dict(inputs))
        return {name: results[n] for n, aliases in enumerate(names) for name in aliases}

    return run


def peer(tool: str, model: Path, samples: Sequence[Arrays], work: Path) -> Run:
    """Apply a tool with its defaults, and load what it makes."""
    if tool == "onnxruntime fp32":
        return onnxruntime_call(model)
    if tool == "openvino f32":
        return openvino_call(model, {"INFERENCE_PRECISION_HINT": "f32"})
    if tool == "openvino default":
        return openvino_call(model, {})
    if tool == "nncf.quantize":
        import nncf  # here, because only the dependency group `bench` has it

        return openvino_call(nncf.quantize(ov.convert_model(model), nncf.Dataset(samples, dict)), {})
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    made = work / f"{tool.split()[-1]}.onnx"
    if tool == "onnxruntime quantize_static":
        reader: Any = Reader(samples)
        quantize_static(model, made, reader)
    else:
        quantize_dynamic(model, made)
    return onnxruntime_call(made)


class PeerPredictor:
    """A peer in the pipeline of the case."""

    def __init__(self, variant: Variant, run: Run) -> None:
        self._processor, self._run = variant.processor, run

    def predict(self, sample: Any) -> Mapping[str, Any]:
        inputs, context = self._processor.preprocess(sample)
        return self._processor.postprocess(self._run(inputs), context)


# -- the contest -------------------------------------------------------------------------------------------


def contest(
    case: Case,
    built: Mapping[str, Artifact],
    skipped: Mapping[str, str],
    work: Path,
    measure_s: float,
    *,
    gate: bool,
) -> Entry:
    """Make every contestant, score the peers, and time all of them in one interleaved run."""
    variant, baseline = source_of(case)
    pinned = work / "pinned.onnx"
    assert isinstance(variant.reference, onnx.ModelProto)
    onnx.save(variant.reference, pinned)
    samples = list(islice(variant.samples.inputs(variant.processor, variant.inputs), CALIBRATION))
    contestants: dict[str, Entry] = {}
    calls: dict[str, Callable[[], object]] = {}
    for tool in TOOLS:
        entry: Entry = {"by": "peer"}
        contestants[tool] = entry
        start = time.monotonic()
        with foreign_errors(entry):
            run = peer(tool, pinned, samples, work)
            entry["prepare_s"] = round(time.monotonic() - start, 1)
            if gate:
                entry |= judged(run, variant, baseline)
            run(samples[0])
            calls[tool] = partial(run, samples[0])
    sessions = [load(a.path, threads=1) for a in built.values()]
    for (target, artifact), session in zip(built.items(), sessions, strict=True):
        contestants[f"edgec {target}"] = {
            "by": "edgec",
            "candidate": artifact.candidate,
            "within_budget": True,
            "reason": artifact.reason,
            "compile_s": artifact.compile_s,
            "cached_s": artifact.cached_s,
        }
        # Of a model with its pre-processing inside, the same sample is the raw one.
        inputs = samples[0]
        if any(s.name not in inputs or s.dtype != inputs[s.name].dtype.name for s in session.inputs):
            inputs = raw_inputs(case, session.manifest.pipeline, session.inputs, session.outputs)
        calls[f"edgec {target}"] = partial(session.run, dict(inputs))
    load_before = machine_info().get("load_1m")
    latencies = measure_interleaved(calls, duration_s=measure_s * len(calls), min_rounds=30)
    for session in sessions:
        session.close()
    for name, latency in latencies.items():
        contestants[name]["p50_ms"], contestants[name]["min_ms"] = latency.p50_ms, latency.min_ms
        contestants[name]["n"] = latency.n
    return {
        "data": case.data,
        "metric": case.metric,
        "fp32": baseline.score.value if baseline is not None else None,
        "contestants": contestants,
        "not_built": dict(skipped),
        "load_1m": load_before,
        **compared(contestants, latencies, gate),
    }


@contextmanager
def foreign_errors(entry: Entry) -> Iterator[None]:
    """Note why a tool does not take a model."""
    try:
        yield
    # A benchmark of other people's tools: whatever they raise is a result, and none documents what.
    except Exception as e:  # noqa: BLE001
        entry["failed"] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"


def source_of(case: Case) -> tuple[Variant, Baseline | None]:
    """Return the source with its data, as a build sees it, and its score."""
    source = load_model(case.model, case.shapes)
    inputs = source.inputs if case.pipeline is None else None
    data = {
        kind: open_dataset(path, inputs=inputs, pipeline=case.pipeline) if path is not None else None
        for kind, path in (("calibration", case.calibration), ("evaluation", case.evaluation))
    }
    samples = Samples(calibration=data["calibration"], evaluation=data["evaluation"], seed=0)
    variant = plain_variant(source, case.pipeline, samples)
    if data["evaluation"] is None or case.metric is None:
        return variant, None
    return variant, measure_baseline(variant, data["evaluation"], get_metric(case.metric))


def judged(run: Run, variant: Variant, baseline: Baseline | None) -> Entry:
    """Score a peer by edgec's own gate."""
    options = CompileOptions()
    if baseline is not None:
        gate = judge_labelled(PeerPredictor(variant, run), baseline, options)
    else:
        gate = judge_unlabelled(run, variant, options)
    return {
        "within_budget": gate.verdict == "pass",
        "reason": gate.reason,
        "score": gate.score.value if gate.score is not None else None,
    }


def raw_inputs(case: Case, pipeline: Pipeline | None, inputs: Any, outputs: Any) -> Arrays:
    """Return the first sample as an artifact with folded pre-processing takes it."""
    from edgec.compiler.variants import make_processor

    data = open_dataset(case.calibration, pipeline=case.pipeline) if case.calibration else None
    assert data is not None
    return make_processor(case.pipeline if pipeline is None else pipeline, inputs, outputs).preprocess(
        next(iter(data)).data
    )[0]


def compared(contestants: Mapping[str, Entry], latencies: Mapping[str, LatencySamples], gate: bool) -> Entry:
    """Hold edgec's choice against every tool; a tool that misses the budget counts with its fp32."""
    mine = [n for n in latencies if n.startswith("edgec ")]
    if not mine:
        return {"choice": None, "ratios": {}}
    choice = min(mine, key=lambda n: latencies[n].p50_ms)
    ratios: dict[str, Entry] = {}
    for tool, engine in TOOLS.items():
        ok = tool in latencies and (not gate or contestants[tool]["within_budget"])
        counted = tool if ok else FP32[engine]
        if counted not in latencies:
            continue
        ratio = median_ratio(latencies[counted], latencies[choice])
        ratios[tool] = {
            "counted": counted,
            "ratio": round(ratio.ratio, 3),
            "ci95": [round(ratio.lower, 3), round(ratio.upper, 3)],
            "edgec_slower": ratio.upper < 1.0,
        }
    return {"choice": choice, "candidate": contestants[choice]["candidate"], "ratios": ratios}


# -- structures --------------------------------------------------------------------------------------------


def structure(name: str, work: Path, measure_s: float) -> Entry:
    """Compile a structure with 64 samples and the gate off, again from the cache, and time it."""
    model, data = work / f"{name}.onnx", work / "calibration.npz"
    onnx.save(STRUCTURES[name](), model)
    np.savez(data, image=pictures(CALIBRATION))
    case = Case(name=name, model=model, calibration=data, data=f"{CALIBRATION} made-up pictures, gate off")
    options = CompileOptions(max_drop=None, name=name)
    built, skipped = compiled(case, work / "built", options, cache=work / "cache")
    entry = contest(case, built, skipped, work, measure_s, gate=False)
    fp32 = [c["p50_ms"] for n, c in entry["contestants"].items() if n in FP32.values() and "p50_ms" in c]
    if entry["choice"] is not None and fp32:
        chosen = entry["contestants"][entry["choice"]]["p50_ms"]
        entry["over_fastest_fp32"] = round(min(fp32) / chosen, 2)
    for target in built:
        mine = entry["contestants"][f"edgec {target}"]
        engine = "openvino" if target == "intel-cpu" else "onnxruntime"
        own = entry["contestants"][FP32[engine]]
        if "p50_ms" in own:
            mine["over_own_fp32"] = round(own["p50_ms"] / mine["p50_ms"], 2)
    return entry


# -- results -----------------------------------------------------------------------------------------------


def store(path: Path, name: str, entry: Entry) -> None:
    """Replace the entry of a case, and sum up anew."""
    kept = json.loads(path.read_text())["cases"] if path.exists() else {}
    kept[name] = entry
    cases = {n: kept[n] for n in names() if n in kept}
    content = {
        "benchmark": "peers",
        "machine": machine_info(),
        "tools": tool_versions() | nncf_version(),
        "note": "one thread; ratio is a tool's median over that of edgec's choice, above 1 edgec is faster; "
        "load_1m of each case is the machine's before its run",
        "summary": summary({n: e for n, e in cases.items() if n not in STRUCTURES}),
        "cases": cases,
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    print(json.dumps(entry.get("ratios", entry)), flush=True)


def nncf_version() -> dict[str, str]:
    from importlib.metadata import version

    return {"nncf": version("nncf")}


def summary(cases: Mapping[str, Entry]) -> Entry:
    """Return the geometric mean of each tool's ratios, and where edgec's choice is slower beyond noise."""
    found: Entry = {}
    for tool in TOOLS:
        ratios = {n: e["ratios"][tool] for n, e in cases.items() if tool in e.get("ratios", {})}
        if not ratios:
            continue
        found[tool] = {
            "models": len(ratios),
            "geometric_mean": round(
                math.exp(sum(math.log(r["ratio"]) for r in ratios.values()) / len(ratios)), 3
            ),
            "least": min(r["ratio"] for r in ratios.values()),
            "fell_back_to_fp32": [n for n, r in ratios.items() if r["counted"] != tool],
            "edgec_slower": [n for n, r in ratios.items() if r["edgec_slower"]],
        }
    return found


if __name__ == "__main__":
    main()
