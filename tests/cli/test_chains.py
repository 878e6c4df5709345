"""The commands on a chain: run, benchmark, inspect, verify."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.runtime.chain_models import recurrent

from edgec.cli import main_group
from edgec.errors import DigestMismatchError, PipelineError

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

SUM = """
name = "sum"
inputs.x = { shape = [4] }
outputs = { total = "b.y" }

[[stages]]
name = "a"
artifact = "a.edgec"
inputs = { x = "x" }
STATE

[[stages]]
name = "b"
artifact = "b.edgec"
inputs = { x = "a.y" }
STATE
"""
KEPT = 'state = { input = "h", output = "hn" }'
FORGOTTEN = "constants = { h = 10 }"


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, list(map(str, arguments)))


def shape_of(*arguments: str | Path) -> dict[str, object]:
    result = edgec(*arguments, "--json")
    assert result.exit_code == 0, result.output
    shape = json.loads(result.stdout)
    assert isinstance(shape, dict)
    return shape


@pytest.fixture(params=[KEPT, FORGOTTEN], ids=["kept", "forgotten"])
def state(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, state: str) -> Path:
    recurrent(tmp_path / "a.edgec")
    recurrent(tmp_path / "b.edgec")
    path = tmp_path / "sum.chain.toml"
    path.write_text(SUM.replace("STATE", state), encoding="utf-8")
    np.savez(tmp_path / "data.npz", x=np.ones((3, 4), np.float32))
    return path


def test_samples_of_a_file_are_one_stream(path: Path, state: str) -> None:
    data, output = path.with_name("data.npz"), path.with_name("out.npz")
    expected = [1, 3, 6] if state is KEPT else [21, 21, 21]
    shape = shape_of("run", path, "--input", data)
    results = shape["results"]
    assert isinstance(results, list)
    assert [row["total"] for row in results] == [[[n] * 4] for n in expected]
    shape = shape_of("run", path, "--input", data, "--output", output)
    assert (shape["samples"], shape["output"], "results" in shape) == (3, str(output), False)
    with np.load(output) as written:
        np.testing.assert_array_equal(written["total"][:, 0, 0], expected)


def test_what_is_not_for_chains_is_wrong_usage(path: Path, state: str) -> None:
    data = path.with_name("data.npz")
    assert edgec("run", path, "--input", data, "--raw").exit_code == 2
    jobs = edgec("run", path, "--input", data, "--output", path.with_name("o.npz"), "--jobs", "2")
    assert jobs.exit_code == (2 if state is KEPT else 0), jobs.output
    assert edgec("benchmark", path, "--profile").exit_code == 2


def test_a_benchmark_has_a_share_per_stage(path: Path) -> None:
    shape = shape_of("benchmark", path, "--duration-s", "0.02", "--threads", "1")
    assert set(shape) == {
        "chain", "model", "engine", "engine_version", "state", "inputs", "threads", "calls", "latency_ms",
        "throughput_per_s", "stages", "cv", "drift_cv", "verdict", "concerns", "machine", "thermal",
    }  # fmt: skip
    text = edgec("benchmark", path, "--data", path.with_name("data.npz"), "--duration-s", "0.02").output
    assert all(word in text for word in ("the samples given", "% ", "  inputs", "  a\n", "  b\n"))


def test_inspect_shows_stages_and_what_they_run(path: Path) -> None:
    shape = shape_of("inspect", path)
    stages = shape["stages"]
    assert isinstance(stages, list)
    assert [stage["name"] for stage in stages] == ["a", "b"]
    assert stages[0]["of"]["model"] == "a"
    text = edgec("inspect", path).output
    assert "sum 1: a chain of 2 stages" in text
    assert "inputs x from a.y" in text


def test_verify_checks_every_member_and_that_they_fit(path: Path) -> None:
    shape = shape_of("verify", path)
    assert (shape["passed"], shape["fits"], list(shape["stages"])) == (True, True, ["a", "b"])  # type: ignore[call-overload]
    assert shape_of("verify", path, "--digests-only")["fits"] is None
    assert "the stages of the chain fit each other" in edgec("verify", path).output
    recurrent(path.with_name("b.edgec"), size=5)
    assert isinstance(edgec("verify", path).exception, PipelineError)
    whole = bytearray(path.with_name("a.edgec").read_bytes())
    whole[4096 + 20] ^= 1
    path.with_name("a.edgec").write_bytes(whole)
    assert isinstance(edgec("verify", path).exception, DigestMismatchError)
