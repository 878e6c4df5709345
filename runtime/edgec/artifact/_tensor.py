"""Tensor specifications."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import InputError


@dataclass(frozen=True)
class Quantization:
    """How the integers of a tensor stand for real numbers: real = scale * (integer - zero_point).

    Attributes:
        scale: One value per tensor, or one per index of `axis`.
        zero_point: As many as `scale`.
        axis: The quantized axis; None where one scale holds for the whole tensor.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        name: As in the model.
        dtype: As numpy names it: ``uint8``.
        shape: One entry per axis, a size, or the name of a dimension that may have any size:
            ``("batch", 224, 224, 3)``. Axes of the same name must have the same size in one call.
        layout: One letter per axis, such as ``NHWC``; None where it is not known.
        quantization: Where the integers stand for real numbers.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str | None = None
    quantization: Quantization | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def is_static(self) -> bool:
        """Whether every axis has a fixed size."""
        return all(isinstance(n, int) for n in self.shape)

    def check(self, array: NDArray[Any]) -> None:
        """Do nothing if `array` conforms.

        Raises:
            InputError: It is no array, or its dtype, its rank or the size of an axis differs.
        """
        if not isinstance(array, np.ndarray):
            raise InputError(f"expected {self} as a numpy array, got {type(array).__name__}")
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(self.shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(self.dtype) or not fits:
            raise InputError(f"expected {self}, got {array.dtype}{list(array.shape)}")
