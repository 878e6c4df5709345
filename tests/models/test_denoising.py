"""DTLN: the two halves of a noise suppressor, which hand their states from block to block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Run, Source, pink_noise, read_speech

from edgec.runtime import load

pytestmark = [pytest.mark.models, pytest.mark.slow]

FIRST = Path("dtln_denoise", "model_1.onnx")
SECOND = Path("dtln_denoise", "model_2.onnx")
BLOCK, SHIFT = 512, 128
NOISY_DB = 5.0

Audio = NDArray[np.float32]


@pytest.fixture(scope="module")
def speech(models: Path) -> Audio:
    return read_speech(models)


@pytest.fixture(scope="module")
def noisy(speech: Audio) -> Audio:
    noise = pink_noise(np.random.default_rng(0), len(speech)) * speech.std() * 10 ** (-NOISY_DB / 20)
    return np.asarray(speech + noise, np.float32)


@pytest.fixture(scope="module")
def source_db(models: Path, speech: Audio, noisy: Audio) -> float:
    return quality_db(speech, denoise(Source(models / FIRST).run, Source(models / SECOND).run, noisy))


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> tuple[Built, Built]:
    second_shapes = {"input_4": (1, 1, 512), "input_5": (1, 2, 128, 2)}
    return build(models / FIRST), build(models / SECOND, shapes=second_shapes)


def denoise(first: Run, second: Run, audio: Audio) -> Audio:
    """Estimate the speech in `audio`, block by block, as the authors' real-time script does.

    The first half masks the magnitudes of a block's spectrum, the second works on the waveform.
    Blocks overlap by three quarters and are added up; the estimate is `BLOCK - SHIFT` samples late.
    """
    block, overlapping, estimate = (np.zeros(n, np.float32) for n in (BLOCK, BLOCK, len(audio)))
    state_1, state_2 = np.zeros((2, 1, 2, 128, 2), np.float32)
    for start in range(0, len(audio) - BLOCK + 1, SHIFT):
        block = np.concatenate([block[SHIFT:], audio[start : start + SHIFT]])
        spectrum = np.fft.rfft(block)
        magnitude = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
        outputs = first({"input_2": magnitude, "input_3": state_1})
        state_1 = outputs["tf_op_layer_stack_2"]
        masked = np.fft.irfft(spectrum * outputs["activation_2"].ravel()).astype(np.float32)
        outputs = second({"input_4": masked.reshape(1, 1, -1), "input_5": state_2})
        state_2 = outputs["tf_op_layer_stack_5"]
        overlapping = np.concatenate([overlapping[SHIFT:], np.zeros(SHIFT, np.float32)])
        overlapping += outputs["conv1d_3"].ravel()
        estimate[start : start + SHIFT] = overlapping[:SHIFT]
    return estimate


def si_sdr_db(reference: Audio, estimate: Audio) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., 2019)."""
    clean, heard = reference.astype(np.float64), estimate.astype(np.float64)
    target = clean * (clean @ heard) / (clean @ clean)
    return float(10 * np.log10(np.sum(target**2) / np.sum((heard - target) ** 2)))


def quality_db(speech: Audio, estimate: Audio) -> float:
    """SI-SDR of a late estimate, but for the last block, of which part is missing."""
    late = BLOCK - SHIFT
    return si_sdr_db(speech[: -2 * BLOCK], estimate[late : late - 2 * BLOCK])


def test_source_gains_ten_decibels(speech: Audio, noisy: Audio, source_db: float) -> None:
    assert si_sdr_db(speech, noisy) == pytest.approx(NOISY_DB, abs=0.1)
    assert source_db - NOISY_DB > 10


@pytest.mark.parametrize("target", TARGETS)
def test_artifacts_chained_gain_as_much_as_their_sources(
    built: tuple[Built, Built], speech: Audio, noisy: Audio, source_db: float, target: str
) -> None:
    first, second = built
    first.assert_sound(target)
    second.assert_sound(target)
    with load(first.artifacts[target]) as half_1, load(second.artifacts[target]) as half_2:
        estimate = denoise(half_1.run, half_2.run, noisy)
    assert quality_db(speech, estimate) == pytest.approx(source_db, abs=0.05)
