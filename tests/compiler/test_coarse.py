"""Inputs that eight bits cannot hold are named where a build for an NPU fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from tests.compiler.networks import model_of

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.coarse import rounded_away
from edgec.errors import BudgetError, ParityError

RANDOM = np.random.default_rng(0)


def states(count: int) -> NDArray[np.float32]:
    """Return float32[count, 1, 8]: seven values within 1 and one of hundreds, as two states of an LSTM."""
    small = RANDOM.uniform(-1, 1, (count, 1, 8))
    small[..., 7] = RANDOM.uniform(-1000, 1000, (count, 1))
    return small.astype(np.float32)


def test_an_input_of_two_scales_is_named_with_what_to_do() -> None:
    even = RANDOM.uniform(-1, 1, (4, 1, 8)).astype(np.float32)
    dark = np.where(RANDOM.random((4, 1, 8)) < 0.9, 0, even)  # exact zeros are no loss
    numbers = np.arange(8, dtype=np.int64)[None]
    samples = [
        {"even": even[i], "dark": dark[i], "state": states(1)[0], "numbers": numbers, "none": even[i] * 0}
        for i in range(4)
    ]
    (said,) = rounded_away(samples)
    assert said.startswith("of input 'state', 8")
    assert "become 0 in 8 bits" in said
    assert "int16x8" in said


@pytest.mark.slow
def test_a_build_that_fails_for_it_says_so(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    keep = np.zeros((8, 4), np.float32)
    keep[:4] = np.eye(4)  # what the model gives comes from the small values alone
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    model = model_of(nodes, {"x": (1, 8)}, {"y": (1, 4)}, {"w": keep})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "calibration.npz", x=states(64))
    with pytest.raises((ParityError, BudgetError), match=r"of input 'x', 8.* become 0 in 8 bits"):
        compile_model(
            tmp_path / "m.onnx",
            ["npu-tflite"],
            tmp_path / "out",
            calibration=tmp_path / "calibration.npz",
            options=CompileOptions(measure_s=0.05, workers=0),
        )
