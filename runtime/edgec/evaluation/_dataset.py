"""What a data set is: samples, read one at a time, with or without labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from edgec.errors import DataError

_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample.

    Attributes:
        data: What ``Session.predict`` takes: arrays by input name, one array, the path of an image,
            a text or a tuple of two.
        label: What is true of it: a class number or name, a number, `Boxes`, an array; None where
            that is not known.
        name: What to call it in a message: ``cat/0001.jpg``, ``17``.
    """

    data: Any
    label: Any = None
    name: str = ""


class Dataset(ABC):
    """Samples in a fixed order; iterating again starts again.

    Iterating reads one sample at a time and keeps none; indexing may read all samples before it.

    Attributes:
        labelled: Whether every sample has a label.
        notes: What was assumed or converted, in sentences; to be shown to the user.
    """

    labelled: bool
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return how many samples there are."""

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]:
        """Yield every sample.

        Raises:
            DataError: One cannot be read, or does not fit what was asked for.
        """

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; the first is number 0.

        Raises:
            IndexError: There is no such sample.
            DataError: As in iterating.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source} has {len(self)} samples, there is no number {index}")
        return next(islice(iter(self), index, None))

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the data is, as the user named it."""

    @cached_property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the content, labels included, in lower-case hex; reads all of it, once."""

    @property
    def description(self) -> str:
        """One line that says what and how much the data is, and every note."""
        noun = "sample" if len(self) == 1 else "samples"
        kind = f"labelled {noun}" if self.labelled else f"{noun} without labels"
        return "; ".join((f"{self.source}: {len(self)} {kind}", *self.notes))

    def select(self, limit: int | None) -> Iterator[Sample]:
        """Yield `limit` samples, spread evenly over all; all of them where there are no more, or for None.

        Spread, because data is often sorted by class.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit is a number of samples from 1, got {limit}")
        n = len(self)
        if limit is None or limit >= n:
            yield from self
            return
        wanted = iter(spread(n, limit))
        following = next(wanted)
        for i, sample in enumerate(self):
            if i == following:
                yield sample
                if (following := next(wanted, n)) == n:
                    return


def spread(n: int, limit: int) -> list[int]:
    """Return the numbers of the samples that `Dataset.select` takes where there are `n`, at least `limit`."""
    return [i * n // limit for i in range(limit)]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in lower-case hex.

    Raises:
        DataError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    return digest.hexdigest()


def files_digest(named: Sequence[tuple[str, Path]]) -> str:
    """Return one SHA-256 for many files and the names they go by."""
    digest = hashlib.sha256()
    for name, path in named:
        digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def named_label(label: str, classes: Sequence[str], where: str) -> int | float | str:
    """Return a label that was read as text: the index of a known class, else a number, else the text.

    Raises:
        DataError: It is neither a class of `classes` nor a number, though classes are known.
    """
    text = label.strip()
    if text in classes:
        return classes.index(text)
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        pass
    if classes:
        raise DataError(
            f"{where}: label {text!r} is none of the model's {len(classes)} labels "
            f"({', '.join(classes[:5])} ...): use its labels or class numbers"
        )
    return text
