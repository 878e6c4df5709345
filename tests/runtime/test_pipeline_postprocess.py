"""From outputs to predictions: every step of `postprocess` but detection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.pipelines import Step, processor, spec

from edgec.artifact import Quantization, TensorSpec
from edgec.errors import PipelineError

Array = NDArray[Any]


def predict(after: list[Step], output: Array, **more: Any) -> dict[str, Any]:
    """Return what steps make of the only output of a model whose input is a number."""
    out = TensorSpec("y", str(output.dtype), output.shape, quantization=more.pop("quantization", None))
    made = processor([], after, [spec("x", "float32", 1)], [out], **more)
    return made.postprocess({"y": output}, made.preprocess(0)[1])


SCORES = np.array([[1.0, 3.0, -2.0, 3.0]], np.float32)


def test_softmax_does_not_overflow() -> None:
    logits = np.array([[-500.0, 0.0, 1e4, 1e4 - 1]], np.float32)
    got = predict([{"step": "softmax"}], logits)["y"]
    expected = np.exp(logits.astype(np.float64) - 1e4)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-6, atol=1e-12)
    columns = predict([{"step": "softmax", "axis": 1}], np.zeros((1, 4, 2), np.float32))["y"]
    np.testing.assert_allclose(columns, 0.25)


def test_sigmoid_does_not_overflow() -> None:
    logits = np.array([[-1e4, -3.0, 0.0, 3.0, 1e4]], np.float32)
    got = predict([{"step": "sigmoid"}], logits)["y"]
    np.testing.assert_allclose(got, [[0, 0.04742587, 0.5, 0.95257413, 1]], atol=1e-7)


def test_an_output_is_left_as_it_was() -> None:
    logits = SCORES.copy()
    predict([{"step": "softmax"}, {"step": "sigmoid"}, {"step": "top_k"}], logits)
    np.testing.assert_array_equal(logits, SCORES)


def test_top_k_is_best_first_and_the_first_of_equals() -> None:
    got = predict([{"step": "top_k", "k": 3}], SCORES, labels=["a", "b", "c", "d"])
    assert got["classes"].tolist() == [1, 3, 0]
    assert got["classes"].dtype == np.int64
    assert got["scores"].tolist() == [3, 3, 1]
    assert got["scores"].dtype == np.float32
    assert got["labels"] == ["b", "d", "a"]
    every = predict([{"step": "top_k", "k": 9}], SCORES[0])
    assert every["classes"].tolist() == [1, 3, 0, 2]
    assert every["labels"] == []


def test_top_k_of_bytes() -> None:
    # Negating bytes to sort them would put 0 first.
    assert predict([{"step": "top_k", "k": 2}], np.array([[0, 200, 100]], np.uint8))["classes"].tolist() == [
        1,
        2,
    ]


def test_a_batch_is_refused() -> None:
    made = processor([], [{"step": "top_k"}], [spec("x", "float32", "n")], [spec("y", "float32", "n", 4)])
    with pytest.raises(PipelineError, match="expected outputs of one sample"):
        made.postprocess({"y": np.zeros((2, 4), np.float32)}, made.preprocess(0)[1])


def test_threshold_drops_classes_or_finds_several() -> None:
    steps: list[Step] = [{"step": "top_k", "k": 4}, {"step": "threshold", "value": 1.0}]
    dropped = predict(steps, SCORES, labels=["a", "b", "c", "d"])
    assert dropped["classes"].tolist() == [1, 3, 0]
    assert dropped["labels"] == ["b", "d", "a"]
    several = predict([{"step": "threshold", "value": 1.0}], SCORES, labels=["a", "b", "c", "d"])
    assert several["classes"].tolist() == [1, 3, 0]
    assert several["scores"].tolist() == [3, 3, 1]
    none = predict([{"step": "threshold", "value": 9}], SCORES, labels=["a", "b", "c", "d"])
    assert none["classes"].tolist() == none["labels"] == []


def test_dequantize() -> None:
    output = np.array([[-128, 0, 127]], np.int8)
    own = predict([{"step": "dequantize"}], output, quantization=Quantization((0.5,), (-128,)))
    assert own["y"].tolist() == [[0, 64, 127.5]]
    given = predict([{"step": "dequantize", "scale": 2, "zero_point": 27}], output)
    assert given["y"].tolist() == [[-310, -54, 200]]
    assert given["y"].dtype == np.float32


class TestEmbedding:
    TOKENS = np.array([[[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]]], np.float32)

    def embed(self, step: Step, output: Array, mask: list[int] | None = None) -> Array:
        inputs = [spec("input_ids", "int64", 1, "n")]
        sample: dict[str, Any] = {"input_ids": [1, 2, 3]}
        if mask is not None:
            inputs.append(spec("attention_mask", "int64", 1, "n"))
            sample["attention_mask"] = mask
        made = processor([], [{"step": "embedding", **step}], inputs, [spec("y", "float32", *output.shape)])
        prediction = made.postprocess({"y": output}, made.preprocess(sample)[1])
        assert list(prediction) == ["embedding"]
        vector: Array = prediction["embedding"]
        assert vector.dtype == np.float32
        return vector

    def test_the_mean_leaves_padding_out(self) -> None:
        mean = self.embed({"pooling": "mean", "normalize": False}, self.TOKENS, [1, 1, 0])
        np.testing.assert_allclose(mean, [1.5, 2.0])
        unit = self.embed({"pooling": "mean"}, self.TOKENS, [1, 1, 0])
        np.testing.assert_allclose(unit, [0.6, 0.8], rtol=1e-6)

    def test_without_a_mask_every_token_counts(self) -> None:
        mean = self.embed({"pooling": "mean", "normalize": False}, self.TOKENS[:, :2])
        np.testing.assert_allclose(mean, [1.5, 2.0])

    def test_the_first_token(self) -> None:
        np.testing.assert_allclose(self.embed({"pooling": "first"}, self.TOKENS), [1, 0])

    def test_a_vector_as_it_is(self) -> None:
        np.testing.assert_allclose(self.embed({}, np.array([[3, 4]], np.float32)), [0.6, 0.8], rtol=1e-6)
        assert self.embed({}, np.zeros((1, 2), np.float32)).tolist() == [0, 0]

    def test_a_mask_of_another_length_is_refused(self) -> None:
        with pytest.raises(PipelineError, match="the mask has 3 tokens, the output 2"):
            self.embed({"pooling": "mean"}, self.TOKENS[:, :2], [1, 1, 0])


class TestReconstruction:
    def score(self, step: Step, sample: Array, output: Array, **quantized: Any) -> dict[str, Any]:
        source = spec("x", str(sample.dtype), *sample.shape, **quantized)
        result = spec("y", str(output.dtype), *output.shape, **quantized)
        made = processor([], [{"step": "reconstruction_error"}, step], [source], [result])
        return made.postprocess({"y": output}, made.preprocess(sample)[1])

    @pytest.mark.parametrize(("metric", "expected"), [("mse", 5.0), ("mae", 2.0)])
    def test_error_against_the_input(self, metric: str, expected: float) -> None:
        x, y = np.array([[0, 1, 2, 3]], np.float32), np.array([[1, 4, 1, 0]], np.float32)
        step: Step = {"step": "reconstruction_error", "metric": metric}
        made = processor([], [step], [spec("x", "float32", 1, 4)], [spec("y", "float32", 1, 4)])
        prediction = made.postprocess({"y": y}, made.preprocess(x)[1])
        assert prediction == {"anomaly_score": expected}
        assert isinstance(prediction["anomaly_score"], float)

    def test_threshold_judges(self) -> None:
        x, y = np.zeros((1, 2), np.float32), np.full((1, 2), 2, np.float32)
        assert self.score({"step": "threshold", "value": 4.0}, x, y) == {
            "anomaly_score": 4.0,
            "anomaly": True,
        }
        assert self.score({"step": "threshold", "value": 4.1}, x, y)["anomaly"] is False

    def test_integers_are_compared_as_what_they_stand_for(self) -> None:
        x, y = np.array([[0, 10]], np.int8), np.array([[2, 10]], np.int8)
        quantization = Quantization((0.5,), (-4,))
        got = self.score({"step": "threshold", "value": 9}, x, y, quantization=quantization)
        assert got["anomaly_score"] == 0.5
