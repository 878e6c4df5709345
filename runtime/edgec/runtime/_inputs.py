"""Whether the inputs of a call are what a model declares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import InputError


def input_test(specs: Sequence[TensorSpec]) -> Callable[[Mapping[str, NDArray[Any]]], bool]:
    """Return a quick test that inputs conform.

    What it lets pass conforms. What it does not may still, in a form that is rare: ask
    `check_inputs`, which takes its time and says what is wrong.
    """
    if all(spec.is_static for spec in specs):
        return _static_test([(spec.name, np.dtype(spec.dtype), spec.shape) for spec in specs])
    return _dynamic_test(specs)


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Do nothing if `inputs` conform.

    Raises:
        InputError: A name is missing or unknown, a dtype or a shape differs, or a named dimension
            has two sizes.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(f"expected a dict of arrays by name ({_listed(specs)}), got {type(inputs).__name__}")
    if inputs.keys() != {spec.name for spec in specs}:
        raise InputError(
            f"expected the inputs {_listed(specs)}; got {', '.join(map(repr, inputs)) or 'none'}"
        )
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        spec.check(inputs[spec.name])
        for dimension, size in zip(spec.shape, inputs[spec.name].shape, strict=True):
            if isinstance(dimension, int):
                continue
            known, where = sizes.setdefault(dimension, (size, spec.name))
            if known != size:
                raise InputError(
                    f"expected one size of the dimension {dimension!r} in one call, "
                    f"got {known} in {where!r} and {size} in {spec.name!r}"
                )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "none"


def _static_test(
    rows: list[tuple[str, np.dtype[Any], tuple[int | str, ...]]],
) -> Callable[[Mapping[str, NDArray[Any]]], bool]:
    if len(rows) == 1:
        return _single_test(*rows[0])
    count = len(rows)
    ndarray = np.ndarray

    def conforms(inputs: Mapping[str, NDArray[Any]]) -> bool:
        try:
            if len(inputs) != count:
                return False
            for name, dtype, shape in rows:
                array = inputs[name]
                # numpy has one object per native dtype, so that `is` decides.
                if not isinstance(array, ndarray) or array.dtype is not dtype or array.shape != shape:
                    return False
        except (LookupError, TypeError):
            return False
        return True

    return conforms


def _single_test(
    name: str, dtype: np.dtype[Any], shape: tuple[int | str, ...]
) -> Callable[[Mapping[str, NDArray[Any]]], bool]:
    ndarray = np.ndarray

    def conforms(inputs: Mapping[str, NDArray[Any]]) -> bool:
        try:
            array = inputs[name]
            return (
                isinstance(array, ndarray)
                and array.dtype is dtype
                and array.shape == shape
                and len(inputs) == 1
            )
        except (LookupError, TypeError):
            return False

    return conforms


def _dynamic_test(specs: Sequence[TensorSpec]) -> Callable[[Mapping[str, NDArray[Any]]], bool]:
    ndarray = np.ndarray
    count = len(specs)
    rows = [
        (
            spec.name,
            np.dtype(spec.dtype),
            len(spec.shape),
            [(axis, size) for axis, size in enumerate(spec.shape) if isinstance(size, int)],
        )
        for spec in specs
    ]
    # A dimension that occurs once agrees with itself.
    occurs = Counter(size for spec in specs for size in spec.shape if isinstance(size, str))
    places: dict[str, list[tuple[str, int]]] = {name: [] for name, times in occurs.items() if times > 1}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if size in places and isinstance(size, str):
                places[size].append((spec.name, axis))
    shared = [(first, rest) for first, *rest in places.values()]

    def conforms(inputs: Mapping[str, NDArray[Any]]) -> bool:
        try:
            if len(inputs) != count:
                return False
            for name, dtype, rank, fixed in rows:
                array = inputs[name]
                if not isinstance(array, ndarray) or array.dtype is not dtype or array.ndim != rank:
                    return False
                shape = array.shape
                for axis, size in fixed:
                    if shape[axis] != size:
                        return False
            for (name, axis), rest in shared:
                size = inputs[name].shape[axis]
                for other, other_axis in rest:
                    if inputs[other].shape[other_axis] != size:
                        return False
        except (LookupError, TypeError):
            return False
        return True

    return conforms
