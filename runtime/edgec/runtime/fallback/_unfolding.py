"""Inputs for a server whose model does the end of the pre-processing itself, where this device's does not.

``edgec compile`` puts the last steps of an image's pipeline into the model where that is faster on the
target. Of two artifacts of one model, one may then take pixels, uint8[n, h, w, c], and the other what its
pipeline makes of them, such as float32[n, c, h, w]. From these the pixels come back exactly: an axis is
moved, and an affine function of whole numbers from 0 to 255 is inverted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Manifest, TensorSpec
from edgec.artifact.steps import Color, Decode, Dtype, InputStep, Layout, Normalize
from edgec.errors import FallbackError
from edgec.runtime._oip import DATATYPES
from edgec.runtime.fallback._wire import Described
from edgec.runtime.pipeline import normalize_constants

Array = NDArray[Any]
# How far a value may be from a whole pixel: what float32 and float16 round away, with room.
_ROUNDING = {"float32": 0.02, "float16": 0.25}


class Unfolded(NamedTuple):
    """How the pixels of one input come back.

    Attributes:
        name: Of the input.
        dtype: That this device's model takes.
        channels_first: Whether that is [n, c, h, w].
        steps: Between the pixels and the model, in order.
    """

    name: str
    dtype: str
    channels_first: bool
    steps: tuple[InputStep, ...]

    def pixels(self, array: Array) -> Array:
        """Return uint8[n, h, w, c] or uint8[h, w, c].

        Raises:
            FallbackError: `array` was not made of pixels by the pipeline.
        """
        values = array.astype(np.float64)
        if self.channels_first:
            values = np.moveaxis(values, -3, -1)
        for step in reversed(self.steps):
            if isinstance(step, Normalize):
                factor, shift = normalize_constants(step)
                values = (values - shift) / factor
            elif isinstance(step, Color):
                values = values[..., ::-1]
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):  # infinity
            off = np.abs(values - whole).max(initial=0.0)
        fits = off <= _ROUNDING[self.dtype] and whole.min(initial=0.0) >= 0 and whole.max(initial=0.0) <= 255
        if not fits:  # also where one is NaN
            raise FallbackError(
                f"input {self.name!r}: the server's model takes pixels, from 0 to 255, and the artifact's "
                "pipeline makes these values of none: give `predict` an image, or `run` what the pipeline "
                "makes of one",
                "refused",
            )
        return np.ascontiguousarray(whole, np.uint8)


def unfolded(manifest: Manifest, wanted: Mapping[str, Described]) -> tuple[Unfolded, ...]:
    """Return what has to be done to inputs of an artifact for a server's model; nothing where they fit.

    Args:
        manifest: Of the artifact.
        wanted: What the server says that its model takes, by name.

    Raises:
        FallbackError: They do not fit, and cannot be made to; it names those that differ.
    """
    found, problems = [], []
    for spec in manifest.inputs:
        there = wanted.get(spec.name)
        if there is not None and _fits(spec.dtype, spec.shape, there):
            continue
        one = None if there is None else _unfold(manifest, spec, there)
        if one is not None:
            found.append(one)
        else:
            problems.append(f"{_told(spec)}, there {'is none' if there is None else f'it is {there}'}")
    if problems:
        raise FallbackError(
            f"the server's model takes other inputs than this artifact: {'; '.join(problems)}. Where "
            "pre-processing is part of the model there and not here, or the reverse, compile both with the "
            "same `edgec compile --fold on` or `--fold off`",
            "refused",
        )
    return tuple(found)


def fitted(how: tuple[Unfolded, ...], inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return inputs as a server's model takes them: `how` comes from `unfolded`.

    Raises:
        FallbackError: They are not what the pipeline makes of pixels.
    """
    return {**inputs, **{one.name: one.pixels(inputs[one.name]) for one in how}} if how else inputs


def _unfold(manifest: Manifest, spec: TensorSpec, there: Described) -> Unfolded | None:
    steps = _movable(manifest, spec)
    if spec.dtype not in _ROUNDING or len(spec.shape) not in (3, 4) or not steps:
        return None
    if any(isinstance(step, Normalize) and not normalize_constants(step)[0].all() for step in steps):
        return None
    first = any(isinstance(step, Layout) and step.order.endswith("CHW") for step in steps)
    shape = spec.shape
    if first:
        *lead, channels, height, width = shape
        shape = (*lead, height, width, channels)
    return Unfolded(spec.name, spec.dtype, first, steps) if _fits("uint8", shape, there) else None


def _movable(manifest: Manifest, spec: TensorSpec) -> tuple[InputStep, ...]:
    """Return the last steps of an input that the compiler may put into the model."""
    only = len(manifest.inputs) == 1
    every = () if manifest.pipeline is None else manifest.pipeline.preprocess
    steps = [
        s for s in every if isinstance(s, InputStep) and (s.input == spec.name or (s.input is None and only))
    ]
    start = len(steps)
    while start and _can_move(steps, start - 1):
        start -= 1
    return tuple(steps[start:]) if steps and isinstance(steps[0], Decode) else ()


def _can_move(steps: list[InputStep], index: int) -> bool:
    step = steps[index]
    if isinstance(step, Color):  # between RGB and BGR it only changes the order of channels
        earlier = (
            s.color if isinstance(s, Decode) else s.order
            for s in reversed(steps[:index])
            if isinstance(s, Decode | Color)
        )
        return {next(earlier, ""), step.order} == {"RGB", "BGR"}
    return isinstance(step, Normalize | Layout) or (isinstance(step, Dtype) and step.to in _ROUNDING)


def _fits(dtype: str, shape: tuple[int | str, ...], there: Described) -> bool:
    return (
        there.datatype == DATATYPES[dtype]
        and len(there.shape) == len(shape)
        and all(isinstance(n, str) or m in (-1, n) for n, m in zip(shape, there.shape, strict=True))
    )


def _told(spec: TensorSpec) -> str:
    shape = tuple(n if isinstance(n, int) else -1 for n in spec.shape)
    return f"input {spec.name!r} is {Described(DATATYPES[spec.dtype], shape)} here"
