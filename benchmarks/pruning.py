"""What pruning gains in speed, and costs in accuracy, with and without the refit.

    EDGEC_TEST_MODELS=DIR python -m benchmarks.pruning [--parts PART ...] [--only NAME ...] [--output FILE]

speed: ResNet18 and MobileNetV2 as structures, whole and with 30 % of the multiply-accumulates gone, in every
engine of the x86-64 targets that is installed, in fp32; whole and pruned are timed side by side in one run,
one thread. accuracy: labelled models, and ResNet8 by agreement with its source; calibrated on some samples,
judged on others. zeros: the same structures with nine of ten weights zero, or two of four: whether
any of these engines computes faster then. sparsity: the labelled models with zeros, weights only cut, and
others making up for them. vela: what zeros save on an Ethos-U, as Vela estimates. Results go to
benchmarks/results/pruning.json, part by part: an interrupted run keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.cases import ROOT, Case, make_case
from benchmarks.structures import mobilenet_v2, pictures, resnet18

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.accuracy import measure_baseline, score_graph
from edgec.compiler.calibration import calibrate
from edgec.compiler.figures import machine_info, tool_versions
from edgec.compiler.model import load_model
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.passes.simplify import simplify
from edgec.compiler.pruning import Pruner, parse_pattern, sparsify
from edgec.compiler.samples import Samples
from edgec.compiler.tflite import Mode, write_tflite
from edgec.compiler.variants import Variant, plain_variant
from edgec.compiler.vela import run_vela
from edgec.errors import CompileError, EdgecError
from edgec.evaluation import get_metric, open_dataset
from edgec.runtime import load
from edgec.runtime.measurement import measure_interleaved, median_ratio
from edgec.targets import Target, load_target

OUTPUT = ROOT / "benchmarks/results/pruning.json"
RATIO = 0.3
RATIOS = (0.1, 0.2, 0.3, 0.5)
CASES = ("digits", "vibration", "dscnn", "nab_dense", "nab_conv", "resnet8")
TARGETS = ("cpu-x86_64", "intel-cpu")
STRUCTURES = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
PATTERNS = ("2:4", "unstructured:0.5", "unstructured:0.7", "unstructured:0.8")
ZEROS = ("2:4", "unstructured:0.9")
ETHOS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
_SAMPLES = 128
_MEASURE_S = 10.0
_ROUNDS = 100


def speed(name: str, folder: Path) -> list[dict[str, Any]]:
    """Time a structure whole and pruned, in every engine."""
    image = pictures(4)
    whole = STRUCTURES[name]()
    pruned = Pruner(whole, [{"image": picture[None]} for picture in image]).prune(RATIO, refit=False)
    row = {"model": name, "macs_removed": pruned.removed}
    return _timed_everywhere(row, {"whole": whole, "pruned": pruned.model}, folder)


def zeros(name: str, folder: Path) -> list[dict[str, Any]]:
    """Time a structure whole and with zeros, in every engine."""
    whole, samples = STRUCTURES[name](), [{"image": picture[None]} for picture in pictures(1)]
    rows = []
    for text in ZEROS:
        sparse = sparsify(whole, parse_pattern(text), samples, compensate=False)
        row = {"model": name, "pattern": text, "zeros": sparse.zeros}
        rows += _timed_everywhere(row, {"whole": whole, "pruned": sparse.model}, folder)
    return rows


def _timed_everywhere(
    row: dict[str, Any], models: dict[str, onnx.ModelProto], folder: Path
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for target in map(load_target, TARGETS):
        for engine in target.engines:
            alone = replace(target, engines=(engine,))
            made = {**row, "engine": engine.name}
            try:
                rows.append({**made, **_timed(models, alone, folder, {"image": pictures(1)})})
            except EdgecError as e:
                rows.append({**made, "problem": str(e)})
            print(rows[-1], flush=True)
    return rows


def _timed(
    models: dict[str, onnx.ModelProto], target: Target, folder: Path, sample: dict[str, Any]
) -> dict[str, Any]:
    options = CompileOptions(precision="fp32", max_drop=None, measure_s=0.1, workers=0)
    with ExitStack() as stack:
        calls, sizes = {}, {}
        for form, model in models.items():
            path = folder / f"{form}.onnx"
            onnx.save(model, path)
            built = compile_model(path, [target], folder / target.engines[0].name, options=options).artifacts[
                0
            ]
            sizes[form] = built.stat().st_size
            calls[form] = partial(stack.enter_context(load(built, threads=1)).run, sample)
        found = measure_interleaved(calls, duration_s=_MEASURE_S, min_rounds=_ROUNDS, seed=0)
    ratio = median_ratio(found["pruned"], found["whole"])
    return {
        "p50_ms": {form: latency.p50_ms for form, latency in found.items()},
        "p90_ms": {form: latency.p90_ms for form, latency in found.items()},
        "size_bytes": sizes,
        "time_ratio": ratio.ratio,
        "time_ratio_interval": [ratio.lower, ratio.upper],
        "rounds": found["whole"].n,
    }


def _variant_and_judge(name: str, folder: Path) -> tuple[Variant, str, Any]:
    """Return a trained model, what is scored, and what scores a form of it."""
    case = make_case(name, folder)
    source = load_model(case.model, dict(case.shapes))
    data = [
        None
        if path is None
        else open_dataset(path, inputs=source.inputs, pipeline=case.pipeline, need_labels=n)
        for path, n in ((case.calibration, False), (case.evaluation if case.metric else None, True))
    ]
    variant = plain_variant(
        source, case.pipeline, Samples(calibration=data[0], evaluation=data[1], seed=0, hold_out=False)
    )
    judge = _scorer(case, variant) if case.metric else partial(_agreement, case, variant)
    return variant, case.metric or "agreement", judge


def sparsity(name: str, folder: Path) -> list[dict[str, Any]]:
    """Score a trained model with patterns of zeros, weights only cut, and others making up for them.

    For 2:4, every layer whose channels allow it has them, however small it is.
    """
    variant, metric, judge = _variant_and_judge(name, folder)
    samples = variant.spread_inputs(_SAMPLES)
    rows = []
    for text in PATTERNS:
        pattern = replace(parse_pattern(text), least_inputs=16, least_outputs=8)
        row: dict[str, Any] = {
            "model": name,
            "metric": metric,
            "pattern": text,
            "whole": judge(variant.model),
        }
        for compensate in (False, True):
            try:
                sparse = sparsify(variant.model, pattern, samples, compensate=compensate)
            except EdgecError as e:
                row["problem"] = str(e)
                break
            row |= {"zeros": sparse.zeros, "layers": len(sparse.layers)}
            row["compensated" if compensate else "cut"] = judge(sparse.model)
        rows.append(row)
        print(row, flush=True)
    return rows


def vela(name: str, folder: Path) -> list[dict[str, Any]]:
    """Ask Vela what a structure in int8 takes, whole and with zeros."""
    whole, samples = STRUCTURES[name](), [{"image": picture[None]} for picture in pictures(1)]
    simple = simplify(whole)
    forms = {"whole": simple}
    for text in PATTERNS:
        forms[text] = sparsify(simple, parse_pattern(text), samples, compensate=False).model
    rows = []
    for text, model in forms.items():
        written = write_tflite(model, mode=Mode.INT8, table=calibrate(model, samples), io="int8")
        for target in ETHOS:
            place = folder / f"{target} {text}".replace(":", " ")
            place.mkdir()
            (place / "model.tflite").write_bytes(written.data)
            made, report = run_vela(place / "model.tflite", dict(load_target(target).accelerator), place)
            row = {
                "model": name,
                "target": target,
                "pattern": text,
                "estimated_ms": report.inference_ms,
                "file_bytes": made.stat().st_size,
                **report.figures,
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def accuracy(name: str, folder: Path) -> list[dict[str, Any]]:
    """Score a trained model pruned by several ratios, with and without the refit."""
    variant, metric, judge = _variant_and_judge(name, folder)
    whole = judge(variant.model)
    pruner = Pruner(variant.model, variant.spread_inputs(_SAMPLES))
    rows = []
    for ratio in RATIOS:
        row: dict[str, Any] = {
            "model": name,
            "metric": metric,
            "ratio": ratio,
            "whole": whole,
        }
        for refit in (False, True):
            try:
                pruned = pruner.prune(ratio, refit=refit)
            except CompileError as e:
                row["problem"] = str(e)
                break
            row["macs_removed"] = pruned.removed
            row["refitted" if refit else "cut"] = judge(pruned.model)
        rows.append(row)
        print(row, flush=True)
    return rows


def _scorer(case: Case, variant: Variant) -> Any:
    evaluation, metric = variant.samples.evaluation, get_metric(str(case.metric))
    assert evaluation is not None
    baseline = measure_baseline(variant, evaluation, metric)
    return lambda model: score_graph(model, variant, baseline).score.value


def _agreement(case: Case, variant: Variant, model: onnx.ModelProto) -> float:
    """Return how often the first class is the source's."""
    assert case.agreement is not None
    with np.load(case.agreement) as arrays:
        (samples,) = ([{name: x[None]} for x in array] for name, array in arrays.items())
    output = variant.outputs[0].name
    with (
        ReferenceProgram(variant.model, optimize=True) as source,
        ReferenceProgram(model, optimize=True) as other,
    ):
        same = [np.argmax(source.run(s)[output]) == np.argmax(other.run(s)[output]) for s in samples]
    return float(np.mean(same))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {
        "speed": (STRUCTURES, speed),
        "accuracy": (CASES, accuracy),
        "zeros": (STRUCTURES, zeros),
        "sparsity": (CASES, sparsity),
        "vela": (("mobilenet_v2",), vela),
    }
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--only", nargs="+", choices=(*STRUCTURES, *CASES), default=[*STRUCTURES, *CASES])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    content: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    content |= {"benchmark": "pruning", "tools": tool_versions()}
    for part, (names, measure) in parts.items():
        for name in (n for n in names if n in options.only and part in options.parts):
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(name, Path(folder))
            content.setdefault(part, {})[name] = {"machine": machine_info(), "rows": rows}
            options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
