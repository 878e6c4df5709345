"""Weights that an engine has packed anew are not in memory a second time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import Artifact, Manifest, TensorSpec, pack
from edgec.runtime import load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is resident is Linux's to tell")
MIB = 2**20


def packed(path: Path) -> Path:
    """Write a product of a vector with a matrix of 16 MiB."""
    w = np.random.default_rng(0).standard_normal((256, 16384)).astype(np.float32)
    inputs, outputs = (TensorSpec("x", "float32", (1, 256)),), (TensorSpec("y", "float32", (1, 16384)),)
    manifest = Manifest(
        model="wide",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(),
        inputs=inputs,
        outputs=outputs,
    )
    members = onnx_members([Node("MatMul", ["x", "w"], ["y"])], inputs, outputs, {"w": w})
    return pack(path, manifest, members)


def resident(path: Path) -> int:
    """Return how many bytes of a mapped file are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_pages_are_given_back_and_come_again(tmp_path: Path) -> None:
    path = packed(tmp_path / "wide.edgec")
    with Artifact.open(path) as artifact:
        before = bytes(artifact.view("weights.bin"))
        assert resident(path) > 15 * MIB
        artifact.give_back_pages()
        assert resident(path) < MIB
        assert artifact.view("weights.bin") == before


def test_a_session_does_not_hold_what_its_engine_has_packed(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = packed(tmp_path / "wide.edgec")
    with load(path, threads=1) as session:
        assert session.run({"x": np.ones((1, 256), np.float32)})["y"].shape == (1, 16384)
        assert resident(path) < MIB
