"""One implementation of pre- and post-processing, for calibration, evaluation, benchmark and runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgec.artifact import Pipeline, TensorSpec
from edgec.errors import PipelineError
from edgec.runtime.pipeline._plan import Array, Context
from edgec.runtime.pipeline._postprocess import Postprocessing
from edgec.runtime.pipeline._preprocess import Preprocessing
from edgec.runtime.pipeline._work import Facts


def _plan(
    pipeline: Pipeline, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> tuple[Preprocessing, Postprocessing]:
    before = Preprocessing(pipeline.preprocess, inputs)
    return before, Postprocessing(
        pipeline.postprocess, Facts(inputs, outputs, pipeline.labels, before.frames)
    )


def check_pipeline(
    pipeline: Pipeline | None, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Do nothing if `pipeline` can fit a model; no file is read and no library loaded.

    Raises:
        PipelineError: It cannot; the message names the step and says what to change.
    """
    _plan(pipeline or Pipeline(), inputs, outputs)


class Processor:
    """A pipeline, ready to work for a model. Safe to use from several threads.

    Args:
        pipeline: What was declared; None where the model takes and gives bare tensors.
        inputs: What the model takes.
        outputs: What the model gives.
        files: Gives the content of a file of `Pipeline.files`: ``artifact.read``, or
            ``pipeline.read_source`` where there is no artifact yet.

    Raises:
        PipelineError: The pipeline cannot fit the model, or a file of it is wrong or not at hand.
        MissingExtraError: A step needs a library that is not installed.
    """

    def __init__(
        self,
        pipeline: Pipeline | None,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        files: Callable[[str], bytes] | None = None,
    ) -> None:
        self._before, self._after = _plan(pipeline or Pipeline(), inputs, outputs)
        self._before.load(files)

    def preprocess(self, sample: Any) -> tuple[dict[str, Array], Context]:
        """Turn one sample into the inputs of the model.

        Args:
            sample: An array, with or without a batch axis of 1; for an image also a path or the bytes of an
                encoded file; a text, or a tuple of two that belong together. Where the model takes several
                inputs, a mapping of these by name of the input.

        Returns:
            The inputs, each with a batch of 1, and what `postprocess` needs to know of them.

        Raises:
            PipelineError: The sample is not what the steps or the model take.
        """
        context = self._before.run(sample)
        return dict(context.inputs), context

    def postprocess(self, outputs: Mapping[str, Array], context: Context) -> dict[str, Any]:
        """Turn what the model gave for one sample into a prediction.

        Args:
            outputs: By name, each with a batch of 1.
            context: What `preprocess` gave with the inputs.

        Returns:
            By what the steps make: ``{"classes": int64[k], "scores": float32[k], "labels": list[str]}``,
            the same with ``"boxes": float32[n, 4]`` (corners in pixels of the source image),
            ``{"embedding": float32[d]}`` or ``{"anomaly_score": float}``; the outputs by name where no
            step makes a prediction.

        Raises:
            PipelineError: The outputs are of more than one sample.
        """
        return self._after.run(outputs, context)


def stack_batch(samples: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join the inputs of several samples to those of one batch, in order.

    Raises:
        PipelineError: They differ in shape, as unpadded texts do.
        ValueError: There are none.
    """
    if not samples:
        raise ValueError("stack_batch needs at least one sample")
    try:
        return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    except ValueError as e:
        raise PipelineError(
            f"samples of different shapes cannot be one batch: {e}; pad them to one size"
        ) from e


def split_batch(outputs: Mapping[str, Array], size: int) -> list[dict[str, Array]]:
    """Split the outputs of a batch into those of each sample, views with a batch of 1.

    Raises:
        PipelineError: An output does not have `size` as its first axis.
    """
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != size:
            raise PipelineError(f"output {name!r} has shape {list(array.shape)}, not a batch of {size}")
    return [{name: array[i : i + 1] for name, array in outputs.items()} for i in range(size)]
