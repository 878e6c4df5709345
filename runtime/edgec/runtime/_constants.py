"""Inputs that are one number in every call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import InputError


def constant_input(spec: TensorSpec, number: float) -> NDArray[Any]:
    """Return an input that is a number throughout; a dimension with a name has size 1.

    Raises:
        InputError: Its type does not hold the number: it would become infinite, 0, or another.
    """
    dtype = np.dtype(spec.dtype)
    if not _holds(dtype, number):
        raise InputError(f"{spec} does not hold {number}: expected {_range(dtype)}")
    return np.full([n if isinstance(n, int) else 1 for n in spec.shape], number, dtype)


def _holds(dtype: np.dtype[Any], number: float) -> bool:
    """Whether a type holds a number, of which a fraction may be rounded."""
    if isinstance(number, float) and number.is_integer() and dtype.kind in "biu":
        number = int(number)
    if dtype.kind not in "biuf" or (isinstance(number, float) and dtype.kind != "f"):
        return False
    try:
        with np.errstate(over="ignore", under="ignore"):
            value = np.array(number).astype(dtype)
    except OverflowError:
        return False
    if isinstance(number, int):
        return bool(value.item() == number)
    return bool(np.isfinite(value) == np.isfinite(number) and (value != 0) == (number != 0))


def _range(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "0 or 1"
    if dtype.kind in "iu":
        return f"a whole number from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        return f"a number from {-largest:g} to {largest:g} that it can tell from 0 and from its neighbours"
    return "an input of numbers"
