"""Arrays of a data set made to fit the inputs of a model: without loss, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import DataError

_SPECIFIED_CASTS = {("float64", "float32")}


class Fit:
    """Makes arrays of one dtype fit one input.

    Allowed are: the same dtype; a wider one of the same kind; float64 to float32, which rounds;
    integers to other integers where every value fits. Anything else would change what the values
    mean.
    """

    def __init__(self, spec: TensorSpec, dtype: np.dtype[Any], where: str) -> None:
        """Prepare for arrays of `dtype`; `where` names the array in messages.

        Raises:
            DataError: The dtype cannot be cast.
        """
        self._spec = spec
        self._where = where
        self._from, self._to = dtype, np.dtype(spec.dtype)
        self._bounded = dtype.kind in "iu" and self._to.kind in "iu" and not np.can_cast(dtype, self._to)
        widens = dtype.kind == self._to.kind and np.can_cast(dtype, self._to)
        if not (
            widens or self._bounded or (dtype.name, self._to.name) in _SPECIFIED_CASTS or self._widens_sign()
        ):
            raise DataError(
                f"{where} is {dtype}, expected {self._to} for {spec}: convert it, "
                "or declare its preparation in a pipeline"
            )

    @property
    def note(self) -> str | None:
        """What is converted, in words; None where nothing is."""
        if self._from == self._to:
            return None
        how = " (rounded)" if (self._from.name, self._to.name) in _SPECIFIED_CASTS else ""
        return f"{self._spec.name}: {self._from} read as {self._to}{how}"

    def __call__(self, array: NDArray[Any], sample: str) -> NDArray[Any]:
        """Return `array` in the input's dtype.

        Raises:
            DataError: A value does not fit, or is not finite.
        """
        check_finite(array, f"{self._where}, sample {sample},")
        if self._bounded and array.size:
            limits = np.iinfo(self._to)
            low, high = int(array.min()), int(array.max())
            if low < limits.min or high > limits.max:
                raise DataError(
                    f"{self._where}, sample {sample}, has values from {low} to {high}, which do not fit "
                    f"in {self._to}: correct the data"
                )
        return array.astype(self._to, order="C", copy=False)

    def _widens_sign(self) -> bool:
        return self._from.kind == "u" and self._to.kind == "i" and np.can_cast(self._from, self._to)


def check_finite(array: NDArray[Any], what: str) -> None:
    """Do nothing if every value is finite.

    Raises:
        DataError: One is NaN or infinite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{what} holds NaN or infinity: correct it or leave the sample out")


def with_batch(shape: Sequence[int], spec: TensorSpec, where: str) -> tuple[int, ...]:
    """Return the shape in which one sample of `shape` goes into the model: as it is, or as a batch of 1.

    Raises:
        DataError: It fits neither way.
    """
    for full in (tuple(shape), (1, *shape)):
        if len(full) == len(spec.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(spec.shape, full, strict=True)
        ):
            return full
    batch = spec.shape[0] if spec.shape else None
    if len(shape) + 1 == len(spec.shape) and isinstance(batch, int) and batch != 1:
        raise DataError(
            f"the model's input {spec} takes batches of {batch}, samples are fed one by one: compile it with "
            f"a batch of 1 (--shape {spec.name}=1,...) or a dynamic one"
        )
    raise DataError(
        f"{where} has samples of shape {list(shape)}, expected {spec}: one sample per index of the first "
        "axis, each of the input's shape"
    )


def check_names(found: Sequence[str], specs: Sequence[TensorSpec], where: str) -> None:
    """Do nothing if the names are those of the inputs.

    Raises:
        DataError: One is missing, or unknown.
    """
    wanted = [spec.name for spec in specs]
    if set(found) != set(wanted):
        raise DataError(
            f"{where} has {_names(found)}, expected the model's inputs {_names(wanted)}: "
            "name each array as the input it is for"
        )


def fit_sample(data: Any, specs: Sequence[TensorSpec], where: str, sample: str) -> dict[str, NDArray[Any]]:
    """Return the model's inputs from arrays by name, or from the one array of a model of one input.

    Raises:
        DataError: Names, dtypes, shapes or values do not fit.
    """
    arrays = data if isinstance(data, dict) else {specs[0].name: data} if len(specs) == 1 else None
    if arrays is None or not all(isinstance(a, np.ndarray) for a in arrays.values()):
        raise DataError(
            f"{where}, sample {sample}, is {type(data).__name__}, expected arrays by input name "
            f"({_names([s.name for s in specs])}): what is no array needs a pipeline"
        )
    check_names(list(arrays), specs, f"{where}, sample {sample},")
    fitted = {}
    for spec in specs:
        array, what = arrays[spec.name], f"{where}: {spec.name!r}"
        shape = with_batch(array.shape, spec, what)
        fitted[spec.name] = Fit(spec, array.dtype, what)(array, sample).reshape(shape)
    return fitted


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(n) for n in names) or "no arrays"
