"""Is the calibration data like the evaluation data? Random halves of one set always are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.compiler import networks

from edgec.artifact import TensorSpec
from edgec.compiler.calibration import calibrate
from edgec.compiler.drift import clipping_sentence, compare_sets, ks_level

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
IMAGE = (TensorSpec("image", "float32", (1, 1, 8, 8)),)
Inputs = list[Mapping[str, NDArray[Any]]]


def digits() -> Inputs:
    with np.load(DIGITS / "evaluation.npz") as data:
        images = data["image"].astype(np.float32) / 16
    return [{"image": image.reshape(1, 1, 8, 8)} for image in images]


@pytest.mark.parametrize("size", [16, 40, 100, 250])
def test_random_halves_of_one_set_are_alike(size: int) -> None:
    images = digits()
    for seed in range(25):
        order = np.random.default_rng(seed).permutation(len(images))
        first, second = ([images[i] for i in order[a : a + size]] for a in (0, size))
        assert compare_sets(first, second, IMAGE) == []


@pytest.mark.parametrize("tail", ["heavy", "single values"])
def test_unruly_data_is_alike_too(tail: str) -> None:
    spec, shape = (TensorSpec("x", "float32", (1, 1)),), (1, 4) if tail == "heavy" else (1, 1)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        one, two = ([{"x": rng.standard_t(3, shape)} for _ in range(60)] for _ in range(2))
        assert compare_sets(one, two, spec) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: 255 * a, r"on another scale .* spans 0\.\.255 there, 0\.\.1 here"),
        (lambda a: 1 - a, "the mean of input 'image' is 0.6"),
        (lambda a: 0.6 * a, "100% of the samples would have to change"),
        (lambda a: a + 0.1, "the smallest value of input 'image' is 0.1"),
        (lambda a: a, "100 of 100 evaluation samples that were compared are calibration samples too"),
    ],
    ids=["scale", "negative", "dim", "offset", "the same samples"],
)
def test_what_is_unlike_is_said_with_figures(
    change: Callable[[NDArray[Any]], NDArray[Any]], says: str
) -> None:
    images = digits()[:100]
    [found] = compare_sets([{"image": change(s["image"])} for s in images], images, IMAGE)
    assert re.search(says, found), found


def test_values_beyond_the_calibrated_ranges_are_counted_inside_the_model() -> None:
    model = networks.cnn()
    table = calibrate(model, networks.samples(model, 24))
    assert clipping_sentence(model, table, networks.samples(model, 24, 1)) is None
    louder = ({n: 3 * a for n, a in s.items()} for s in networks.samples(model, 24, 1))
    said = clipping_sentence(model, table, louder)
    assert said is not None
    assert "on 24 evaluation samples" in said
    assert "of its values), which int8 clips" in said


def test_the_level_of_a_distance_is_that_of_the_two_sample_test() -> None:
    # scipy.stats.ks_2samp(mode="asymp") gives 0.0783 at 0.18 and 0.00051 at 0.288 for 100 and 100 samples,
    # without the correction for their number.
    assert ks_level(0.18, 100, 100) == pytest.approx(0.0783, rel=0.2)
    assert ks_level(0.288, 100, 100) == pytest.approx(0.00051, rel=0.3)
    assert ks_level(0.01, 100, 100) == 1.0
