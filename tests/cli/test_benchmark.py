"""``edgec benchmark``: its public shape, its text, wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgec.cli import main_group
from edgec.errors import ArtifactError, DataError
from edgec.runtime.testing import tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, ["benchmark", *map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.edgec")


def test_json_has_its_public_shape(path: Path) -> None:
    result = edgec(path, "--duration-s", "0.1", "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    shape = json.loads(result.stdout)
    assert set(shape["latency_ms"]) == {"p50", "p90", "p99", "mean", "min", "max"}
    for key in ("throughput_per_s", "load_ms", "first_inference_ms", "peak_memory_mib"):
        assert shape[key] > 0
    assert shape["verdict"] in ("stable", "unstable")
    assert (shape["call"], shape["inputs"], shape["threads"]) == ("run", "golden", 1)


def test_text_says_it_all(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 4), np.float32))
    result = edgec(path, "--duration-s", "0.1", "--data", tmp_path / "data.npz")
    assert result.exit_code == 0, result.output
    for word in (
        "engine", "precision", "fp32 measured", "placement", "calls of predict on the samples given", "p50",
        "p99", "throughput", "import the engine", "first inference", "peak memory", "verdict", "machine",
        "governor", "heat", "energy",
    ):  # fmt: skip
        assert word in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--duration-s", "0"], ["--duration-s", "x"], ["--threads", "0"], ["--threads", "1025"], ["--nope"],
        ["--plot", "no/where.html"],
    ],
)  # fmt: skip
def test_wrong_usage(path: Path, arguments: list[str]) -> None:
    assert edgec(path, *arguments).exit_code == 2


def test_missing_files_are_refused(path: Path, tmp_path: Path) -> None:
    assert isinstance(edgec(tmp_path / "missing.edgec").exception, ArtifactError)
    assert isinstance(edgec(path, "--data", tmp_path / "missing.npz").exception, DataError)


def test_the_guide_names_every_key(path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text(encoding="utf-8")
    shape = json.loads(edgec(path, "--duration-s", "0.1", "--json").stdout)
    keys = {*shape, *shape["latency_ms"], *shape["precision"], *shape["machine"], *shape["thermal"]["before"]}
    assert {key for key in keys if f"`{key}`" not in guide} == set()


def baseline(path: Path, runs: list[float]) -> Path:
    """Write the result of an earlier benchmark of the tiny artifact."""
    shape = {
        "runs_p50_ms": runs, "call": "run", "inputs": "golden", "threads": None, "model": "tiny",
        "engine": "onnxruntime", "engine_version": "1.0", "machine": {"cpu": "another", "cores": 64},
    }  # fmt: skip
    path.write_text(json.dumps(shape))
    return path


@pytest.mark.slow
def test_a_slower_one_ends_with_status_1(path: Path, tmp_path: Path) -> None:
    before = baseline(tmp_path / "before.json", [1e-6] * 5)
    result = edgec(path, "--duration-s", "0.1", "--json", "--against", before)
    against = json.loads(result.stdout)["against"]
    assert (against["verdict"], against["runs"], result.exit_code) == ("slower", 5, 1)
    assert any("another in the baseline" in change for change in against["changes"])
    before = baseline(tmp_path / "before.json", [1e6] * 5)
    result = edgec(path, "--duration-s", "0.1", "--against", before)
    assert "against baseline: faster" in result.stdout
    assert result.exit_code == 0


def test_a_comparison_of_too_few_runs_is_refused(path: Path, tmp_path: Path) -> None:
    one, five = baseline(tmp_path / "one.json", [1.0]), baseline(tmp_path / "five.json", [1.0] * 5)
    assert isinstance(edgec(path, "--against", one).exception, DataError)
    assert edgec(path, "--against", five, "--repeats", "4").exit_code == 2


@pytest.mark.slow
def test_a_scenario_says_that_it_is_no_mlperf_result(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs the extra loadgen")
    arguments = (path, "--scenario", "server", "--target-latency-ms", "1000", "--duration-s", "0.2")
    shape = json.loads(edgec(*arguments, "--target-qps", "800", "--json").stdout)
    assert (shape["label"], shape["scenario"]) == ("not an MLPerf result", "server")
    assert shape["settings"] == {"target_qps": 800, "target_latency_ms": 1000}
    guide = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text(encoding="utf-8")
    assert {key for key in shape if f"`{key}`" not in guide} == set()
    text = edgec(*arguments, "--loadgen-logs", tmp_path / "logs").stdout
    for words in ("not an MLPerf result", "valid", "early stopping", "per second", "queries of run"):
        assert words in text
    assert (tmp_path / "logs" / "mlperf_log_detail.txt").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scenario", "burst"],
        ["--scenario", "server"],
        ["--scenario", "offline", "--target-qps", "3"],
        ["--scenario", "offline", "--repeats", "5"],
        ["--concurrency", "2"],
    ],
)
def test_wrong_usage_of_scenarios(path: Path, arguments: list[str]) -> None:
    assert edgec(path, *arguments).exit_code == 2


def test_a_profile_names_the_layers(path: Path) -> None:
    result = edgec(path, "--duration-s", "0.05", "--profile")
    assert "FusedGemm" in result.stdout, result.output


def test_a_sweep_prints_a_table_and_draws(path: Path, tmp_path: Path) -> None:
    result = edgec(path, "--sweep", "threads, batch", "--duration-s", "0.05", "--plot", tmp_path / "plot.svg")
    assert result.exit_code == 0, result.output
    for words in ("samples/s", "lowest latency", "batches of 1 only"):
        assert words in result.stdout
    assert (tmp_path / "plot.svg").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--sweep", "speed"], ["--sweep", "engine"], ["--also", "b.edgec"], ["--plot", "plot.gif"]],
)
def test_wrong_usage_of_sweeps(path: Path, arguments: list[str]) -> None:
    assert edgec(path, *arguments).exit_code == 2
