"""``edgec finish``: what it says, what it ends with; the fakes of CUDA and TensorRT stand in for a Jetson."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from tests.fakes.jetson import LINES, Jetson, jetson_artifact

from edgec.cli import main_group
from edgec.cli.finish import _Progress
from edgec.errors import BackendUnavailableError, InferenceError, SelfTestError
from edgec.runtime.testing import tiny_artifact


@pytest.fixture(params=sorted(LINES))
def jetson(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jetson]:
    device = Jetson(request.param)
    device.install(monkeypatch)
    yield device
    assert device.faults.violations == []
    assert device.driver.is_clean()


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, ["finish", *map(str, arguments)])


def test_it_says_what_was_built_and_how_long_it_took(jetson: Jetson, tmp_path: Path) -> None:
    path, cache = jetson_artifact(tmp_path / "a.edgec", jetson.version), tmp_path / "engines"
    result = edgec(path, "--cache-dir", cache)
    assert result.exit_code == 0, result.output
    assert "engine   built, tested and kept" in result.stdout
    assert f"tensorrt {jetson.version}, GPU of Fake Orin" in result.stdout
    assert "2 vectors within tolerance" in result.stdout
    for step in ("reading the model", "Building Engine", "testing the engine", "writing the engine"):
        assert f" s  {step}" in result.stderr
    again = edgec(path, "--cache-dir", cache, "--quiet")
    assert "there already: tested, nothing was built" in again.stdout
    assert again.stderr == ""
    assert "built, tested" in edgec(path, "--cache-dir", cache, "--force").stdout


def test_json_has_the_same(jetson: Jetson, tmp_path: Path) -> None:
    path, cache = jetson_artifact(tmp_path / "a.edgec", jetson.version), tmp_path / "engines"
    result = edgec(path, "--cache-dir", cache, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert (facts["state"], facts["engine"], facts["dla"]) == ("built", "tensorrt", None)
    assert facts["self_test"]["passed"] is True
    assert [o["output"] for o in facts["self_test"]["outputs"]] == ["y", "y"]
    assert Path(facts["plan"]).stat().st_size == facts["size_bytes"]


def test_what_needs_no_finishing_says_so_and_ends_well(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "a.edgec")
    result = edgec(path)
    assert result.exit_code == 0
    assert "nothing to finish: the artifact runs as it is" in result.stdout
    assert json.loads(edgec(path, "--json").stdout)["state"] == "not-needed"


def test_without_a_gpu_it_fails_in_one_line(tmp_path: Path) -> None:
    result = edgec(jetson_artifact(tmp_path / "a.edgec", "10.3.0"), "--cache-dir", tmp_path / "engines")
    assert isinstance(result.exception, BackendUnavailableError)
    assert "working CUDA driver" in str(result.exception)
    assert "\n" not in str(result.exception)


def test_what_fails_keeps_nothing(jetson: Jetson, tmp_path: Path) -> None:
    path, cache = jetson_artifact(tmp_path / "a.edgec", jetson.version), tmp_path / "engines"
    jetson.faults.offset = 1.0
    assert isinstance(edgec(path, "--cache-dir", cache).exception, SelfTestError)
    jetson.faults.build_error = "no kernel"
    assert isinstance(edgec(path, "--cache-dir", cache).exception, InferenceError)
    assert [p for p in cache.iterdir() if p.suffix in (".plan", ".json")] == []


@pytest.mark.parametrize("core", ["0", "-1", "x"])
def test_a_core_that_the_artifact_is_not_for_is_wrong_usage(core: str, tmp_path: Path) -> None:
    result = edgec(jetson_artifact(tmp_path / "a.edgec", "11.4.1"), "--dla", core)
    assert result.exit_code == 2
    assert "--dla" in result.output


def test_ctrl_c_ends_it(jetson: Jetson, tmp_path: Path) -> None:
    path, cache = jetson_artifact(tmp_path / "a.edgec", jetson.version), tmp_path / "engines"
    jetson.faults.interrupt = True
    result = edgec(path, "--cache-dir", cache)
    assert result.exit_code == 130
    assert "Aborted" in result.output


def test_progress_is_told_when_a_step_begins_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 2.0, 7.0])
    progress = _Progress(lambda: next(times))
    for done in (0, 1, 2):
        progress("Building \x1b[31mEngine", done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["    1.0 s  Building \\x1b[31mEngine", "    7.0 s  Building \\x1b[31mEngine: 2 of 4"]
