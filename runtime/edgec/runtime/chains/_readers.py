"""How the parts of a sample become the values that a chain begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Step
from edgec.errors import PipelineError
from edgec.runtime.chains._plan import Array
from edgec.runtime.chains._steps import ImageInput, TensorInput
from edgec.runtime.pipeline import conform, read_image, to_array


def reader(declared: Step, spec: TensorSpec) -> Callable[[Any], Any]:
    """Return how a part of a sample becomes a value."""
    if isinstance(declared, TensorInput):
        dtype = np.dtype(spec.dtype)

        def read(sample: Any) -> Array:
            # What fits already is nearly always what comes.
            if type(sample) is np.ndarray and sample.dtype is dtype and sample.shape == spec.shape:
                return sample
            return conform(to_array(sample), spec)

        return read
    if isinstance(declared, ImageInput):
        color = declared.color
        return lambda sample: read_image(sample, color)
    return _text_of


def _text_of(sample: Any) -> str:
    if not isinstance(sample, str):
        raise PipelineError(f"expected a text, got {type(sample).__name__}")
    return sample
