"""What planning and running a pipeline share: facts about values, the geometry of an image, the context.

A pipeline is planned once for the specs of a model: each step becomes a function, and what the step gives is
derived from what it takes, so that a pipeline that cannot fit is refused before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import PipelineError

Array = NDArray[Any]


class Value(NamedTuple):
    """What is known, before any sample, about a value between two steps; None where nothing is.

    Attributes:
        dtype: Element type.
        shape: Size of each axis, None for one that depends on the sample.
        layout: Meaning of the axes where the value is an image: ``HWC``.
        color: Order of its channels.
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    layout: str | None = None
    color: str | None = None

    def __str__(self) -> str:
        sizes = (
            "any shape" if self.shape is None else ", ".join("?" if n is None else str(n) for n in self.shape)
        )
        layout = f" {self.layout}" if self.layout else ""
        return f"{self.dtype or 'any dtype'}[{sizes}]{layout}"


class Frame:
    """Where the pixels of a source image went: x in the result = x in the source * scale + offset.

    Coordinates are continuous, with (0, 0) the outer corner of the first pixel.

    Attributes:
        source: Width and height of the image that was read.
        size: Width and height of what the steps made of it so far.
        scale: Along x and y.
        offset: Along x and y.
    """

    __slots__ = ("offset", "scale", "size", "source")

    def __init__(self, width: int, height: int) -> None:
        self.source = self.size = (width, height)
        self.scale = (1.0, 1.0)
        self.offset = (0.0, 0.0)

    def scaled(self, width: int, height: int) -> None:
        """Note that the image was scaled to a size."""
        x, y = width / self.size[0], height / self.size[1]
        self.scale = (self.scale[0] * x, self.scale[1] * y)
        self.offset = (self.offset[0] * x, self.offset[1] * y)
        self.size = (width, height)

    def moved(self, left: int, top: int, width: int, height: int) -> None:
        """Note that the image went `left` and `top` pixels right and down, on a canvas of a size."""
        self.offset = (self.offset[0] + left, self.offset[1] + top)
        self.size = (width, height)


class Context:
    """What postprocessing needs to know of preprocessing.

    Attributes:
        inputs: What the model was given, by name.
        frames: Geometry of the images among them, by name.
    """

    __slots__ = ("frames", "inputs")

    def __init__(self, inputs: Mapping[str, Array], frames: Mapping[str, Frame]) -> None:
        self.inputs = inputs
        self.frames = frames


Operation = Callable[[Any, Frame], Any]
"""A planned step on one input: the value and the geometry of its image to the next value."""

Planner = Callable[[Any, Value, TensorSpec], tuple[Operation, Value]]
"""From a step, what it takes and the input that it prepares, to what runs and what it gives."""


@contextmanager
def numbered(stage: str, number: int) -> Iterator[None]:
    """Say, in a PipelineError that is raised within, which step of `stage` it is about."""
    try:
        yield
    except PipelineError as e:
        raise PipelineError(f"{stage} step {number}: {e}") from e


def expect(condition: bool, message: str) -> None:
    """Raise PipelineError with `message` unless `condition` holds."""
    if not condition:
        raise PipelineError(message)
