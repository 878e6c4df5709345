"""Whole builds with pruned forms of a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper
from tests.compiler.networks import cnn, model_of
from tests.compiler.pruning.test_sparsity import network
from tests.fakes.jetson import Jetson

from edgec.artifact import Artifact
from edgec.cli import main_group
from edgec.compiler import CompileOptions, compile_model, rebuild
from edgec.compiler.lock import read_lock
from edgec.compiler.pruned import refuse_slower
from edgec.compiler.tournament import Contender
from edgec.errors import CalibrationError, CompileError, UnsupportedModelError
from edgec.runtime import load
from edgec.runtime.finishing import finish
from edgec.runtime.measurement import LatencySamples

PRUNE = CompileOptions(measure_s=0.05, workers=0, precision="fp32", max_drop=None, prune=0.3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(cnn().SerializeToString())
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path / "calibration.npz"
    np.savez(path, image=rng.standard_normal((24, 1, 3, 16, 16)).astype(np.float32))
    return path


@pytest.mark.slow
def test_a_pruned_form_can_ship_and_is_smaller(model: Path, calibration: Path, tmp_path: Path) -> None:
    options = replace(PRUNE, objective="size")
    result = compile_model(model, ["cpu-x86_64"], tmp_path / "out", calibration=calibration, options=options)
    (info,) = result.report["artifacts"]
    assert any("million multiply-accumulates" in d for d in info["decisions"])
    sizes = {c["name"]: c.get("size_bytes") or 0 for c in info["candidates"]}
    assert sizes["onnxruntime fp32, 30 % pruned"] < sizes["onnxruntime fp32"]
    winner = next(c["name"] for c in info["candidates"] if c["status"] == "winner")
    assert winner == "onnxruntime fp32, 30 % pruned"
    with load(result.artifacts[0]) as session:
        assert session.self_test().passed
    with Artifact.open(result.artifacts[0]) as artifact:
        assert read_lock(artifact.manifest).options.prune == 0.3


@pytest.mark.slow
def test_vela_ranks_a_pruned_form(model: Path, calibration: Path, tmp_path: Path) -> None:
    options = replace(PRUNE, precision="int8")
    result = compile_model(
        model, ["ethos-u55-128"], tmp_path / "out", calibration=calibration, options=options
    )
    (info,) = result.report["artifacts"]
    found = {c["name"]: (c["status"], c.get("estimate")) for c in info["candidates"]}
    (_, whole), (status, pruned) = found["litert int8"], found["litert int8, 30 % pruned"]
    assert whole is not None
    assert pruned is not None
    assert pruned.get("macs", 0) < whole.get("macs", 0)
    faster = pruned["latency_ms"] < whole["latency_ms"]
    assert (status == "winner") == faster
    assert faster or any("pruning does not make it faster" in d for d in info["decisions"])


@pytest.mark.slow
def test_a_pruned_form_is_judged_against_the_source(model: Path, calibration: Path, tmp_path: Path) -> None:
    options = replace(PRUNE, max_drop=0.01, prune=0.7)
    result = compile_model(model, ["cpu-x86_64"], tmp_path / "out", calibration=calibration, options=options)
    (info,) = result.report["artifacts"]
    (pruned,) = (c for c in info["candidates"] if c["name"] == "onnxruntime fp32, 70 % pruned")
    assert pruned["status"] == "refused"
    parity = pruned.get("parity")
    assert parity is not None
    assert parity["passed"]
    assert any(d.startswith("onnxruntime fp32, 70 % pruned is out: no labels") for d in info["decisions"])


@pytest.mark.slow
def test_auto_takes_what_the_budget_allows_or_says_why_not(
    model: Path, calibration: Path, tmp_path: Path
) -> None:
    options = replace(PRUNE, max_drop=0.01, prune="auto")
    result = compile_model(model, ["cpu-x86_64"], tmp_path / "out", calibration=calibration, options=options)
    (info,) = result.report["artifacts"]
    assert any("--prune auto" in d for d in info["decisions"])


@pytest.fixture
def wide(tmp_path: Path) -> tuple[Path, Path]:
    """A model with layers that can be 2:4 sparse, and its calibration data."""
    path, data = tmp_path / "wide.onnx", tmp_path / "wide.npz"
    path.write_bytes(network().SerializeToString())
    np.savez(data, x=np.random.default_rng(3).standard_normal((24, 1, 4, 6, 6)).astype(np.float32))
    return path, data


@pytest.mark.slow
def test_a_sparse_form_ships_for_tensorrt_and_is_built_with_sparse_kernels(
    wide: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(PRUNE, prune="2:4", precision="int8")
    result = compile_model(
        wide[0], ["jetson-orin-nano-jp6"], tmp_path / "out", calibration=wide[1], options=options
    )
    (info,) = result.report["artifacts"]
    assert (
        next(c["name"] for c in info["candidates"] if c["status"] == "winner") == "tensorrt int8, 2:4 sparse"
    )
    assert not any(c["name"] == "tensorrt fp32, 2:4 sparse" for c in info["candidates"])
    assert any("2:4 sparse ones before dense ones" in d for d in info["decisions"])
    assert any(d.startswith("2:4: ") and "make up for them" in d for d in info["decisions"])
    assert info.get("latency") is None
    with Artifact.open(result.artifacts[0]) as artifact:
        assert read_lock(artifact.manifest).options.prune == "2:4"
        assert artifact.manifest.recipe["config"]["flags"] == ["SPARSE_WEIGHTS"]
    again = rebuild(result.artifacts[0], tmp_path / "again", source=wide[0], calibration=wide[1], workers=0)
    assert again.same_content
    device = Jetson("10.3.0")
    device.install(monkeypatch)
    assert finish(result.artifacts[0], cache_dir=tmp_path / "engines").state == "built"
    assert device.faults.builds[0]["flags"] == {"SPARSE_WEIGHTS"}


@pytest.mark.slow
def test_vela_ranks_a_sparse_form(wide: tuple[Path, Path], tmp_path: Path) -> None:
    options = replace(PRUNE, prune="unstructured:0.7", precision="int8", objective="size")
    result = compile_model(wide[0], ["ethos-u55-128"], tmp_path / "out", calibration=wide[1], options=options)
    (info,) = result.report["artifacts"]
    estimates = {c["name"]: c.get("estimate") for c in info["candidates"]}
    whole, sparse = estimates["litert int8"], estimates["litert int8, 70 % sparse"]
    assert whole is not None
    assert sparse is not None
    assert sparse.get("flash_kib", 0) < 0.8 * whole.get("flash_kib", 0)
    assert (
        next(c["name"] for c in info["candidates"] if c["status"] == "winner") == "litert int8, 70 % sparse"
    )


@pytest.mark.slow
def test_a_sparse_form_outside_the_budget_is_refused_with_figures(
    wide: tuple[Path, Path], tmp_path: Path
) -> None:
    options = replace(
        PRUNE, prune="unstructured:0.99", precision="int8", max_drop=0.01, accept_inconclusive=True
    )
    result = compile_model(wide[0], ["ethos-u55-128"], tmp_path / "out", calibration=wide[1], options=options)
    (info,) = result.report["artifacts"]
    assert any(
        d.startswith("litert int8, 99 % sparse is out: no labels") and " dB" in d for d in info["decisions"]
    )


@pytest.mark.parametrize(
    ("target", "prune", "message"),
    [
        ("cpu-x86_64", "2:4", "with such zeros as with any other weight; try --prune auto"),
        ("rpi5", "unstructured:0.8", "rpi5 gains nothing by --prune unstructured:0.8"),
        ("intel-cpu", "unstructured:0.8", "openvino"),
        ("jetson-thor-jp7", "unstructured:0.5", "try --prune 2:4"),
        ("ethos-u55-128", "2:4", "try --prune unstructured:0.5"),
        ("jetson-thor-jp7", "2:4", "2:4 in fp32: it does in fp16, int8, mixed"),
    ],
)
def test_zeros_that_gain_nothing_are_refused(
    target: str, prune: str, message: str, wide: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(CompileError, match=message):
        compile_model(
            wide[0], [target], tmp_path / "out", calibration=wide[1], options=replace(PRUNE, prune=prune)
        )


def test_pruning_without_data_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--prune needs real inputs"):
        compile_model(model, ["cpu-x86_64"], tmp_path / "out", options=PRUNE)


def test_auto_needs_a_budget(model: Path, calibration: Path, tmp_path: Path) -> None:
    options = replace(PRUNE, prune="auto")
    with pytest.raises(CompileError, match="--max-drop none is no budget"):
        compile_model(model, ["cpu-x86_64"], tmp_path / "out", calibration=calibration, options=options)


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"], "only")], {"x": [1, 4]}, ["y"])
    path = tmp_path / "relu.onnx"
    path.write_bytes(model.SerializeToString())
    np.savez(tmp_path / "c.npz", x=np.ones((40, 1, 4), np.float32))
    with pytest.raises(UnsupportedModelError, match="no Conv, ConvTranspose, Gemm or MatMul"):
        compile_model(path, ["cpu-x86_64"], tmp_path / "out", calibration=tmp_path / "c.npz", options=PRUNE)


def test_options_survive_json() -> None:
    for prune in (None, "auto", 0.25, "2:4", "unstructured:0.5"):
        options = replace(PRUNE, prune=prune)
        assert CompileOptions.from_dict(options.to_dict()).prune == prune
    with pytest.raises(CompileError):
        CompileOptions.from_dict({"prune": "sometimes"})


def contender(name: str, median_ms: float | None) -> Contender:
    latency = None
    if median_ms is not None:
        latency = LatencySamples(median_ms + np.linspace(-0.01, 0.01, 101))
    return Contender(name=name, engine="onnxruntime", precision="fp32", latency=latency)


def test_only_what_is_measurably_faster_stays() -> None:
    whole, slow, fast = contender("a", 1.0), contender("b", 1.0), contender("c", 0.7)
    refuse_slower([(slow, whole), (fast, whole)], "latency", "")
    assert slow.problem is not None
    assert "not make it measurably faster: 1 ms against 1 ms" in slow.problem
    assert fast.problem is None
    unmeasured = contender("d", None)
    refuse_slower([(unmeasured, contender("a", None))], "latency", "no host stands in")
    assert unmeasured.problem is not None
    assert "no host stands in" in unmeasured.problem


@pytest.mark.parametrize("wrong", ["3:4", "unstructured:2", "1.5", "much"])
def test_a_wrong_way_to_prune_is_wrong_usage(wrong: str) -> None:
    result = CliRunner().invoke(main_group, ["compile", "m.onnx", "-t", "cpu", "--prune", wrong])
    assert result.exit_code == 2
    assert "unstructured" in result.output
