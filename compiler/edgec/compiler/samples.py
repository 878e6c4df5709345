"""Inputs to compare, calibrate and measure with: real ones where there is data, made-up ones that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import DataError
from edgec.evaluation import Dataset, describe_synthetic, synthetic_inputs
from edgec.runtime.pipeline import Processor

Arrays = Mapping[str, NDArray[Any]]
_SYNTHETIC_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Where the inputs of a build come from.

    Attributes:
        calibration: The user's representative data; None where there is none.
        evaluation: The user's labelled data; None where there is none.
        seed: Of synthetic inputs.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    seed: int

    @property
    def data(self) -> Dataset | None:
        """The best data there is for representative inputs."""
        return self.calibration if self.calibration is not None else self.evaluation

    def inputs(self, processor: Processor, specs: Sequence[TensorSpec]) -> Iterator[Arrays]:
        """Yield inputs of the model, one sample at a time, from data if there is any."""
        if self.data is None:
            yield from synthetic_inputs(specs, _SYNTHETIC_SAMPLES, self.seed)
            return
        for sample in self.data:
            yield processor.preprocess(sample.data)[0]

    def spread_inputs(self, processor: Processor, specs: Sequence[TensorSpec], n: int) -> list[Arrays]:
        """Return up to `n` inputs, spread evenly over the data: it may be sorted by class.

        Raises:
            DataError: The data is empty.
        """
        if self.data is None:
            return list(islice(self.inputs(processor, specs), n))
        found: list[Arrays] = [processor.preprocess(sample.data)[0] for sample in self.data.select(n)]
        if not found:
            raise DataError("the data holds no samples: give at least one")
        return found

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
