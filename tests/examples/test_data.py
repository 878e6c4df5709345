"""The data of the examples is what the scripts beside it make, and the physical model does as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from examples.vibration.generate import Bearing, Machine, calibration_set, evaluation_set, healthy_windows
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parents[2] / "examples"
STEADY = replace(Machine(), window=12_000, speed_spread=0.0)


def test_the_same_seed_gives_the_committed_vibration() -> None:
    for name, arrays in {"calibration": calibration_set(), "evaluation": evaluation_set()}.items():
        with np.load(EXAMPLES / "vibration" / f"{name}.npz") as committed:
            assert set(committed) == set(arrays)
            for key, array in arrays.items():
                assert committed[key].dtype == array.dtype
                np.testing.assert_array_equal(committed[key], array)


def test_another_seed_gives_other_vibration() -> None:
    assert (healthy_windows(1, seed=0) != healthy_windows(1, seed=1)).mean() > 0.9


def test_bearing_frequencies_are_those_that_its_maker_publishes() -> None:
    bearing = Bearing()
    assert bearing.outer_race_frequency_hz(1.0) == pytest.approx(3.5848, abs=0.001)
    assert bearing.inner_race_frequency_hz(1.0) == pytest.approx(5.4152, abs=0.001)


def envelope_spectrum(signal: NDArray[np.int16]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies in Hz from 50 to 200, and the power there of the envelope around the resonance."""
    spectrum = np.fft.fft(signal)
    frequencies = np.fft.fftfreq(len(signal), 1 / STEADY.sample_rate_hz)
    band = (frequencies > STEADY.resonance_hz - 700) & (frequencies < STEADY.resonance_hz + 700)
    envelope = np.abs(np.fft.ifft(np.where(band, spectrum, 0))) ** 2
    power = np.abs(np.fft.fft(envelope - envelope.mean())) ** 2
    shown = (frequencies >= 50) & (frequencies <= 200)
    return np.asarray(frequencies[shown], np.float64), power[shown]


@pytest.mark.parametrize("race", ["outer", "inner"])
def test_the_envelope_of_a_defect_beats_at_the_rate_of_its_race(race: str) -> None:
    bearing = STEADY.bearing
    rate_of = bearing.outer_race_frequency_hz if race == "outer" else bearing.inner_race_frequency_hz
    frequencies, power = envelope_spectrum(STEADY.acquire(np.random.default_rng(0), race))
    assert frequencies[power.argmax()] == pytest.approx(rate_of(STEADY.shaft_hz), abs=2)
    _, healthy = envelope_spectrum(STEADY.acquire(np.random.default_rng(0)))
    assert power.max() > 20 * healthy.max()


def test_the_split_gives_the_committed_digits() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, the source of the digits, is not installed")
    from examples.digits.split import split

    sets = split()
    for name in ("calibration", "evaluation"):
        with np.load(EXAMPLES / "digits" / f"{name}.npz") as committed:
            assert set(committed) == set(sets[name])
            for key in committed:
                np.testing.assert_array_equal(committed[key], sets[name][key])
    held_out = {image.tobytes() for image in sets["evaluation"]["image"]}
    assert not any(image.tobytes() in held_out for image in sets["training"]["image"])
    assert len(sets["training"]["image"]) + len(held_out) == 1797
