"""Models that take a text and more: which input a sample of a stream goes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.artifact.steps import Tokenize
from edgec.errors import InputError
from edgec.runtime import load
from edgec.runtime.streams import WithFixed, check_fed_by_one
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
tokenizers = pytest.importorskip("tokenizers", reason="the extra `text` is not installed")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack a model of a text and a temperature, with the text's mask as its first input."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "hot": 1, "cold": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inputs = (
        TensorSpec("attention_mask", "int64", (1, "n")),
        TensorSpec("input_ids", "int64", (1, "n")),
        TensorSpec("temperature", "float32", (1,)),
    )
    outputs = (TensorSpec("tokens", "int64", (1, "n")), TensorSpec("warmer", "float32", (1,)))
    nodes = [
        Node("Mul", ["input_ids", "attention_mask"], ["tokens"]),
        Node("Add", ["temperature", "temperature"], ["warmer"]),
    ]
    manifest = Manifest(
        model="warm",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
        pipeline=Pipeline(preprocess=(Tokenize(file="tokenizer.json"),)),
    )
    members = {**onnx_members(nodes, inputs, outputs, {}), "tokenizer.json": words.to_str().encode()}
    return pack(tmp_path_factory.mktemp("text") / "warm.edgec", manifest, members)


def test_a_text_goes_to_its_tokenizer(warm: Path) -> None:
    with load(warm) as session:
        fixed = {"temperature": np.array([4], np.float32)}
        check_fed_by_one(session, {}, fixed)
        made = WithFixed(session, fixed).predict("cold hot")
    assert made["tokens"].tolist() == [[2, 1]]
    assert made["warmer"].tolist() == [8]


@pytest.mark.parametrize("name", ["attention_mask", "input_ids"])
def test_what_a_tokenizer_makes_cannot_be_fixed(warm: Path, name: str) -> None:
    fixed: dict[str, NDArray[Any]] = {
        "temperature": np.array([4], np.float32),
        name: np.ones((1, 2), np.int64),
    }
    with load(warm) as session, pytest.raises(InputError, match=f"its tokenizer makes {name} of the text"):
        WithFixed(session, fixed)


def test_a_model_that_runs_bare_has_no_tokenizer(warm: Path) -> None:
    with load(warm) as session, pytest.raises(InputError, match=r"others come from .input_ids: int64"):
        check_fed_by_one(session, {"temperature": "warmer"}, {})
