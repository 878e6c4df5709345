"""What lies between the tensors that a manifest declares and those of a file made for an NPU.

Such a file takes and gives integers, and has channels last. The manifest declares what the author's model
takes and gives. The scale and the zero point are in the file; the order of axes is in the recipe::

    {"boundary": {"image": {"permutation": [0, 2, 3, 1]}}}

says that axis 1 of the file's tensor is axis 2 of the declared one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import ArtifactError, ManifestError

_INTEGERS = ("int8", "uint8", "int16")


class Adapter:
    """Turns one declared tensor into the file's, or back."""

    __slots__ = ("_dtype", "_highest", "_inverse", "_lowest", "_permutation", "_scale", "_zero_point")

    def __init__(
        self, permutation: tuple[int, ...] | None, scale: float | None, zero_point: int, dtype: np.dtype[Any]
    ) -> None:
        self._permutation = permutation
        self._inverse = None if permutation is None else tuple(int(i) for i in np.argsort(permutation))
        self._scale = None if scale is None else np.float32(scale)
        self._zero_point = np.float32(zero_point)
        self._dtype = dtype
        if scale is not None:
            self._lowest, self._highest = np.iinfo(dtype).min, np.iinfo(dtype).max

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the file's shape of a declared shape."""
        return shape if self._permutation is None else tuple(shape[i] for i in self._permutation)

    def enter(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a declared tensor as the file takes it: a view where only axes change places."""
        if self._permutation is not None:
            array = array.transpose(self._permutation)
        if self._scale is None:
            return array
        # As ONNX's QuantizeLinear: halves to even. NaN has no integer; it becomes the zero point.
        steps = np.nan_to_num(np.rint(array / self._scale), nan=0.0) + self._zero_point
        entered: NDArray[Any] = np.clip(steps, self._lowest, self._highest).astype(self._dtype)
        return entered

    def leave(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor of the file as it is declared; a new array, or `array` itself."""
        if self._scale is not None:
            array = (array.astype(np.float32) - self._zero_point) * self._scale
        return array if self._inverse is None else np.ascontiguousarray(array.transpose(self._inverse))


def adapters(
    specs: tuple[TensorSpec, ...],
    details: Mapping[str, Mapping[str, Any]],
    recipe: Mapping[str, Any],
    role: str,
) -> dict[str, Adapter]:
    """Return how tensors are adapted, for those that have to be, by name.

    Args:
        specs: What the manifest declares.
        details: What LiteRT says of the tensor of each.
        recipe: Of the manifest.
        role: ``input`` or ``output``, for messages.

    Raises:
        ArtifactError: A dtype or an axis of the file is another one than declared.
        ManifestError: The recipe is malformed.
    """
    found = {}
    for spec in specs:
        detail = details[spec.name]
        permutation = _permutation(recipe, spec)
        dtype = np.dtype(detail["dtype"])
        scale, zero_point = _quantization(spec, detail, dtype, role)
        if permutation is not None or scale is not None:
            found[spec.name] = Adapter(permutation, scale, zero_point, dtype)
        if role == "input":
            _check_axes(spec, detail, permutation)
    return found


def _permutation(recipe: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...] | None:
    boundary = recipe.get("boundary", {})
    entry = boundary.get(spec.name, {}) if isinstance(boundary, Mapping) else None
    axes = entry.get("permutation") if isinstance(entry, Mapping) else ()
    if axes is None:
        return None
    whole = isinstance(axes, list) and all(type(i) is int for i in axes)
    if not whole or sorted(axes) != list(range(len(spec.shape))):
        raise ManifestError(
            f"recipe.boundary.{spec.name!s:.60}.permutation must be the numbers from 0 to "
            f"{len(spec.shape) - 1} in some order, got {axes!r:.60}"
        )
    return tuple(axes)


def _quantization(
    spec: TensorSpec, detail: Mapping[str, Any], dtype: np.dtype[Any], role: str
) -> tuple[float | None, int]:
    """Return scale and zero point where the file has integers for declared floats; None and 0 otherwise."""
    if dtype == np.dtype(spec.dtype):
        return None, 0
    parameters = detail["quantization_parameters"]
    scales, zero_points = parameters["scales"], parameters["zero_points"]
    if spec.dtype != "float32" or dtype.name not in _INTEGERS or len(scales) != 1 or not scales[0] > 0:
        raise ArtifactError(
            f"the manifest declares the {role} {spec}, the model has {dtype.name}: compile it again"
        )
    return float(scales[0]), int(zero_points[0])


def _check_axes(spec: TensorSpec, detail: Mapping[str, Any], permutation: tuple[int, ...] | None) -> None:
    declared = spec.shape if permutation is None else tuple(spec.shape[i] for i in permutation)
    has = [int(n) for n in detail["shape_signature"]]
    fits = len(has) == len(declared) and all(
        mine == axis or mine == -1 for mine, axis in zip(has, declared, strict=True)
    )
    if not fits:
        raise ArtifactError(
            f"the manifest declares the input {spec}, the model has the axes {has}: compile it again"
        )
