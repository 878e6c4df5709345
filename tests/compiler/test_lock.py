"""Locks: what an artifact says of how it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from tests.compiler.networks import cnn

from edgec.artifact import Artifact, Manifest, Pipeline
from edgec.artifact.steps import Decode, Layout, Normalize
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.lock import read_lock, toolchain
from edgec.errors import ArtifactError, CompileError
from edgec.targets import load_target

OPTIONS = CompileOptions(
    precision="fp32", measure_s=0.05, workers=0, fold="on", name="eyes", version="7", inputs_stay=True
)
STEPS = (Decode(color="RGB"), Layout(order="NCHW"), Normalize(scale=(1 / 255,)))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("lock")
    (folder / "cnn.onnx").write_bytes(cnn().SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.savez(folder / "calibration.npz", image=images)
    pipeline = Pipeline(preprocess=STEPS, labels=tuple("abcde"))
    (path,) = compile_model(
        folder / "cnn.onnx",
        ["cpu-x86_64"],
        folder,
        pipeline=pipeline,
        calibration=folder / "calibration.npz",
        options=OPTIONS,
    ).artifacts
    with Artifact.open(path) as artifact:
        return artifact.manifest


def test_an_artifact_says_how_it_was_made(manifest: Manifest) -> None:
    assert manifest.privacy.inputs_stay
    lock = read_lock(manifest)
    assert lock.options == replace(OPTIONS, workers=None)  # which says where it is made, not what
    assert lock.target.to_dict() == load_target("cpu-x86_64").to_dict()
    assert lock.packages["onnxruntime"] == version("onnxruntime")
    assert lock.packages["edgec"] == version("edgec")
    assert lock.packages["flatbuffers"] == version("flatbuffers")  # which only ONNX Runtime asks for
    assert lock.calibration is not None
    assert lock.calibration.samples == 4
    assert (lock.evaluation, lock.metric, lock.recipe) == (None, None, "fp32")


def test_it_keeps_the_steps_that_went_into_the_graph(manifest: Manifest) -> None:
    assert manifest.pipeline is not None
    assert [step.step for step in manifest.pipeline.preprocess] == ["decode"]
    before = read_lock(manifest).pipeline
    assert before is not None
    assert before.preprocess == STEPS
    assert before.labels == tuple("abcde")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toolchain": None}, "no table 'toolchain'"),
        ({"source": {}}, "no text 'sha256'"),
        ({"target": {"name": "x"}}, "title: is missing"),
        ({"options": {"threads": "many"}}, "expected int, got 'many'"),
        ({"options": {"spin": 1}}, "option 'spin' is unknown"),
        ({"calibration": {"sha256": "0"}}, "how many samples"),
    ],
)
def test_an_incomplete_lock_is_refused(manifest: Manifest, change: dict[str, Any], message: str) -> None:
    broken = replace(manifest, provenance={**manifest.provenance, **change})
    with pytest.raises(ArtifactError, match=message):
        read_lock(broken)


def test_the_toolchain_is_what_is_installed() -> None:
    tools = toolchain()
    assert tools.keys() == {"python", "arch", "packages"}
    assert "pytest" not in tools["packages"]
    assert list(tools["packages"]) == sorted(tools["packages"])


def test_options_survive_json() -> None:
    options = CompileOptions(
        max_drop=None, shapes={"x": (1, 3)}, objective="size", budget_latency_ms=2, threads=3, seed=9
    )
    assert CompileOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    with pytest.raises(CompileError, match="another type"):
        CompileOptions.from_dict({"objective": "beauty"})
