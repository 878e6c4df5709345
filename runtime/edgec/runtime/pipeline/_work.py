"""What the steps of `postprocess` share while they are planned and while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import OutputStep, Step
from edgec.errors import PipelineError
from edgec.runtime.pipeline._plan import Array, Context, Frame, expect

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

    def changed_output(self, step: OutputStep) -> TensorSpec:
        """Return the output that a step replaces by something computed from it."""
        expect(self.kind is None, f"{step.step} comes too late: the prediction is made; move it up")
        return self.output_of(step)

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
"""A planned step: it changes what it is given."""

Planner = Callable[[Any, Facts], Operation]
"""From a step and what is known to what runs."""


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


def keep(prediction: Prediction, kept: Array) -> None:
    """Keep the entries `kept`, by index and in that order, of a prediction of classes or boxes."""
    for name in ("boxes", "scores", "classes"):
        if name in prediction:
            prediction[name] = prediction[name][kept]
    labels = prediction["labels"]
    prediction["labels"] = [labels[i] for i in kept.tolist()] if labels else labels
