"""Inputs that are made up are so by one rule, wherever they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import edgec.evaluation
from edgec.artifact import Artifact, TensorSpec, pack
from edgec.runtime._synthetic import calling_inputs, synthetic_inputs
from edgec.runtime.testing import tiny_artifact

SPECS = (TensorSpec("pixels", "uint8", (1, 500)), TensorSpec("ids", "int64", ("batch", 500)))


def test_bytes_take_their_whole_range_and_indices_stay_small() -> None:
    [inputs] = synthetic_inputs(SPECS, 1, 0)
    assert (inputs["pixels"].min(), inputs["pixels"].max()) == (0, 255)
    assert set(np.unique(inputs["ids"])) == {0, 1}
    assert inputs["ids"].shape == (1, 500)


def test_evaluation_makes_up_the_same(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec")
    with Artifact.open(path) as artifact:
        members = {name: artifact.read(name) for name in ("weights.bin", "model.onnx")}
        bare = pack(tmp_path / "bare.edgec", artifact.manifest, members)
    with Artifact.open(bare) as artifact:
        made, kind = calling_inputs(artifact)
        expected = edgec.evaluation.synthetic_inputs(artifact.manifest.inputs, 1, 0)
    assert kind == "synthetic"
    for mine, theirs in zip(made, expected, strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array)
