"""Postprocessing of scores: from logits to classes."""

from __future__ import annotations

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Dequantize, Sigmoid, Softmax, Step, Threshold, TopK
from edgec.runtime.pipeline._plan import Array, expect
from edgec.runtime.pipeline._tensor import dequantize, quantization_of
from edgec.runtime.pipeline._work import Facts, Operation, Planner, Prediction, Work, keep, named, row


def _plan_dequantize(step: Dequantize, facts: Facts) -> Operation:
    spec = facts.changed_output(step)
    expect(np.dtype(spec.dtype).kind in "iu", f"dequantize: output {spec} holds no integers: drop the step")
    scale, zero_point = quantization_of(step, spec)

    def run(work: Work) -> None:
        work.tensors[spec.name] = dequantize(work.tensors[spec.name], scale, zero_point)

    return run


def _plan_softmax(step: Softmax, facts: Facts) -> Operation:
    spec, axis = facts.changed_output(step), step.axis
    rank = len(spec.shape)
    expect(-rank <= axis < rank, f"softmax: output {spec} has no axis {axis}")

    def run(work: Work) -> None:
        tensor = work.tensors[spec.name]
        result = np.exp(tensor - tensor.max(axis=axis, keepdims=True), dtype=np.float32)
        result /= result.sum(axis=axis, keepdims=True)
        work.tensors[spec.name] = result

    return run


def _plan_sigmoid(step: Sigmoid, facts: Facts) -> Operation:
    spec = facts.changed_output(step)

    def run(work: Work) -> None:
        work.tensors[spec.name] = sigmoid(work.tensors[spec.name])

    return run


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) as float32; unlike that formula, tanh does not overflow."""
    result: Array = np.multiply(x, np.float32(0.5), dtype=np.float32)
    np.tanh(result, out=result)
    result *= np.float32(0.5)
    result += np.float32(0.5)
    return result


def _plan_top_k(step: TopK, facts: Facts) -> Operation:
    facts.becomes(step, "classes")
    spec, k, labels = facts.output_of(step), step.k, facts.labels
    facts.check_labels(step, _class_count(step, spec))

    def run(work: Work) -> None:
        scores = row(work.tensors[spec.name]).reshape(-1).astype(np.float32)
        best = np.argsort(-scores, kind="stable")[:k]
        work.prediction = _classes(best, scores, labels)

    return run


def _class_count(step: Step, spec: TensorSpec) -> int | str:
    sizes = [n for n in spec.shape[1:] or spec.shape if n != 1]
    expect(len(sizes) <= 1, f"{step.step}: expected scores [1, classes], the model has {spec}")
    return sizes[0] if sizes else 1


def _classes(chosen: Array, scores: Array, labels: tuple[str, ...]) -> Prediction:
    classes = chosen.astype(np.int64)
    return {"classes": classes, "scores": scores[chosen], "labels": named(classes, labels)}


def _plan_threshold(step: Threshold, facts: Facts) -> Operation:
    value = step.value
    if facts.kind is None:
        return _plan_multi_label(step, facts)
    expect(facts.kind in ("classes", "boxes", "anomaly"), f"threshold: an {facts.kind} has no score")
    if facts.kind == "anomaly":

        def judge(work: Work) -> None:
            assert work.prediction is not None
            work.prediction["anomaly"] = work.prediction["anomaly_score"] >= value

        return judge

    def drop(work: Work) -> None:
        assert work.prediction is not None
        keep(work.prediction, np.nonzero(work.prediction["scores"] >= value)[0])

    return drop


def _plan_multi_label(step: Threshold, facts: Facts) -> Operation:
    facts.becomes(step, "classes")
    spec, value, labels = facts.output_of(step), step.value, facts.labels
    facts.check_labels(step, _class_count(step, spec))

    def run(work: Work) -> None:
        scores = row(work.tensors[spec.name]).reshape(-1).astype(np.float32)
        best = np.argsort(-scores, kind="stable")
        work.prediction = _classes(best[scores[best] >= value], scores, labels)

    return run


PLANNERS: dict[type, Planner] = {
    Dequantize: _plan_dequantize,
    Softmax: _plan_softmax,
    Sigmoid: _plan_sigmoid,
    TopK: _plan_top_k,
    Threshold: _plan_threshold,
}
