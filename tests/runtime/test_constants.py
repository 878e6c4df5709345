"""Inputs that are one number in every call, in streams and chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.streams.parts import with_gain

from edgec.artifact import TensorSpec
from edgec.errors import InputError, PipelineError
from edgec.runtime import load_chain
from edgec.runtime._constants import constant_input


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        *(
            ("float16", 1e10),
            ("float16", -70000),
            ("float16", 1e-30),
            ("float32", 1e39),
            ("float32", 16777217),
        ),
        *(("uint8", 300), ("uint8", -1), ("uint8", 300.0), ("int64", 1.5), ("int64", 10**30)),
        *(("int32", float("nan")), ("int32", float("inf")), ("bool", 2), ("object", 1)),
    ],
)
def test_a_number_that_would_become_another_is_refused(dtype: str, number: float) -> None:
    with pytest.raises(InputError, match=r"does not hold .*: expected "):
        constant_input(TensorSpec("x", dtype, (1,)), number)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        *(("float16", 0.1), ("float16", 65504), ("float32", float("inf")), ("float64", 0.0), ("bool", 1)),
        *(("uint8", 255), ("uint8", 255.0), ("int64", 1e10), ("int64", -(2**63))),
    ],
)
def test_others_fill_the_input(dtype: str, number: float) -> None:
    array = constant_input(TensorSpec("x", dtype, ("batch", 2)), number)
    assert (array.dtype, array.shape) == (np.dtype(dtype), (1, 2))
    assert array == pytest.approx(np.full((1, 2), number), rel=1e-3)


def test_a_chain_refuses_a_constant_that_its_model_does_not_hold(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    with_gain(tmp_path / "gain.edgec", "float16")
    chain = tmp_path / "one.chain.toml"
    chain.write_text(
        'name = "one"\ninputs.x = { shape = [1, 2] }\noutputs = { y = "run.y" }\n[[stages]]\nname = "run"\n'
        'artifact = "gain.edgec"\ninputs = { x = "x" }\nconstants = { gain = 1e10 }\n'
    )
    with pytest.raises(PipelineError, match=r"constants: gain: float16.1. does not hold 10000000000"):
        load_chain(chain)
