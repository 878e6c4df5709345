from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.artifact import Pipeline, TensorSpec
from edgec.artifact.steps import TopK
from edgec.errors import DataError
from edgec.evaluation import (
    describe_synthetic,
    evaluate,
    get_metric,
    open_dataset,
    predict_sample,
    synthetic_inputs,
)
from edgec.runtime import load
from edgec.runtime.testing import tiny_artifact


def labelled(path: Path, n: int, artifact: Path, wrong: int) -> Path:
    """Inputs of the tiny artifact with its own answers as labels, the last few made wrong."""
    x = np.random.default_rng(1).normal(size=(n, 4)).astype(np.float32)
    with load(artifact) as session:
        best = np.array([int(session.run({"x": row[None]})["y"].argmax()) for row in x])
    best[n - wrong :] = (best[n - wrong :] + 1) % 3
    np.savez(path, x=x, labels=best)
    return path


def test_a_session_is_scored_on_data(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    path = labelled(tmp_path / "data.npz", 40, artifact, wrong=10)
    seen: list[tuple[int, int]] = []
    with load(artifact) as session:
        data = open_dataset(path, inputs=session.inputs)
        found = evaluate(session, data, "top1", progress=lambda done, total: seen.append((done, total)))
        some = evaluate(session, data, get_metric("top1"), limit=4)
    assert found.score.value == 0.75
    assert (found.score.n, len(found.predictions), found.names[39]) == (40, 40, "39")
    assert found.predictions[0].keys() == {"classes"}  # not the raw scores
    assert seen == [(i + 1, 40) for i in range(40)]
    assert some.names == ["0", "10", "20", "30"]
    assert some.score.value == 0.75


def test_a_pipeline_gives_the_same_score(tmp_path: Path) -> None:
    pipeline = Pipeline(postprocess=(TopK(k=2),), labels=("a", "b", "c"))
    artifact = tiny_artifact(tmp_path / "tiny.edgec", pipeline=pipeline)
    path = labelled(tmp_path / "data.npz", 20, artifact, wrong=5)
    with load(artifact) as session:
        data = open_dataset(path, inputs=session.inputs, pipeline=pipeline)
        found = evaluate(session, data, "top1")
        with pytest.raises(DataError, match="top5 needs 5 classes per prediction, the model gives 2"):
            evaluate(session, data, "top5")
    assert found.score.value == 0.75
    assert found.predictions[0]["labels"][0] in "abc"


def test_data_without_labels_is_refused_before_anything_runs(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 4), np.float32))
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    with load(artifact) as session, pytest.raises(DataError, match="has no labels: metric top1 needs one"):
        evaluate(session, open_dataset(tmp_path / "data.npz"), "top1")


def embed(data: Any) -> Mapping[str, Any]:
    return {"embedding": np.array([len(data), 1.0])}


def classify(data: Any) -> Mapping[str, Any]:
    return {"seen": data}


def test_a_pair_of_texts_is_embedded_one_by_one() -> None:
    found = predict_sample(embed, ("ab", "abcd"))
    assert (found["embedding"].tolist(), found["embedding_b"].tolist()) == ([2.0, 1.0], [4.0, 1.0])
    assert predict_sample(classify, ("ab", "abcd")) == {"seen": ("ab", "abcd")}
    assert predict_sample(embed, "ab")["embedding"].tolist() == [2.0, 1.0]


def test_synthetic_inputs_are_seeded_and_say_what_they_are() -> None:
    specs = (
        TensorSpec("x", "float32", ("batch", 1000)),
        TensorSpec("pixels", "uint8", (1, 50)),
        TensorSpec("ids", "int64", (1, "tokens")),
        TensorSpec("flag", "bool", ()),
    )
    first, again, other = (synthetic_inputs(specs, 2, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[1][name], again[1][name]) for name in first[1])
    assert not np.array_equal(first[0]["x"], other[0]["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])
    for sample in first:
        assert {n: (str(a.dtype), a.shape) for n, a in sample.items()} == {
            "x": ("float32", (1, 1000)),
            "pixels": ("uint8", (1, 50)),
            "ids": ("int64", (1, 1)),
            "flag": ("bool", ()),
        }
    assert abs(float(first[0]["x"].std()) - 1) < 0.1
    assert describe_synthetic(specs) == (
        "x: standard normal; pixels: uniform integers 0..255; ids: uniform integers 0..1; flag: fair coin"
    )
    with pytest.raises(DataError, match="no inputs can be made up for"):
        synthetic_inputs((TensorSpec("t", "str", (1,)),), 1, 0)
