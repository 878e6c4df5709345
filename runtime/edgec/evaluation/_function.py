"""Data sets from a function of the user's own."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.errors import DataError
from edgec.evaluation._dataset import Dataset, Sample, file_digest
from edgec.evaluation._tensors import fit_sample


class FunctionDataset(Dataset):
    """Samples that a function gives.

    The function takes no arguments and returns an iterable of `Sample`, of tuples of data and
    label, or of data alone. It is called again for each pass, and must then give the same.
    """

    def __init__(
        self, reference: str, inputs: Sequence[TensorSpec] | None = None, *, need_labels: bool = False
    ) -> None:
        """Import the module, call the function and look at the first sample.

        Args:
            reference: ``package.module:function``; also found relative to the working directory.
            inputs: What the model takes, where samples go into it as they are; None where a
                pipeline prepares them.
            need_labels: Whether samples must have labels.

        Raises:
            DataError: There is no such module or function, or it gives no samples, or no labels.
        """
        self._reference, self._inputs = reference, inputs
        module, _, name = reference.partition(":")
        with _working_directory_importable():
            try:
                self._function = getattr(import_module(module), name)
            except (ImportError, AttributeError) as e:
                raise DataError(f"cannot import {reference!r}: {e}") from e
        if not callable(self._function):
            raise DataError(
                f"{reference} is {type(self._function).__name__}, expected a function that gives samples"
            )
        first = next(iter(self), None)
        if first is None:
            raise DataError(f"{reference} gave no samples: give at least one")
        self.labelled = first.label is not None
        if need_labels and not self.labelled:
            raise DataError(f"{reference} gives samples without labels: yield tuples of data and label")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        for i, item in enumerate(self._items()):
            sample = _as_sample(item, str(i))
            if self._inputs is not None:
                data = dict(sample.data) if isinstance(sample.data, Mapping) else sample.data
                fitted = fit_sample(data, self._inputs, self._reference, sample.name)
                sample = Sample(fitted, sample.label, sample.name)
            yield sample

    @property
    def source(self) -> str:
        return self._reference

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for sample in self:
            _update(digest, sample.data)
            _update(digest, sample.label)
        return digest.hexdigest()

    @cached_property
    def _length(self) -> int:
        items = self._items()
        return len(items) if isinstance(items, Sequence) else sum(1 for _ in items)

    def _items(self) -> Iterable[Any]:
        items = self._function()
        if not isinstance(items, Iterable):
            raise DataError(
                f"{self._reference} returned {type(items).__name__}, expected an iterable of samples"
            )
        return items


def _as_sample(item: Any, name: str) -> Sample:
    if isinstance(item, Sample):
        return item if item.name else Sample(item.data, item.label, name)
    if isinstance(item, tuple):
        if len(item) != 2:
            raise DataError(f"sample {name} is a tuple of {len(item)}, expected data and label")
        return Sample(item[0], item[1], name)
    return Sample(item, None, name)


def _update(digest: hashlib._Hash, value: Any) -> None:
    """Add a value so that different values give different digests: kind, size, content."""
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key in value:
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, tuple | list):
        digest.update(f"list {len(value)} ".encode())
        for each in value:
            _update(digest, each)
    elif isinstance(value, Path):
        digest.update(f"file {file_digest(value)} ".encode())
    else:
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text} ".encode())


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    # The installed command has its own folder first on the path, not the one the user works in.
    added = "" not in sys.path
    if added:
        sys.path.insert(0, "")
    try:
        yield
    finally:
        if added:
            sys.path.remove("")
