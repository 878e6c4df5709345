"""Steps on tensors of any meaning."""

from __future__ import annotations

from edgec.artifact.steps._image import InputStep
from edgec.artifact.steps._step import key, number, numbers, one_of, whole, wholes

MAX_CHANNELS = 16384
"""Most values that a per-channel key may list."""

MAX_AXIS = 1 << 24
"""Longest axis that a step may ask for."""


class Dtype(InputStep, step="dtype"):
    """Change the element type, values kept; a value the type cannot hold is an error."""

    to: str = key(
        one_of("float32", "float16", "uint8", "int8", "int32", "int64", "bool"), "Element type of the result."
    )


class Normalize(InputStep, step="normalize"):
    """Compute (x * scale - mean) / std in float32, per channel where a list is given.

    The channel is the axis `C` of an image, the last axis of anything else.
    """

    scale: tuple[float, ...] = key(
        numbers(MAX_CHANNELS), "Factor: 0.00392156862745098 maps 0..255 to 0..1.", default=(1.0,)
    )
    mean: tuple[float, ...] = key(numbers(MAX_CHANNELS), "Subtracted after scaling.", default=(0.0,))
    std: tuple[float, ...] = key(numbers(MAX_CHANNELS), "Divides last; not 0.", default=(1.0,))

    def validate(self) -> None:
        if 0.0 in self.std:
            raise self.refuse("std: expected numbers other than 0, got 0")
        lengths = {len(values) for values in (self.scale, self.mean, self.std)} - {1}
        if len(lengths) > 1:
            raise self.refuse(
                f"scale, mean and std have {len(self.scale)}, {len(self.mean)} and {len(self.std)} values: "
                "give one, or one per channel"
            )


class Reshape(InputStep, step="reshape"):
    """Give a sample another shape, values in the same order.

    Where the result lacks the model's batch axis, that is added.
    """

    shape: tuple[int, ...] = key(
        wholes(8, -1, MAX_AXIS), "Sizes of the axes; one may be -1, which is computed."
    )

    def validate(self) -> None:
        if self.shape.count(-1) > 1 or 0 in self.shape:
            raise self.refuse(f"shape: expected sizes from 1, at most one of them -1, got {list(self.shape)}")


class Quantize(InputStep, step="quantize"):
    """Round real numbers to integers, round(x / scale) + zero_point, for a model that takes integers.

    Without `scale` and `zero_point` those of the model's input are used.
    """

    scale: float | None = key(number(1e-30, 1e30), "Real number that one step stands for.", default=None)
    zero_point: int | None = key(whole(-(2**31), 2**31), "Integer that stands for 0.", default=None)

    def validate(self) -> None:
        if (self.scale is None) != (self.zero_point is None):
            raise self.refuse("scale and zero_point: give both, or none to use those of the model's input")
