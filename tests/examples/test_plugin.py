"""The example package that extends edgec: installed, it compiles; a device needs none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.compiler.networks import model_of

from edgec.artifact import Artifact

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"


def run(*command: object, plugin: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if plugin is not None:
        environment["PYTHONPATH"] = str(plugin)
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed in."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the package, is not installed: pip install --group test")
    folder = tmp_path_factory.mktemp("plugin") / "site"
    # Without the network: what it needs is here.
    result = run(
        "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder, PLUGIN
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Div", ["c", "scale"], ["d"], "divide"),
        helper.make_node("Relu", ["d"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["features"], "pool"),
    ]
    weights: dict[str, Any] = {
        "w": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "scale": np.float32(3) + np.arange(16, dtype=np.float32).reshape(16, 1, 1),
    }
    path = tmp_path_factory.mktemp("model") / "eyes.onnx"
    path.write_bytes(model_of(nodes, {"image": [1, 3, 16, 16]}, ["features"], weights).SerializeToString())
    return path


@pytest.fixture(scope="module")
def artifact(plugin: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out")
    result = run(
        "edgec.cli", "compile", model, "--target", "acme-gateway", "-o", output, "--no-cache", plugin=plugin
    )
    assert result.returncode == 0, result.stderr
    return output / "eyes-acme-gateway.edgec"


def test_target_pass_and_converter_are_used(artifact: Path) -> None:
    with Artifact.open(artifact) as opened:
        manifest, report = opened.manifest, opened.report
    assert manifest.target == "acme-gateway"
    assert manifest.engine.name == "onnxruntime"
    assert manifest.provenance["converter"].keys() == {"acme-optimized"}
    assert manifest.provenance["toolchain"]["packages"]["acme-edgec"] == "1.0"
    assert manifest.provenance["target"]["memory_mib"] == 512
    assert report is not None
    (info,) = report["artifacts"]
    assert any(d.startswith("pass 'acme-multiply-by-reciprocals': ") for d in info["decisions"])
    assert {c["name"] for c in info["candidates"]} >= {"acme-optimized fp32", "acme-optimized int8"}
    assert [c["status"] for c in info["candidates"]].count("winner") == 1


def test_a_device_needs_no_part_of_the_package(artifact: Path) -> None:
    result = run("edgec.cli", "verify", artifact)
    assert result.returncode == 0, result.stdout + result.stderr


def test_it_is_listed_and_its_target_is_ready(plugin: Path) -> None:
    assert "acme-gateway" in run("edgec.cli", "targets", plugin=plugin).stdout
    (target,) = json.loads(run("edgec.cli", "doctor", "acme-gateway", "--json", plugin=plugin).stdout)[
        "targets"
    ]
    assert (target["precisions"], target["proven_on"]) == (["fp32", "int8"], "onnxruntime")


def test_without_it_the_target_is_unknown(model: Path, tmp_path: Path) -> None:
    result = run("edgec.cli", "compile", model, "--target", "acme-gateway", "-o", tmp_path)
    assert result.returncode == 1
    assert "unknown target 'acme-gateway'" in result.stderr
