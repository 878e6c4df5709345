"""Inputs to calibrate, judge and measure with: real ones where there is data, made-up ones that say so.

What ranges are taken from says nothing of what they do to other inputs, so the two are kept apart: where
there is one set of data only, part of it is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import DataError
from edgec.evaluation import Dataset, Sample, describe_synthetic, synthetic_inputs
from edgec.runtime.pipeline import Processor

Arrays = Mapping[str, NDArray[Any]]
_SYNTHETIC_SAMPLES = 8
_SYNTHETIC_JUDGED = 256
# Of fewer samples, neither half would be worth anything.
SMALLEST_SPLIT = 32
# Samples that lie together stay together, because neighbours in a recording are nearly the same; but a run
# must be short against the classes that data may be sorted by.
_LONGEST_RUN = 16
_RUNS = 16


class Part(Dataset):
    """One of two parts of a data set, which is cut into short runs of samples that lie together.

    One run in `period` belongs to the first part, the others to the second.
    """

    def __init__(self, whole: Dataset, period: int, part: Literal["first", "rest"]) -> None:
        """Take a part; both parts of the same data have no sample in common, and all of them together."""
        self._whole, self._period, self._part = whole, period, part
        self._run = max(1, min(_LONGEST_RUN, len(whole) // (period * _RUNS)))
        self.labelled, self.notes = whole.labelled, whole.notes

    def __len__(self) -> int:
        return sum(map(self._has, range(len(self._whole))))

    def __iter__(self) -> Iterator[Sample]:
        return (sample for index, sample in enumerate(self._whole) if self._has(index))

    @property
    def source(self) -> str:
        return self._whole.source

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(
            f"{self._whole.digest} {self._part} {self._run}/{self._period}".encode()
        ).hexdigest()

    def _has(self, index: int) -> bool:
        return (index // self._run % self._period == 0) == (self._part == "first")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Where the inputs of a build come from.

    Where both are given, `calibration` is calibrated with and `evaluation` is judged on. Where one is
    missing, the other serves for both, in two parts: every other run of the calibration data is held out to
    judge on, or one run in four of the evaluation data is taken to calibrate with.

    Attributes:
        calibration: The user's representative data; None where there is none.
        evaluation: The user's data to judge on, with or without labels; None where there is none.
        seed: Of synthetic inputs.
        hold_out: Whether part of the calibration data is held out; None for: where there is no evaluation
            data. To repeat what a build did that had other data.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    seed: int
    hold_out: bool | None = None

    @property
    def data(self) -> Dataset | None:
        """The best data there is for representative inputs, all of it."""
        return self.calibration if self.calibration is not None else self.evaluation

    @cached_property
    def calibrated(self) -> Dataset | None:
        """What ranges are taken from; None for made-up inputs."""
        if self.data is None or not self.separate or not self._divided:
            return self.data
        return Part(self.data, self._period, "first")

    @cached_property
    def judged(self) -> Dataset | None:
        """What candidates are judged on; None for made-up inputs."""
        if self.calibration is not None and self.evaluation is not None:
            return self.evaluation
        if self.data is None or not self.separate or not self._divided:
            return self.data
        return Part(self.data, self._period, "rest")

    @property
    def separate(self) -> bool:
        """Whether nothing is judged on samples that ranges were taken from."""
        return self.data is None or not self._divided or len(self.data) >= SMALLEST_SPLIT

    @property
    def _divided(self) -> bool:
        """Whether one data set has to serve for both."""
        if self.hold_out is not None and self.calibration is not None:
            return self.hold_out
        return self.calibration is None or self.evaluation is None

    @property
    def _period(self) -> int:
        return 4 if self.calibration is None else 2

    def inputs(self, processor: Processor, specs: Sequence[TensorSpec]) -> Iterator[Arrays]:
        """Yield inputs to calibrate with, one sample at a time, from data if there is any."""
        if self.calibrated is None:
            yield from synthetic_inputs(specs, _SYNTHETIC_SAMPLES, self.seed)
            return
        for sample in self.calibrated:
            yield processor.preprocess(sample.data)[0]

    def spread_inputs(self, processor: Processor, specs: Sequence[TensorSpec], n: int) -> list[Arrays]:
        """Return up to `n` inputs of those to calibrate with, spread evenly: data may be sorted by class.

        Raises:
            DataError: The data is empty.
        """
        if self.calibrated is None:
            return list(islice(self.inputs(processor, specs), n))
        found: list[Arrays] = [processor.preprocess(sample.data)[0] for sample in self.calibrated.select(n)]
        if not found:
            raise DataError("the data holds no samples: give at least one")
        return found

    def given_inputs(self, processor: Processor, n: int) -> Iterator[Arrays]:
        """Yield up to `n` inputs of the best data there is, spread evenly over all of it; none made up."""
        for sample in self.data.select(n) if self.data is not None else ():
            yield processor.preprocess(sample.data)[0]

    def judged_inputs(self, processor: Processor, specs: Sequence[TensorSpec], n: int) -> Iterator[Arrays]:
        """Yield up to `n` inputs to judge candidates on, spread evenly over the data, one at a time.

        None of them was calibrated with, unless the data is too small for that: see `separate`.
        """
        if self.judged is None:
            for number in range(min(n, _SYNTHETIC_JUDGED)):
                yield from synthetic_inputs(specs, 1, self.seed + 1 + number)
            return
        for sample in self.judged.select(n):
            yield processor.preprocess(sample.data)[0]

    def synthetic_sentence(self, specs: Sequence[TensorSpec]) -> str | None:
        """Return the warning that inputs were made up; None where they were not."""
        if self.data is not None:
            return None
        drawn = describe_synthetic(specs)
        return (
            f"no calibration data was given: inputs were synthetic ({drawn}, seed {self.seed}), so "
            "ranges, parity and agreement say little about real inputs; give --calibration with a few "
            "dozen real samples"
        )

    def split_sentence(self) -> str | None:
        """Say which samples calibrated and which judged, where one data set serves for both."""
        if self.data is None or not self._divided or self.calibrated is None or self.judged is None:
            return None
        if self.separate:
            return (
                f"of the {len(self.data)} samples, ranges are taken from {len(self.calibrated)}, and "
                f"candidates are judged on the other {len(self.judged)}"
            )
        return None

    def split_warning(self) -> str | None:
        """Return the warning that candidates are judged on what they were calibrated with; None otherwise."""
        if self.data is None or self.separate:
            return None
        return (
            f"{len(self.data)} samples are too few to hold some out: candidates are judged on the samples "
            f"that their ranges were taken from, which flatters them; give {SMALLEST_SPLIT} or more, 300 are "
            "wanted, or --evaluation with other samples (they need no labels)"
        )
