"""``edgec doctor``: what it says of this machine, for people and machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgec.cli import main_group
from edgec.errors import UnknownTargetError
from edgec.targets import host_arch, target_names


def edgec(*arguments: str) -> Result:
    return CliRunner().invoke(main_group, ["doctor", *arguments])


def test_people_see_packages_engines_and_targets() -> None:
    result = edgec()
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert {"packages", "engines", "targets"} <= set(lines)
    assert any(line.split()[:2] == ["openvino", "openvino"] and line.endswith("ok") for line in lines)
    assert {line.split()[0] for line in lines if line.strip()} >= set(target_names())


def test_machines_see_all_of_it() -> None:
    shape = json.loads(edgec("--json").stdout)
    assert shape.keys() == {
        "edgec", "python", "packages", "conflicts", "engines", "environments", "targets",
    }  # fmt: skip
    (numpy,) = [p for p in shape["packages"] if p["package"] == "numpy"]
    assert numpy == {
        "package": "numpy", "extra": None, "needs": ">=1.26", "installed": version("numpy"), "status": "ok",
        "fix": None,
    }  # fmt: skip
    assert {t["target"] for t in shape["targets"]} == set(target_names())
    assert all(t["missing"] for t in shape["targets"] if not t["measured"])


@pytest.mark.skipif(host_arch() != "x86_64", reason="speaks of an x86_64 host")
def test_targets_of_this_host_miss_nothing() -> None:
    shape = json.loads(edgec("cpu-x86_64", "--json").stdout)
    (target,) = shape["targets"]
    assert "fp32" in target["precisions"]
    assert (target["judge"], target["proven_on"], target["measured"], target["missing"]) == (
        "onnxruntime", "onnxruntime", True, [],
    )  # fmt: skip


def test_what_a_target_misses_is_said() -> None:
    result = edgec("jetson")
    assert result.exit_code == 0
    assert "missing for jetson-orin-nano-jp6" in result.stdout
    assert "to measure it: " in result.stdout


def test_a_target_that_nothing_is_built_for_is_a_failure(tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text(
        'name = "board"\ntitle = "Board"\nextends = "rpi5"\nfamily = "abacus"\nengines = '
        '[{name = "abacus", version = ">=1", device = "BEADS", precisions = ["fp32"]}]\n'
    )
    result = edgec(str(board))
    assert result.exit_code == 1
    assert "to build for it: this edgec builds nothing for the engine 'abacus' yet" in result.stdout


def test_another_version_is_a_failure_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "openvino-2021.4.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: openvino\nVersion: 2021.4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = edgec("--json")
    assert result.exit_code == 1
    (found,) = [p for p in json.loads(result.stdout)["packages"] if p["package"] == "openvino"]
    assert (found["status"], found["fix"]) == ("too old", "pip install 'openvino>=2026.2'")


def test_environments_are_listed_with_the_command_that_makes_each(tmp_path: Path) -> None:
    (told,) = [
        line for line in edgec("cpu", "--home", str(tmp_path)).stdout.splitlines() if "  tf2onnx " in line
    ]
    assert told.split()[1] == "missing"
    assert told.endswith("edgec doctor --install tf2onnx")
    shape = json.loads(edgec("cpu", "--home", str(tmp_path), "--json").stdout)
    assert {e["name"]: e["status"] for e in shape["environments"]} == {
        "tf2onnx": "missing", "torch": "missing", "onnx2tf": "missing",
    }  # fmt: skip
    assert edgec("--remove", "torch", "--home", str(tmp_path)).stdout == "torch: was not installed\n"


def test_a_broken_environment_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "environments" / "torch").mkdir(parents=True)
    result = edgec("cpu", "--home", str(tmp_path))
    assert result.exit_code == 1
    assert "what was installed in it cannot be read" in result.stdout


def test_environments_that_are_not_known_are_wrong_usage(tmp_path: Path) -> None:
    result = edgec("--install", "jax", "--home", str(tmp_path))
    assert result.exit_code == 2
    assert "there are onnx2tf, tf2onnx, torch" in result.stderr
    assert edgec("cpu", "--install", "torch").exit_code == 2


def test_an_unknown_target_is_refused() -> None:
    assert isinstance(edgec("nonsense").exception, UnknownTargetError)


@pytest.mark.slow
def test_an_engine_that_does_not_load_is_told_and_the_rest_too(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    broken = 'raise ImportError("libtbb.so.12: cannot open shared object file: gone", name="openvino")\n'
    (tmp_path / "openvino" / "__init__.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, "-m", "edgec.cli", "doctor", "cpu-x86_64", "intel-cpu"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "install the system's library libtbb.so.12" in done.stdout
    assert "missing for intel-cpu\n  to build for it: compiling for openvino cannot import" in done.stdout
    assert "missing for cpu-x86_64\n  nothing\n" in done.stdout
