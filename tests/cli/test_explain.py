"""``edgec explain``: why an artifact is what it is, and what int8 costs in each layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from tests.compiler import networks
from tests.compiler.test_repair import compiled, normal

from edgec.cli import main_group
from edgec.compiler import CompileOptions, compile_model
from edgec.runtime.testing import tiny_artifact

KEYS = {
    "path",
    "model",
    "model_version",
    "target",
    "engine",
    "precision",
    "recipe",
    "decisions",
    "candidates",
    "layers_of",
    "layers",
    "scores",
    "flips",
    "notes",
}
LAYER_KEYS = {
    "name",
    "op",
    "tensor",
    "precision",
    "accumulated_snr_db",
    "local_snr_db",
    "isolated",
    "isolated_snr_db",
    "isolated_score",
}

pytestmark = pytest.mark.slow


def explain(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, ["explain", *map(str, arguments)])


def explained(*arguments: str | Path) -> dict[str, Any]:
    result = explain(*arguments, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    assert set(found) == KEYS
    assert all(set(layer) == LAYER_KEYS for layer in found["layers"])
    return found


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a build whose int8 was repaired."""
    folder = tmp_path_factory.mktemp("explain")
    compiled(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with artifacts in int8, because they are the smallest."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2"], ["y"], "two", pads=[1, 1, 1, 1]),
    ]
    weights = {"w1": normal(rng, 64, 3, 3, 3), "w2": normal(rng, 64, 64, 3, 3)}
    onnx.save(networks.model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights), folder / "model.onnx")
    np.savez(folder / "data.npz", x=rng.normal(size=(24, 3, 8, 8)).astype(np.float32))
    compile_model(
        folder / "model.onnx",
        ["cpu-x86_64", "intel-cpu"],
        folder / "build",
        calibration=str(folder / "data.npz"),
        options=CompileOptions(precision="int8", objective="size", workers=0, measure_s=0.05),
    )
    return folder


def test_an_artifact_tells_of_its_build(repaired: Path) -> None:
    found = explained(repaired / "build" / "model-cpu-x86_64.edgec")
    assert found["layers_of"] == "onnxruntime int8, before its repair, as the build measured them"
    assert [layer["name"] for layer in found["layers"]] == ["culprit", "middle", "last", "head"]
    assert any("culprit kept in fp32: int8 costs" in d for d in found["decisions"])
    assert {c["name"]: c["status"] for c in found["candidates"]}["onnxruntime int8"] == "refused"
    assert found["flips"]
    assert found["scores"] is None


def test_people_are_told_in_sections(repaired: Path) -> None:
    result = explain(repaired / "build" / "model-cpu-x86_64.edgec")
    assert result.exit_code == 0
    for title in ("decided", "candidates", "repair", "layers of onnxruntime int8", "turned by int8"):
        assert f"\n{title}" in result.stdout
    assert "score alone" not in result.stdout


def test_with_source_and_labels_every_layer_is_measured_and_scored(repaired: Path) -> None:
    data = repaired / "data.npz"
    found = explained(
        repaired / "build" / "model-cpu-x86_64.edgec",
        *("--source", repaired / "model.onnx", "--calibration", data),
        *("--evaluation", data, "--metric", "top1"),
    )
    scores = {layer["name"]: layer["isolated_score"] for layer in found["layers"]}
    assert scores["culprit"] < 0.9
    assert min(scores["middle"], scores["last"], scores["head"]) > 0.98
    assert found["scores"]["fp32"] == 1.0
    assert found["scores"]["int8"] < 0.9
    assert found["scores"]["flipped"] == round((1 - found["scores"]["int8"]) * found["scores"]["samples"])
    assert found["layers_of"].startswith("int8, ")


@pytest.mark.parametrize("target", ["cpu-x86_64", "intel-cpu"])
def test_the_graph_of_an_int8_artifact_is_measured(small: Path, target: str) -> None:
    artifact = small / "build" / f"model-{target}.edgec"
    found = explained(artifact, "-s", small / "model.onnx", "-c", small / "data.npz")
    assert found["precision"] == "int8"
    assert found["layers_of"] == "int8, the artifact's own, measured now"
    assert [(e["name"], e["precision"]) for e in found["layers"]] == [("one", "int8"), ("two", "int8")]
    assert all(25 < e[key] < 60 for e in found["layers"] for key in ("local_snr_db", "accumulated_snr_db"))
    assert explained(artifact)["layers"] == []
    assert "no layers were measured" in explain(artifact).stdout


def test_another_source_is_refused(small: Path, repaired: Path) -> None:
    result = explain(small / "build" / "model-intel-cpu.edgec", "--source", repaired / "model.onnx", "-q")
    assert result.exit_code == 1
    assert "is not what the artifact was made from" in str(result.exception)


def test_data_without_source_is_wrong_usage(small: Path) -> None:
    result = explain(small / "build" / "model-intel-cpu.edgec", "--calibration", small / "data.npz")
    assert result.exit_code == 2


def test_an_artifact_without_a_report_says_so(tmp_path: Path) -> None:
    found = explained(tiny_artifact(tmp_path / "tiny.edgec"))
    assert found["notes"] == ["the artifact carries no report of its build"]
    assert found["candidates"] == []
