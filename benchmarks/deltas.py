"""Bytes per update: patches between artifacts of a model and of what became of it, against the full file.

    python -m benchmarks.deltas [--only NAME ...] [--engines NAME ...] [--output deltas.json]

Rows of models and engines that are not run again are kept.

Two models, one of them also at a third of its width, each compiled by edgec before and after a change, per
engine and precision:

* ``last layer``: digits, trained on by gradient descent on its calibration images; MobileNetV2, drawn anew.
* ``all layers``: every weight moved by a normal step of standard deviation 1e-4 or 1e-3, which is what some
  hundred steps of Adam at learning rates of 1e-5 and 1e-4 add up to where gradients have no direction. A
  stand-in for training, harder than it: trained weights move less in most places.
* ``calibration``: the same weights, calibrated on other samples.

MobileNetV2 has random weights (`benchmarks.structures`): their bytes are as random as trained ones' are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import zstandard
from benchmarks.structures import mobilenet_v2, pictures
from numpy.typing import NDArray
from onnx import numpy_helper

from edgec.compiler import CompileOptions, compile_model
from edgec.delta import apply_delta, make_delta
from edgec.errors import EdgecError
from edgec.runtime.benchmark import this_machine
from edgec.targets import load_target

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples/digits"
MODELS = ["digits", "mobilenet_v2", "mobilenet_v2_035"]
WORTH = 0.7  # as `make_delta` has it
NOTE = (
    "Last layer of digits: trained on, 200 steps of gradient descent at 0.05. All other changes of weights "
    "are stand-ins: normal steps of the given standard deviation on every weight, and the last layer of "
    "MobileNetV2 drawn anew. MobileNetV2 has random weights; trained ones were not at hand. Golden vectors "
    "are part of an artifact: those of MobileNetV2 have noisy pictures of 600 kB each, others after a "
    "calibration on other samples. mobilenet_v2_035 is MobileNetV2 at 0.35 of its width."
)
# Name of the target, engine, precisions.
FORMS = (
    ("cpu-x86_64", "onnxruntime", ("fp32", "int8")),
    ("cpu-x86_64", "litert", ("fp32", "int8")),
    ("intel-cpu", "openvino", ("fp32", "fp16", "int8")),
)
ENGINES = sorted({engine for _, engine, _ in FORMS})
Change = Callable[[onnx.ModelProto], onnx.ModelProto]


def digits_samples() -> NDArray[np.uint8]:
    """The calibration images of digits, uint8[n, 8, 8, 1]."""
    with np.load(DIGITS / "calibration.npz") as data:
        return np.asarray(data["image"])


def last_product(model: onnx.ModelProto) -> onnx.NodeProto:
    """The last fully connected layer."""
    found: onnx.NodeProto = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    return found


def replaced(model: onnx.ModelProto, arrays: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """The model with other values of some initializers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return changed


def initializer(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    """The values of an initializer."""
    found = next(t for t in model.graph.initializer if t.name == name)
    return np.asarray(numpy_helper.to_array(found), np.float32)


def redrawn_last_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The last layer with other random weights of the same size."""
    name = last_product(model).input[1]
    old = initializer(model, name)
    return replaced(model, {name: np.random.default_rng(1).permutation(old.reshape(-1)).reshape(old.shape)})


def trained_last_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Digits, whose last layer learns on with the model's own answers as soft labels, sharpened."""
    node = last_product(model)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[0]))
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    images = digits_samples().transpose(0, 3, 1, 2).astype(np.float32) / 16
    feed = session.get_inputs()[0].name
    rows = [session.run([node.input[0]], {feed: image[None]})[0] for image in images]
    features = np.concatenate([np.asarray(row, np.float32) for row in rows])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    old = initializer(model, node.input[1])
    weights = old.T if transposed else old
    labels = np.eye(weights.shape[1], dtype=np.float32)[(features @ weights).argmax(axis=1)]
    for _ in range(200):
        scores = features @ weights
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        weights = weights - np.float32(0.05) * features.T @ (chances - labels) / len(features)
    weights = np.asarray(weights.T if transposed else weights, np.float32, order="C")
    return replaced(model, {node.input[1]: weights})


def moved(step: float) -> Change:
    """A change of every weight by a normal step."""

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        random = np.random.default_rng(2)
        floats = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        arrays = {name: initializer(model, name) for name in floats}
        return replaced(
            model,
            {
                name: (w + random.normal(0, step, w.shape)).astype(np.float32)
                for name, w in arrays.items()
                if w.size > 1
            },
        )

    return change


def models(names: list[str], folder: Path) -> Iterator[tuple[str, onnx.ModelProto, Change, list[Path]]]:
    """Yield name, model, change of the last layer, and two sets of samples to calibrate with."""
    if "digits" in names:
        images = digits_samples()
        halves = [images[0::2], images[1::2]]
        yield "digits", onnx.load(str(DIGITS / "digits.onnx")), trained_last_layer, _saved(folder, halves)
    if "mobilenet_v2" in names:
        yield "mobilenet_v2", mobilenet_v2(), redrawn_last_layer, _shown(folder)
    if "mobilenet_v2_035" in names:
        yield "mobilenet_v2_035", mobilenet_v2(0.35), redrawn_last_layer, _shown(folder)


def _shown(folder: Path) -> list[Path]:
    shown = pictures(16)
    return _saved(folder, [shown[:8], shown[8:]])


def _saved(folder: Path, sets: list[NDArray[Any]]) -> list[Path]:
    paths: list[Path] = []
    for i, images in enumerate(sets):
        paths.append(folder / f"samples-{len(images)}-{images.shape[-1]}-{i}.npz")
        np.savez(paths[-1], image=images)
    return paths


def compiled(
    model: onnx.ModelProto, form: tuple[str, str], precision: str, samples: Path, folder: Path, name: str
) -> Path:
    """Compile a model for one engine in one precision; `folder` is made for it."""
    folder.mkdir(parents=True)
    target = load_target(form[0])
    alone = replace(target, engines=tuple(e for e in target.engines if e.name == form[1]))
    onnx.save(model, str(folder / f"{name}.onnx"))
    options = CompileOptions(
        precision=precision, objective="size", max_drop=None, repair=False, measure_s=0.05, workers=0
    )
    made = compile_model(
        folder / f"{name}.onnx",
        [alone],
        folder / "build",
        pipeline=DIGITS / "pipeline.toml" if name == "digits" else None,
        calibration=samples,
        options=options,
    )
    return made.artifacts[0]


def patched(old: Path, new: Path) -> dict[str, Any]:
    """Make a patch, apply it, and return what it costs beside the full file."""
    patch, out = new.with_suffix(".delta"), new.with_suffix(".out")
    full = new.stat().st_size
    made = make_delta(old, new, patch, worth=10)
    assert made is not None
    apply_delta(old, patch, out, length=made.new_length, sha256=made.new_sha256)
    packed = len(zstandard.ZstdCompressor(level=19).compress(new.read_bytes()))
    return {
        "full_bytes": full,
        "zstd_bytes": packed,
        "delta_bytes": made.size,
        "of_full": round(made.size / full, 4),
        "zstd_of_full": round(packed / full, 4),
        "method": made.method,
        "tried_bytes": made.tried,
        "shipped": made.size <= WORTH * full,
    }


def measure(names: list[str], engines: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per model, engine, precision and change."""
    for name, base, last, (first, second) in models(names, folder):
        changes: dict[str, Change] = {
            "last layer": last,
            "all layers, 1e-4": moved(1e-4),
            "all layers, 1e-3": moved(1e-3),
        }
        for target, engine, precisions in (form for form in FORMS if form[1] in engines):
            for precision in precisions:
                row = {"model": name, "engine": engine, "precision": precision}
                place = folder / name / engine / precision
                try:
                    old = compiled(base, (target, engine), precision, first, place / "base", name)
                    for change, make in changes.items():
                        new = compiled(make(base), (target, engine), precision, first, place / change, name)
                        yield {**row, "change": change, **patched(old, new)}
                    if precision == "int8":
                        new = compiled(base, (target, engine), precision, second, place / "again", name)
                        yield {**row, "change": "calibration", **patched(old, new)}
                except EdgecError as e:
                    yield {**row, "problem": str(e)}


def main() -> None:
    """Compile, patch, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/deltas.json")
    arguments = parser.parse_args()
    kept = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    again = {(model, engine) for model in arguments.only for engine in arguments.engines}
    rows = [row for row in kept if (row["model"], row["engine"]) not in again]
    with tempfile.TemporaryDirectory() as scratch:
        for row in measure(arguments.only, arguments.engines, Path(scratch)):
            rows.append(row)
            print(line(row), flush=True)
            write(arguments.output, rows)


def line(row: dict[str, Any]) -> str:
    """Return a row for the terminal."""
    head = f"{row['model']:13} {row['engine']:12} {row['precision']:5}"
    if "problem" in row:
        return f"{head} {row['problem']}"
    return (
        f"{head} {row['change']:17} full {row['full_bytes']:>9}  zstd {row['zstd_of_full']:.1%}  "
        f"delta {row['delta_bytes']:>9} {row['of_full']:.1%}  {row['method']}"
    )


def write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows; an interrupted run keeps those it has."""
    packages = ("edgec", "numpy", "zstandard", "detools", "onnx", "onnxruntime", "openvino")
    result = {
        "note": NOTE,
        "rows": rows,
        "machine": asdict(this_machine()),
        "versions": {p: version(p) for p in packages},
    }
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
