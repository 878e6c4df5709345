"""MLPerf's scenarios, through the real LoadGen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import InferenceError
from edgec.runtime.scenarios import SCENARIOS, run_scenario
from edgec.runtime.testing import tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("mlperf_loadgen", reason="needs the extra loadgen")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("scenarios") / "tiny.edgec")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario_gives_its_figure(path: Path, scenario: str, tmp_path: Path) -> None:
    bound: dict[str, Any] = (
        {"target_latency_ms": 20_000.0, "target_qps": 600.0} if scenario == "server" else {}
    )
    result = run_scenario(path, scenario, duration_s=1, threads=1, log_dir=tmp_path / "logs", **bound)
    shape = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert shape["label"] == "not an MLPerf result"
    assert result.valid, (result.constraints, result.early_stopping)
    assert all(result.constraints.values())
    assert result.value is not None
    assert result.value > 0
    assert result.queries >= {"multi-stream": 662, "server": 459, "offline": 1}.get(scenario, 100)
    latency = result.latency_ms
    assert latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert (result.model, result.engine, result.call, result.inputs) == (
        "tiny",
        "onnxruntime",
        "run",
        "golden",
    )
    assert (tmp_path / "logs" / "mlperf_log_summary.txt").read_text().count("Result is : VALID") == 1


@pytest.mark.slow
def test_real_samples_go_through_the_pipeline_and_several_at_once(path: Path) -> None:
    samples = [np.ones(4, np.float32), np.zeros(4, np.float32), np.ones(4, np.float32)]
    result = run_scenario(path, "offline", samples=samples, duration_s=0.5, concurrency=2)
    assert (result.call, result.inputs, result.concurrency) == ("predict", "data", 2)


@pytest.mark.slow
def test_what_cannot_be_kept_up_with_is_invalid(path: Path) -> None:
    result = run_scenario(path, "server", duration_s=0.5, target_latency_ms=1e-3, target_qps=500)
    assert not result.valid
    assert result.constraints["latency bound"] is False


@pytest.mark.slow
def test_a_sample_that_fails_ends_the_run_with_its_error(path: Path) -> None:
    with pytest.raises(InferenceError, match=r"LoadGen's process failed.*x"):
        run_scenario(path, "offline", samples=[np.ones(5, np.float32)], duration_s=0.5)


@pytest.mark.parametrize(
    ("scenario", "arguments"),
    [
        ("burst", {}),
        ("server", {}),
        ("server", {"target_latency_ms": 0.0}),
        ("offline", {"target_latency_ms": 5.0}),
        ("offline", {"target_qps": 5.0}),
        ("offline", {"samples": []}),
        ("offline", {"concurrency": 0}),
        ("single-stream", {"concurrency": 2}),
        ("single-stream", {"duration_s": 0}),
    ],
)
def test_wrong_arguments_are_refused(path: Path, scenario: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|needed|only|one caller"):
        run_scenario(path, scenario, **arguments)
