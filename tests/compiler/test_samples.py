"""Which samples calibrate, and which judge."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.artifact import TensorSpec
from edgec.compiler.samples import SMALLEST_SPLIT, Part, Samples
from edgec.compiler.variants import make_processor
from edgec.evaluation import Dataset, open_dataset

SPECS = (TensorSpec("x", "float32", (1, 1)),)


def numbered(folder: Path, count: int, name: str = "data", **more: Any) -> Dataset:
    """Return samples whose only value is their number."""
    path = folder / f"{name}.npz"
    np.savez(path, allow_pickle=False, x=np.arange(count, dtype=np.float32)[:, None], **more)
    return open_dataset(path, inputs=SPECS)


def used(samples: Samples) -> tuple[list[int], list[int]]:
    """Return the numbers of the samples that calibrate, and of those that judge."""
    processor = make_processor(None, SPECS, SPECS)
    calibrated = [int(s["x"].item()) for s in samples.inputs(processor, SPECS)]
    return calibrated, [int(s["x"].item()) for s in samples.judged_inputs(processor, SPECS, 10_000)]


@pytest.mark.parametrize("count", [32, 33, 64, 100, 257, 1000])
def test_calibration_data_alone_is_halved_in_runs(tmp_path: Path, count: int) -> None:
    samples = Samples(calibration=numbered(tmp_path, count), evaluation=None, seed=0)
    calibrated, judged = used(samples)
    assert sorted(calibrated + judged) == list(range(count))
    assert abs(len(calibrated) - len(judged)) <= 16
    assert min(len(calibrated), len(judged)) >= 16
    assert samples.separate
    assert samples.split_warning() is None
    assert f"from {len(calibrated)}" in (samples.split_sentence() or "")


def test_data_sorted_by_class_has_every_class_in_both_parts(tmp_path: Path) -> None:
    samples = Samples(calibration=numbered(tmp_path, 300), evaluation=None, seed=0)
    calibrated, judged = used(samples)
    assert {n // 30 for n in calibrated} == {n // 30 for n in judged} == set(range(10))


def test_neighbours_of_a_recording_stay_together(tmp_path: Path) -> None:
    calibrated, judged = used(Samples(calibration=numbered(tmp_path, 1000), evaluation=None, seed=0))
    torn = sum(n + 1 in judged or n - 1 in judged for n in calibrated)
    assert torn / len(calibrated) < 0.15


def test_evaluation_data_is_all_that_judges(tmp_path: Path) -> None:
    samples = Samples(calibration=numbered(tmp_path, 40), evaluation=numbered(tmp_path, 50, "other"), seed=0)
    assert used(samples) == (list(range(40)), list(range(50)))
    assert samples.separate


def test_evaluation_data_alone_gives_a_quarter_to_calibrate_with(tmp_path: Path) -> None:
    samples = Samples(calibration=None, evaluation=numbered(tmp_path, 400), seed=0)
    calibrated, judged = used(samples)
    assert (len(calibrated), len(judged)) == (102, 298)
    assert not set(calibrated) & set(judged)


def test_too_few_samples_serve_for_both_and_that_is_said(tmp_path: Path) -> None:
    samples = Samples(calibration=numbered(tmp_path, SMALLEST_SPLIT - 1), evaluation=None, seed=0)
    calibrated, judged = used(samples)
    assert calibrated == judged == list(range(SMALLEST_SPLIT - 1))
    assert not samples.separate
    warning = samples.split_warning() or ""
    assert "31 samples are too few to hold some out" in warning
    assert "300 are wanted" in warning


def test_a_build_with_evaluation_data_can_be_repeated_without_it(tmp_path: Path) -> None:
    data = numbered(tmp_path, 64)
    assert used(Samples(calibration=data, evaluation=None, seed=0, hold_out=False))[0] == list(range(64))
    other = numbered(tmp_path, 20, "other")
    halved = used(Samples(calibration=data, evaluation=None, seed=0))[0]
    assert used(Samples(calibration=data, evaluation=other, seed=0, hold_out=True))[0] == halved


def test_made_up_samples_that_judge_are_others(tmp_path: Path) -> None:
    samples = Samples(calibration=None, evaluation=None, seed=3)
    processor = make_processor(None, SPECS, SPECS)
    calibrated = [s["x"].item() for s in samples.inputs(processor, SPECS)]
    judged = [s["x"].item() for s in samples.judged_inputs(processor, SPECS, 1000)]
    assert len(set(judged)) == len(judged) > 200
    assert not set(calibrated) & set(judged)
    assert [s["x"].item() for s in samples.judged_inputs(processor, SPECS, 4)] == judged[:4]


def test_parts_are_data_sets_of_their_own(tmp_path: Path) -> None:
    whole = numbered(tmp_path, 100, labels=np.arange(100))
    first, rest = Part(whole, 2, "first"), Part(whole, 2, "rest")
    assert first.labelled
    assert len({whole.digest, first.digest, rest.digest}) == 3
    assert len(first) == len(list(first))
    copied = pickle.loads(pickle.dumps(rest))  # noqa: S301  as workers get it
    assert [s.label for s in copied] == [s.label for s in rest]
