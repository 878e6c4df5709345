"""``edgec compare``: what it prints, for people and machines, and when it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgec.artifact import Artifact, Manifest, Pipeline, TensorSpec, pack
from edgec.artifact.steps import Normalize
from edgec.cli import main_group
from edgec.errors import DataError
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact


def edgec(*arguments: object) -> Result:
    return CliRunner().invoke(main_group, [str(argument) for argument in arguments])


def linear(path: Path, factor: float, shape: Sequence[int | str] = (1, 4), **changes: Any) -> Path:
    """Pack an artifact for ``y = x * factor``, without golden vectors."""
    inputs = (TensorSpec("x", "float32", tuple(shape)),)
    outputs = (TensorSpec("y", "float32", tuple(shape)),)
    nodes = [Node("Mul", ["x", "f"], ["y"])]
    members = onnx_members(nodes, inputs, outputs, {"f": np.array([factor], np.float32)})
    manifest = Manifest(
        model="linear",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
    )
    return pack(path, replace(manifest, **changes), members)


def test_golden_vectors_are_the_inputs_where_there_are_no_others(tmp_path: Path) -> None:
    a, b = tiny_artifact(tmp_path / "a.edgec"), tiny_artifact(tmp_path / "b.edgec", batch="n")
    result = edgec("compare", a, b)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"a       {a} on onnxruntime ")
    assert lines[2:] == [
        f"inputs  2 golden vectors of {a}",
        "",
        "output  max abs error  SNR        cosine    agreement",
        "y       0              identical  1.000000  100.0%",
    ]


def test_golden_vectors_of_the_second_serve_too(tmp_path: Path) -> None:
    golden = tiny_artifact(tmp_path / "a.edgec")
    with Artifact.open(golden) as artifact:
        members = {name: artifact.read(name) for name in ("model.onnx", "weights.bin")}
        bare = pack(tmp_path / "b.edgec", replace(artifact.manifest, golden={}), members)
    shape = json.loads(edgec("compare", bare, golden, "--json").stdout)
    assert shape["inputs"] == {
        "kind": "golden", "description": f"2 golden vectors of {golden}", "samples": 2,
    }  # fmt: skip


def test_machines_see_all_of_it_on_data(tmp_path: Path) -> None:
    a, b = linear(tmp_path / "a.edgec", 1.0), linear(tmp_path / "b.edgec", 1.1)
    np.savez(tmp_path / "data.npz", x=np.eye(4, dtype=np.float32) * 2)
    shape = json.loads(edgec("compare", a, b, "--data", tmp_path / "data.npz", "--json").stdout)
    assert shape.keys() == {"a", "b", "inputs", "outputs"}
    for key, path in (("a", a), ("b", b)):
        assert shape[key].keys() == {"path", "engine", "engine_version", "precision", "state"}
        assert shape[key]["path"] == str(path)
    assert shape["inputs"]["kind"] == "data"
    assert shape["inputs"]["samples"] == 4
    (output,) = shape["outputs"]
    assert output == {
        "name": "y",
        "max_abs_error": pytest.approx(0.2, abs=1e-6),
        "snr_db": pytest.approx(20.0, abs=1e-4),
        "cosine": pytest.approx(1.0),
        "agreement": 1.0,
        "identical": False,
    }
    some = json.loads(
        edgec("compare", a, b, "--data", tmp_path / "data.npz", "--samples", 2, "--json").stdout
    )
    assert some["inputs"]["samples"] == 2
    assert some["inputs"]["description"].startswith("2 of the samples of ")


def test_synthetic_inputs_are_said_loudly(tmp_path: Path) -> None:
    a, b = linear(tmp_path / "a.edgec", 1.0), linear(tmp_path / "b.edgec", 1.001)
    result = edgec("compare", a, b, "--json")
    assert result.stderr == (
        "warning: the 8 inputs are synthetic (x: standard normal; seed 0): "
        "give --data to compare on real inputs\n"
    )
    first = json.loads(result.stdout)
    assert (first["inputs"]["kind"], first["inputs"]["samples"]) == ("synthetic", 8)
    assert first["outputs"][0]["snr_db"] == pytest.approx(60, abs=0.1)
    again = json.loads(edgec("compare", a, b, "--json").stdout)
    assert first["outputs"] == again["outputs"]
    other = json.loads(edgec("compare", a, b, "--seed", 1, "--samples", 3, "--json").stdout)
    assert other["inputs"]["samples"] == 3
    assert other["outputs"] != first["outputs"]
    golden = tiny_artifact(tmp_path / "t.edgec")
    assert "synthetic" in edgec("compare", golden, golden, "--samples", 2).stderr


def test_a_named_dimension_takes_the_size_that_the_other_has(tmp_path: Path) -> None:
    a = linear(tmp_path / "a.edgec", 1.0, ("batch", "width"))
    b = linear(tmp_path / "b.edgec", 1.0, (1, 7))
    for pair in ((a, b), (b, a)):
        shape = json.loads(edgec("compare", *pair, "--json").stdout)
        assert shape["outputs"][0]["identical"]
        assert shape["outputs"][0]["snr_db"] is None


def test_each_model_prepares_samples_its_own_way(tmp_path: Path) -> None:
    """One multiplies by four in its pipeline, the other in its graph."""
    raw = linear(tmp_path / "a.edgec", 4.0)
    prepared = linear(tmp_path / "b.edgec", 1.0, pipeline=Pipeline(preprocess=(Normalize(scale=(4.0,)),)))
    np.savez(tmp_path / "data.npz", x=np.arange(12, dtype=np.float32).reshape(3, 4))
    for pair in ((raw, prepared), (prepared, raw)):
        result = edgec("compare", *pair, "--data", tmp_path / "data.npz", "--json")
        assert json.loads(result.stdout)["outputs"][0]["identical"]


def test_a_source_model_is_compared_with_its_artifact(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra compiler")
    artifact = tiny_artifact(tmp_path / "a.edgec")
    with Artifact.open(artifact) as opened:
        opened.extract(tmp_path / "source", ["model.onnx", "weights.bin"])
    source = tmp_path / "source" / "model.onnx"
    result = edgec("compare", source, artifact)
    assert result.exit_code == 0
    assert f"a       {source} on onnxruntime" in result.stdout
    assert f"2 golden vectors of {artifact}" in result.stdout
    prepared = tiny_artifact(tmp_path / "b.edgec", pipeline=Pipeline(preprocess=(Normalize(scale=(4.0,)),)))
    np.savez(tmp_path / "data.npz", x=np.ones((3, 4), np.float32))
    result = edgec("compare", source, prepared, "--data", tmp_path / "data.npz")
    assert result.exit_code == 2
    assert f"{prepared} prepares its samples, {source} would take them as they are" in " ".join(
        result.stderr.split()
    )
    toml = tmp_path / "pipeline.toml"
    toml.write_text('[[preprocess]]\nstep = "normalize"\nscale = 4.0\n')
    result = edgec("compare", source, prepared, "--data", tmp_path / "data.npz", "-p", toml, "--json")
    assert json.loads(result.stdout)["outputs"][0]["max_abs_error"] < 1e-5


@pytest.mark.parametrize("changes", [{"shape": (1, 5)}, {"shape": (4,)}])
def test_models_of_different_inputs_need_data(tmp_path: Path, changes: Any) -> None:
    a, b = linear(tmp_path / "a.edgec", 1.0), linear(tmp_path / "b.edgec", 1.0, **changes)
    result = edgec("compare", a, b)
    assert isinstance(result.exception, DataError)
    assert "a.edgec takes x: float32[1, 4]; " in str(result.exception)
    assert "give --data, which goes through the pre-processing of each" in str(result.exception)


def test_models_of_different_outputs_cannot_be_compared(tmp_path: Path) -> None:
    a = tiny_artifact(tmp_path / "a.edgec")
    inputs = (TensorSpec("x", "float32", (1, 4)),)
    outputs = (TensorSpec("z", "float32", (1, 4)),)
    manifest = Manifest(
        model="m", model_version="1", target="cpu-x86_64", engine=onnxruntime_spec(weights=False),
        inputs=inputs, outputs=outputs,
    )  # fmt: skip
    b = pack(tmp_path / "b.edgec", manifest, onnx_members([Node("Relu", ["x"], ["z"])], inputs, outputs))
    result = edgec("compare", a, b)
    assert isinstance(result.exception, DataError)
    assert "a.edgec gives y; " in str(result.exception)
    result = edgec("compare", a, linear(tmp_path / "c.edgec", 1.0))
    assert isinstance(result.exception, DataError)
    assert "output 'y' has shape [1, 4], the reference has [1, 3]" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "x.npz", "--seed", 1], "--seed is for synthetic inputs"),
        (["--pipeline", "p.toml"], "--pipeline is for ONNX models"),
        (["--samples", 0], "0 is not in the range"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: list[Any], message: str) -> None:
    a = tiny_artifact(tmp_path / "a.edgec")
    result = edgec("compare", a, a, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_text_from_models_is_printed_safely(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", "float32", (1, 4)),)
    outputs = (TensorSpec("y\x1b[31m", "float32", (1, 4)),)
    manifest = Manifest(
        model="m", model_version="1", target="cpu-x86_64", engine=onnxruntime_spec(weights=False),
        inputs=inputs, outputs=outputs,
    )  # fmt: skip
    members = onnx_members([Node("Relu", ["x"], ["y\x1b[31m"])], inputs, outputs)
    path = pack(tmp_path / "a.edgec", manifest, members)
    result = edgec("compare", path, path)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert r"y\x1b[31m" in result.output
