"""What pruning gains in speed, and costs in accuracy, with and without the refit.

    EDGEC_TEST_MODELS=DIR python -m benchmarks.pruning [--parts speed accuracy] [--only NAME ...]

Speed: ResNet18 and MobileNetV2 as structures, whole and with 30 % of the multiply-accumulates gone, in every
engine of the x86-64 targets that is installed, in fp32; whole and pruned are timed side by side in one run,
one thread. Accuracy: labelled models, and ResNet8 by agreement with its source; calibrated on some samples,
judged on others. Results go to benchmarks/results/pruning.json, part by part: an interrupted run keeps
what it has.
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
from edgec.compiler.figures import machine_info, tool_versions
from edgec.compiler.model import load_model
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.pruning import Pruner
from edgec.compiler.samples import Samples
from edgec.compiler.variants import Variant, plain_variant
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
_SAMPLES = 128
_MEASURE_S = 10.0
_ROUNDS = 100


def speed(name: str, folder: Path) -> list[dict[str, Any]]:
    """Time a structure whole and pruned, in every engine."""
    image = pictures(4)
    whole = STRUCTURES[name]()
    pruned = Pruner(whole, [{"image": picture[None]} for picture in image]).prune(RATIO, refit=False)
    models = {"whole": whole, "pruned": pruned.model}
    rows = []
    for target in map(load_target, TARGETS):
        for engine in target.engines:
            alone = replace(target, engines=(engine,))
            row = {"model": name, "engine": engine.name, "macs_removed": pruned.removed}
            try:
                rows.append({**row, **_timed(models, alone, folder, {"image": image[:1]})})
            except EdgecError as e:
                rows.append({**row, "problem": str(e)})
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


def accuracy(name: str, folder: Path) -> list[dict[str, Any]]:
    """Score a trained model pruned by several ratios, with and without the refit."""
    case = make_case(name, folder)
    source = load_model(case.model, dict(case.shapes))
    data = [
        None
        if path is None
        else open_dataset(path, inputs=source.inputs, pipeline=case.pipeline, need_labels=n)
        for path, n in ((case.calibration, False), (case.evaluation, True))
    ]
    variant = plain_variant(
        source, case.pipeline, Samples(calibration=data[0], evaluation=data[1], seed=0, hold_out=False)
    )
    judge = partial(_agreement, case, variant) if case.evaluation is None else _scorer(case, variant)
    whole = judge(variant.model)
    pruner = Pruner(variant.model, variant.spread_inputs(_SAMPLES))
    rows = []
    for ratio in RATIOS:
        row: dict[str, Any] = {
            "model": name,
            "metric": case.metric or "agreement",
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
    parser.add_argument("--parts", nargs="+", choices=("speed", "accuracy"), default=["speed", "accuracy"])
    parser.add_argument("--only", nargs="+", choices=(*STRUCTURES, *CASES), default=[*STRUCTURES, *CASES])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    content: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    content |= {"benchmark": "pruning", "tools": tool_versions()}
    for part, names, measure in (("speed", STRUCTURES, speed), ("accuracy", CASES, accuracy)):
        for name in (n for n in names if n in options.only and part in options.parts):
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(name, Path(folder))
            content.setdefault(part, {})[name] = {"machine": machine_info(), "rows": rows}
            options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
