"""From the outputs of the model to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import (
    Dequantize,
    Embedding,
    OutputStep,
    ReconstructionError,
    Sigmoid,
    Softmax,
    Step,
    Threshold,
    TopK,
)
from edgec.errors import PipelineError
from edgec.runtime.pipeline._plan import Array, Context, Frame, expect, numbered
from edgec.runtime.pipeline._tensor import dequantize, quantization_of, single

Prediction = dict[str, Any]


class Facts:
    """What is known, while a stage is planned, before any output.

    Attributes:
        inputs: Specs of the model's inputs, by name.
        outputs: Specs of the model's outputs, by name.
        labels: Names of the classes.
        frames: Inputs that are images with a known geometry.
        kind: What the prediction is so far: None, ``classes``, ``boxes``, ``embedding`` or ``anomaly``.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        labels: tuple[str, ...],
        frames: tuple[str, ...],
    ) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self.labels = labels
        self.frames = frames
        self.kind: str | None = None

    def output_of(self, step: OutputStep, name: str | None = None) -> TensorSpec:
        """Return the output that a step reads: `name`, the one it names, or the only one."""
        name = name or step.output
        if name is None:
            expect(
                len(self.outputs) == 1,
                f"{step.step}: say which output it reads (key output): {', '.join(self.outputs)}",
            )
            return next(iter(self.outputs.values()))
        expect(
            name in self.outputs,
            f"{step.step}: the model has no output {name!r}; it has {', '.join(self.outputs)}",
        )
        return self.outputs[name]

    def becomes(self, step: Step, kind: str) -> None:
        """Note that `step` makes the prediction."""
        expect(self.kind is None, f"{step.step}: an earlier step makes the prediction already ({self.kind})")
        self.kind = kind

    def check_labels(self, step: Step, classes: int | str) -> None:
        """Refuse labels that are not one per class."""
        expect(
            not self.labels or isinstance(classes, str) or len(self.labels) == classes,
            f"{step.step}: the model tells {classes} classes apart, there are {len(self.labels)} labels",
        )


class Work:
    """What the operations of one call read and change.

    Attributes:
        tensors: The outputs, by name, as the steps so far have changed them.
        context: Of the sample.
        frame: Geometry of the image that boxes belong to.
        prediction: What the steps so far have made of them.
    """

    __slots__ = ("context", "frame", "prediction", "tensors")

    def __init__(self, tensors: dict[str, Array], context: Context) -> None:
        self.tensors = tensors
        self.context = context
        self.frame: Frame | None = None
        self.prediction: Prediction | None = None


Operation = Callable[[Work], None]
Planner = Callable[[Any, Facts], Operation]


def row(array: Array) -> Array:
    """Return what a batch of one holds.

    Raises:
        PipelineError: There is more in it.
    """
    if array.ndim < 2:
        return array
    if array.shape[0] != 1:
        raise PipelineError(
            f"expected outputs of one sample, got a batch {list(array.shape)}: use split_batch"
        )
    return np.asarray(array[0])


def named(classes: Array, labels: tuple[str, ...]) -> list[str]:
    """Return the label of each class; nothing where there are no labels."""
    if not labels:
        return []
    return [labels[c] if 0 <= c < len(labels) else str(c) for c in classes.tolist()]


def _plan_dequantize(step: Dequantize, facts: Facts) -> Operation:
    spec = facts.output_of(step)
    expect(np.dtype(spec.dtype).kind in "iu", f"dequantize: output {spec} holds no integers: drop the step")
    scale, zero_point = quantization_of(step, spec)

    def run(work: Work) -> None:
        work.tensors[spec.name] = dequantize(work.tensors[spec.name], scale, zero_point)

    return run


def _plan_softmax(step: Softmax, facts: Facts) -> Operation:
    spec, axis = facts.output_of(step), step.axis
    rank = len(spec.shape)
    expect(-rank <= axis < rank, f"softmax: output {spec} has no axis {axis}")

    def run(work: Work) -> None:
        tensor = work.tensors[spec.name]
        result = np.exp(tensor - tensor.max(axis=axis, keepdims=True), dtype=np.float32)
        result /= result.sum(axis=axis, keepdims=True)
        work.tensors[spec.name] = result

    return run


def _plan_sigmoid(step: Sigmoid, facts: Facts) -> Operation:
    spec = facts.output_of(step)

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


def keep(prediction: Prediction, kept: Array) -> None:
    """Keep the entries `kept`, by index and in that order, of a prediction of classes or boxes."""
    for name in ("boxes", "scores", "classes"):
        if name in prediction:
            prediction[name] = prediction[name][kept]
    labels = prediction["labels"]
    prediction["labels"] = [labels[i] for i in kept.tolist()] if labels else labels


def _plan_embedding(step: Embedding, facts: Facts) -> Operation:
    facts.becomes(step, "embedding")
    spec, pooling, normalize = facts.output_of(step), step.pooling, step.normalize
    rank = len(spec.shape)
    wanted = (1, 2) if pooling == "none" else (3,)
    shape = "[1, d]" if pooling == "none" else "[1, tokens, d]"
    expect(rank in wanted, f"embedding: pooling {pooling!r} expects an output {shape}, the model has {spec}")
    mask = step.mask if step.mask in facts.inputs else None

    def run(work: Work) -> None:
        vector = row(work.tensors[spec.name]).astype(np.float32, copy=False)
        if pooling == "mean":
            vector = _mean(vector, work.context.inputs[mask] if mask else None)
        elif pooling == "first":
            vector = vector[0]
        length = np.linalg.norm(vector) if normalize else 1.0
        work.prediction = {"embedding": vector / np.float32(max(length, 1e-12))}

    return run


def _mean(tokens: Array, mask: Array | None) -> Array:
    """Return the mean of float32[tokens, d] over those whose `mask`, [1, tokens], is not 0."""
    weights = np.ones(len(tokens), np.float32) if mask is None else mask.reshape(-1).astype(np.float32)
    if len(weights) != len(tokens):
        raise PipelineError(f"embedding: the mask has {len(weights)} tokens, the output {len(tokens)}")
    mean: Array = (weights @ tokens) / max(float(weights.sum()), 1e-9)
    return mean


def _plan_reconstruction_error(step: ReconstructionError, facts: Facts) -> Operation:
    facts.becomes(step, "anomaly")
    output = facts.output_of(step)
    expect(
        step.input in facts.inputs if step.input else len(facts.inputs) == 1,
        f"reconstruction_error: say which input is reconstructed (key input): {', '.join(facts.inputs)}",
    )
    source = facts.inputs[step.input or next(iter(facts.inputs))]
    expect(
        len(source.shape) == len(output.shape)
        and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(source.shape, output.shape, strict=True)
        ),
        f"reconstruction_error: output {output} has not the shape of input {source}",
    )
    squared = step.metric == "mse"

    def run(work: Work) -> None:
        error = _real(work.context.inputs[source.name], source) - _real(work.tensors[output.name], output)
        magnitude = np.square(error, out=error) if squared else np.abs(error, out=error)
        work.prediction = {"anomaly_score": float(magnitude.mean(dtype=np.float64))}

    return run


def _real(array: Array, spec: TensorSpec) -> Array:
    """Return the real numbers, float32, that `array` stands for."""
    known = single(spec.quantization)
    if array.dtype.kind in "iu" and known is not None:
        return dequantize(array, *known)
    return array.astype(np.float32, copy=False)


class Postprocessing:
    """The planned stage: how outputs become a prediction.

    Raises:
        PipelineError: The steps cannot fit the outputs; the message names the step.
    """

    def __init__(self, steps: tuple[Step, ...], facts: Facts) -> None:
        from edgec.runtime.pipeline._detection import PLANNERS as DETECTION
        from edgec.runtime.pipeline._detection import finish

        planners = _PLANNERS | DETECTION
        self._operations: list[Operation] = []
        for number, step in enumerate(steps, 1):
            with numbered("postprocess", number):
                self._operations.append(planners[type(step)](step, facts))
        if facts.kind == "boxes":
            self._operations.append(finish)

    def run(self, outputs: Mapping[str, Array], context: Context) -> Prediction:
        """Return the prediction; the outputs by name where no step makes one."""
        work = Work(dict(outputs), context)
        for operation in self._operations:
            operation(work)
        return work.tensors if work.prediction is None else work.prediction


_PLANNERS: dict[type, Planner] = {
    Dequantize: _plan_dequantize,
    Softmax: _plan_softmax,
    Sigmoid: _plan_sigmoid,
    TopK: _plan_top_k,
    Threshold: _plan_threshold,
    Embedding: _plan_embedding,
    ReconstructionError: _plan_reconstruction_error,
}
