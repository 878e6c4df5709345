"""Real models in chains: what they give is what the code by hand gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.chains import DTLN
from tests.models.conftest import Build
from tests.models.sources import pink_noise, read_speech
from tests.models.test_denoising import FIRST, NOISY_DB, SECOND, SHIFT, denoise, quality_db
from tests.models.test_voice import BLOCK, MODEL, SHAPES, listen

from edgec.runtime import load, load_chain

pytestmark = [pytest.mark.models, pytest.mark.slow]

TARGET = "cpu-x86_64"

SILERO = """
name = "voice"
inputs.samples = { shape = [512] }
outputs = { probability = "speech" }

[[stages]]
name = "block"
step = "window" # with the last 64 samples of the block before
input = "samples"
size = 576

[[stages]]
name = "speech"
artifact = "model.edgec"
inputs = { input = "block" }
constants = { sr = 16000 }
state = { input = "state", output = "stateN" }
"""


def write(folder: Path, text: str, **artifacts: Path) -> Path:
    """Write a chain into a folder, with links to its artifacts beside it."""
    for name, path in artifacts.items():
        (folder / f"{name}.edgec").symlink_to(path)
    path = folder / "it.chain.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_both_halves_of_dtln_are_one_chain(models: Path, build: Build, tmp_path: Path) -> None:
    first = build(models / FIRST).artifacts[TARGET]
    shapes = {"input_4": (1, 1, 512), "input_5": (1, 2, 128, 2)}
    second = build(models / SECOND, shapes=shapes).artifacts[TARGET]
    speech = read_speech(models)
    noise = pink_noise(np.random.default_rng(0), len(speech)) * speech.std() * 10 ** (-NOISY_DB / 20)
    noisy = np.asarray(speech + noise, np.float32)
    with (
        load_chain(write(tmp_path, DTLN, first=first, second=second)) as chain,
        load(first) as half_1,
        load(second) as half_2,
    ):
        blocks = noisy[: len(noisy) // SHIFT * SHIFT].reshape(-1, SHIFT)
        streams = chain.stream(), chain.stream()
        heard = [[stream.predict(block)["samples"] for stream in streams] for block in blocks]
        expected = denoise(half_1.run, half_2.run, noisy)
    estimate = np.zeros_like(noisy)
    estimate[: blocks.size] = np.concatenate([both[0] for both in heard])
    assert all(np.array_equal(a, b) for a, b in heard)
    # The code by hand stops before the last blocks, which it cannot fill.
    written = np.flatnonzero(expected)[-1] + 1
    np.testing.assert_allclose(estimate[:written], expected[:written], atol=1e-6)
    gained = quality_db(speech, estimate)
    assert gained == pytest.approx(quality_db(speech, expected), abs=0.05)
    assert gained - NOISY_DB > 10


def test_silero_keeps_its_state_and_context_in_a_chain(models: Path, build: Build, tmp_path: Path) -> None:
    model = build(models / MODEL, shapes=SHAPES).artifacts[TARGET]
    speech = read_speech(models)
    audio = speech[: len(speech) // BLOCK * BLOCK]
    with load_chain(write(tmp_path, SILERO, model=model)) as chain, load(model) as session:
        stream = chain.stream()
        heard = [stream.predict(block)["probability"].item() for block in audio.reshape(-1, BLOCK)]
        np.testing.assert_allclose(heard, listen(session.run, audio), atol=1e-6)
    assert max(heard) > 0.9
