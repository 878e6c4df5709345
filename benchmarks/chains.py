"""What a chain costs over the same calls written out by hand.

    python benchmarks/chains.py [--models FOLDER] [--duration-s 10] [--output benchmarks/results/chains.json]

Two chains: a page with six handwritten digits (``examples/chain``: find ink, cut out, read each);
and, where the folder of real models has DTLN, a block of 8 ms of sound
through its two halves. The code by hand does what an application would: the same sessions, the chain's own
since two of one artifact differ by several percent, numpy, the state in variables. Both are called in turn,
interleaved, one thread each, and what is measured is processor time. Goal: at most 5 % more in the median.
Before that, both compute the same on 50 samples.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import process_time_ns
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack, read_pipeline
from edgec.runtime import Session, load_chain
from edgec.runtime.benchmark import this_machine
from edgec.runtime.chains import benchmark_chain
from edgec.runtime.measurement import measure_interleaved, median_ratio
from edgec.runtime.testing import onnxruntime_spec

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/chain"
MOST_OVERHEAD = 1.05
BLOCK, SHIFT = 512, 128
Array = NDArray[Any]
Both = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def pack_onnx(path: Path, model: bytes, pipeline: Pipeline | None = None) -> None:
    """Pack a model for ONNX Runtime as it is, in fp32."""
    graph = onnx.load_from_string(model).graph
    manifest = Manifest(
        model=path.stem,
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=tuple(map(_spec, graph.input)),
        outputs=tuple(map(_spec, graph.output)),
        pipeline=pipeline,
    )
    pack(path, manifest, {"model.onnx": model})


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value or 1 for d in tensor.shape.dim)  # one sample: free sizes are 1
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def write_page_chain(folder: Path) -> Path:
    """Put the chain of ``examples/chain`` into a folder, with its models packed as they are."""
    detector = runpy.run_path(str(EXAMPLE / "detector.py"))["detector"]()
    found = folder / "detector-cpu-x86_64.edgec"
    pack_onnx(found, detector.SerializeToString(), read_pipeline(EXAMPLE / "detector.toml"))
    digits = (ROOT / "examples/digits/digits.onnx").read_bytes()
    pack_onnx(folder / "digits-cpu-x86_64.edgec", digits, read_pipeline(EXAMPLE / "digit.toml"))
    path = folder / "page.chain.toml"
    path.write_text((EXAMPLE / "page.chain.toml").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def read_page_by_hand(detector: Session, digits: Session) -> Callable[[Array], list[str]]:
    """Return what reads a page without a chain."""

    def read(page: Array) -> list[str]:
        found = detector.predict(page)
        boxes = found["boxes"][found["scores"] >= 0.4][:32]
        texts = []
        for box in boxes[np.argsort(boxes[:, 0], kind="stable")]:
            left, top, right, bottom = box.astype(int).tolist()
            side = max(right - left, bottom - top)
            left -= (side - (right - left) + 1) // 2
            top -= (side - (bottom - top) + 1) // 2
            crop = np.zeros((side, side, 1), np.uint8)
            y, x = max(top, 0), max(left, 0)
            inner = page[y : top + side, x : left + side]
            crop[y - top : y - top + inner.shape[0], x - left : x - left + inner.shape[1]] = inner
            texts.append(digits.predict(crop)["labels"][0])
        return texts

    return read


DTLN = """
name = "dtln"
outputs = {samples = "clean"}
inputs.samples = {shape = [128]}

[[stages]]
name = "block"
step = "window"
input = "samples"
size = 512

[[stages]]
name = "noisy"
step = "rfft"
input = "block"

[[stages]]
name = "first"
artifact = "first.edgec"
inputs = {input_2 = "noisy.magnitude"}
state = {input = "input_3", output = "tf_op_layer_stack_2"}

[[stages]]
name = "masked"
step = "multiply"
a = "noisy.spectrum"
b = "first"

[[stages]]
name = "estimate"
step = "irfft"
input = "masked"

[[stages]]
name = "second"
artifact = "second.edgec"
inputs = {input_4 = "estimate"}
state = {input = "input_5", output = "tf_op_layer_stack_5"}

[[stages]]
name = "clean"
step = "overlap_add"
input = "second"
hop = 128
"""


def write_sound_chain(folder: Path, models: Path) -> Path:
    """Put a chain of DTLN's halves into a folder, packed as they are."""
    for name, source in (("first", "model_1.onnx"), ("second", "model_2.onnx")):
        pack_onnx(folder / f"{name}.edgec", (models / "dtln_denoise" / source).read_bytes())
    path = folder / "dtln.chain.toml"
    path.write_text(DTLN, encoding="utf-8")
    return path


def denoise_by_hand(first: Session, second: Session) -> Callable[[Array], Array]:
    """Return what takes noise out of blocks of sound without a chain."""
    block, sum_ = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    state_1, state_2 = np.zeros((2, 1, 2, 128, 2), np.float32)

    def denoise(samples: Array) -> Array:
        nonlocal block, sum_, state_1, state_2
        block = np.concatenate([block[SHIFT:], samples])
        spectrum = np.fft.rfft(block)
        magnitude = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
        outputs = first.run({"input_2": magnitude, "input_3": state_1})
        state_1 = outputs["tf_op_layer_stack_2"]
        masked = np.fft.irfft(spectrum * outputs["activation_2"].ravel()).astype(np.float32)
        outputs = second.run({"input_4": masked.reshape(1, 1, -1), "input_5": state_2})
        state_2 = outputs["tf_op_layer_stack_5"]
        sum_ = np.concatenate([sum_[SHIFT:], np.zeros(SHIFT, np.float32)])
        sum_ += outputs["conv1d_3"].ravel()
        return np.asarray(sum_[:SHIFT])

    return denoise


def page_case(folder: Path) -> tuple[Path, Both, list[Array]]:
    """Return the chain of pages, both ways of calling it, and samples."""
    path = write_page_chain(folder)
    rng, make = np.random.default_rng(0), runpy.run_path(str(EXAMPLE / "pages.py"))["make_page"]
    chain = load_chain(path, threads=1)
    by_hand = read_page_by_hand(chain.sessions["found"], chain.sessions["read"])
    calls: Both = by_hand, lambda page: chain.predict(page)["labels"]
    return path, calls, [make(rng)[0] for _ in range(50)]


def sound_case(folder: Path, models: Path) -> tuple[Path, Both, list[Array]]:
    """Return the chain of DTLN, both ways of calling it, and samples."""
    path = write_sound_chain(folder, models)
    chain = load_chain(path, threads=1)
    stream = chain.stream()
    sound = np.random.default_rng(0).standard_normal((50, SHIFT)).astype(np.float32) * np.float32(0.1)
    by_hand = denoise_by_hand(chain.sessions["first"], chain.sessions["second"])
    calls: Both = by_hand, lambda samples: stream.run({"samples": samples})["samples"]
    return path, calls, list(sound)


def measure(name: str, case: tuple[Path, Both, list[Array]], duration_s: float) -> dict[str, Any]:
    """Compare both on all samples, then time them side by side."""
    path, (by_hand, chained), samples = case
    same = all(np.array_equal(by_hand(sample), chained(sample)) for sample in samples)
    if not same:
        raise SystemExit(f"{name}: the chain computes something else than the code by hand")
    turns = {"by_hand": iter(_forever(samples)), "chain": iter(_forever(samples))}
    measured = measure_interleaved(
        {"by_hand": lambda: by_hand(next(turns["by_hand"])), "chain": lambda: chained(next(turns["chain"]))},
        duration_s=duration_s,
        warmup_s=duration_s / 10,
        clock=process_time_ns,
    )
    ratio = median_ratio(measured["chain"], measured["by_hand"])
    shares = benchmark_chain(path, samples=samples, duration_s=max(0.5, duration_s / 5), threads=1)
    row = {
        "chain": name,
        "calls": measured["chain"].n,
        "by_hand_ms": _figures(measured["by_hand"]),
        "chain_ms": _figures(measured["chain"]),
        "ratio": {"median": round(ratio.ratio, 4), "ci95": [round(ratio.lower, 4), round(ratio.upper, 4)]},
        "kept": ratio.ratio <= MOST_OVERHEAD,
        "stages": [asdict(stage) for stage in shares.stages],
    }
    interval = f"{ratio.lower:.4f} to {ratio.upper:.4f}"
    print(
        f"{name:8} by hand {measured['by_hand'].p50_ms:8.4f} ms  chain {measured['chain'].p50_ms:8.4f} ms  "
        f"ratio {ratio.ratio:.4f} ({interval})  {'kept' if row['kept'] else 'NOT KEPT'}"
    )
    return row


def _forever(samples: list[Array]) -> Any:
    while True:
        yield from samples


def _figures(latency: Any) -> dict[str, float]:
    return {key: round(latency.percentile_ms(p), 5) for key, p in (("p50", 50), ("p95", 95), ("p5", 5))}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=os.environ.get("EDGEC_TEST_MODELS"))
    parser.add_argument("--duration-s", type=float, default=10.0, help="of each comparison")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/chains.json")
    arguments = parser.parse_args()
    machine = this_machine()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows.append(measure("page", page_case(folder), arguments.duration_s))
        if arguments.models is None:
            print("dtln     left out: --models or EDGEC_TEST_MODELS names no folder of real models")
        else:
            rows.append(measure("dtln", sound_case(folder, Path(arguments.models)), arguments.duration_s))
    result = {
        "what": "a chain against the same calls of its sessions by hand, interleaved, in processor time",
        "goal": {"ratio": MOST_OVERHEAD},
        "duration_s": arguments.duration_s,
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {package: version(package) for package in ("edgec", "numpy", "onnxruntime")},
        "chains": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
