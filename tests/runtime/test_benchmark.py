"""Benchmarks: what is in a result, and that it is of this artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import Artifact, EngineSpec, pack
from edgec.errors import InferenceError
from edgec.runtime._timing import time_in_fresh_process
from edgec.runtime.benchmark import benchmark, measure_cold_starts
from edgec.runtime.testing import onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("benchmark") / "tiny.edgec")


def test_a_result_says_all_there_is_to_say(path: Path) -> None:
    result = benchmark(path, duration_s=0.2, threads=1, cold_starts=1)
    shape = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(shape) == {
        "artifact", "model", "engine", "engine_version", "state", "precision", "placement", "call", "inputs",
        "threads", "isolated", "calls", "latency_ms", "runs_p50_ms", "throughput_per_s", "load_ms",
        "engine_import_ms", "first_inference_ms", "peak_memory_mib", "memory_before_mib", "cv", "drift_cv",
        "verdict", "concerns", "machine", "thermal", "energy",
    }  # fmt: skip
    assert (shape["model"], shape["engine"], shape["state"], shape["threads"]) == (
        "tiny",
        "onnxruntime",
        "ready",
        1,
    )
    assert shape["precision"] == {
        "promised": "fp32",
        "effective": "fp32",
        "measured": True,
        "layers": {"fp32": 1},
    }
    assert (shape["call"], shape["inputs"]) == ("run", "golden")
    latency = shape["latency_ms"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert shape["throughput_per_s"] == pytest.approx(1e3 / latency["mean"])
    assert shape["verdict"] in ("stable", "unstable")
    assert shape["calls"] >= 20
    assert set(shape["machine"]) == {
        "cpu", "arch", "cores", "memory_mib", "system", "python", "governor", "load_average",
        "load_average_after",
    }  # fmt: skip


def test_samples_go_through_the_whole_pipeline(path: Path) -> None:
    samples = [np.ones(4, np.float32), np.zeros(4, np.float32)]
    result = benchmark(path, samples=samples, duration_s=0.1, cold_starts=1)
    assert (result.call, result.inputs) == ("predict", "data")


@pytest.mark.slow
def test_repeats_are_processes_of_their_own(path: Path) -> None:
    samples = [np.ones(4, np.float32)]
    result = benchmark(path, samples=samples, duration_s=0.1, cold_starts=1, repeats=2)
    assert len(result.runs_p50_ms) == 2
    assert result.latency.n >= 40
    assert (result.inputs, result.engine, result.precision) == ("data", "onnxruntime", "fp32")
    with pytest.raises(InferenceError, match="fresh process could not run it"):
        time_in_fresh_process(path, {}, [np.ones(5, np.float32)], 0.1)


def test_synthetic_inputs_are_called_so(path: Path, tmp_path: Path) -> None:
    with Artifact.open(path) as artifact:
        members = {name: artifact.read(name) for name in ("weights.bin", "model.onnx")}
        manifest = artifact.manifest
    bare = pack(tmp_path / "bare.edgec", manifest, members)
    assert benchmark(bare, duration_s=0.1, cold_starts=1).inputs == "synthetic"


def test_a_fallback_is_called_so(tmp_path: Path) -> None:
    engine = EngineSpec(
        name="tensorrt", version=">=10", device="GPU", precision="fp16", files=("model.onnx",)
    )
    path = tiny_artifact(tmp_path / "jetson.edgec", engine=engine, fallback=onnxruntime_spec())
    result = benchmark(path, duration_s=0.1, cold_starts=1)
    assert (result.state, result.engine, result.promised_precision) == ("fallback", "onnxruntime", "fp32")


def test_a_cold_start_is_of_a_process_of_its_own(path: Path) -> None:
    ballast = bytearray(b"x" * 2**28)  # of this process, and not of the one that is measured
    cold = measure_cold_starts(path, threads=1, processes=1)
    assert len(ballast) == 2**28
    assert cold.load_ms >= (cold.engine_import_ms or 0) > 0
    assert cold.first_inference_ms > 0
    assert cold.peak_memory_mib is not None
    assert cold.memory_before_mib is not None
    assert 5 < cold.memory_before_mib < cold.peak_memory_mib < 250


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    engine = EngineSpec(
        name="tensorrt", version=">=10", device="GPU", precision="fp16", files=("model.onnx",)
    )
    path = tiny_artifact(tmp_path / "jetson.edgec", engine=engine)
    with pytest.raises(
        InferenceError, match=r"fresh process could not run it \(exit status 1\).*CUDA driver"
    ):
        measure_cold_starts(path, processes=1)


@pytest.mark.parametrize(
    "arguments", [{"samples": []}, {"duration_s": 0}, {"cold_starts": 0}, {"repeats": 0}]
)
def test_wrong_arguments_are_refused(path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        benchmark(path, **arguments)  # type: ignore[arg-type]
