"""Silero VAD: whether 32 ms of sound are speech; the state goes from block to block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Run, Source, area_under_curve, pink_noise, read_speech

from edgec.compiler.check import check_model
from edgec.runtime import load
from edgec.targets import load_target

pytestmark = [pytest.mark.models, pytest.mark.slow]

MODEL = Path("silero_vad_v6", "silero_vad_16k_op15.onnx")
BLOCK, CONTEXT = 512, 64
PIECE = 64 * BLOCK
SHAPES = {"input": (1, CONTEXT + BLOCK), "state": (2, 1, 128)}
RATE = np.array(16_000, np.int64)

Splice = tuple[NDArray[np.float32], NDArray[np.bool_]]


@pytest.fixture(scope="module")
def splice(models: Path) -> Splice:
    """Two seconds of speech and two of noise in turn, and which of its blocks are speech."""
    speech, rng = read_speech(models), np.random.default_rng(0)
    pieces = []
    for start in range(0, len(speech) - PIECE + 1, PIECE):
        piece = speech[start : start + PIECE]
        pieces += [piece, (pink_noise(rng, PIECE) * piece.std()).astype(np.float32)]
    blocks = np.arange(len(pieces) * PIECE // BLOCK)
    return np.concatenate(pieces), blocks // (PIECE // BLOCK) % 2 == 0


@pytest.fixture(scope="module")
def source_probabilities(models: Path, splice: Splice) -> NDArray[np.float64]:
    return listen(Source(models / MODEL).run, splice[0])


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> Built:
    return build(models / MODEL, shapes=SHAPES)


def listen(run: Run, audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probability of speech in each block."""
    state, context, probabilities = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32), []
    for block in audio.reshape(-1, BLOCK):
        outputs = run({"input": np.concatenate([context, block])[None], "state": state, "sr": RATE})
        state, context = outputs["stateN"], block[-CONTEXT:]
        probabilities.append(outputs["output"].item())
    return np.array(probabilities)


def test_source_tells_speech_from_noise(splice: Splice, source_probabilities: NDArray[np.float64]) -> None:
    # .951 and .895 on another splice; pauses within the speech count as speech.
    speech = splice[1]
    assert area_under_curve(source_probabilities, speech) == pytest.approx(0.95, abs=0.03)
    assert ((source_probabilities > 0.5) == speech).mean() == pytest.approx(0.9, abs=0.03)


def test_openvino_refuses_if_unless_pinned_shapes_decide_it(models: Path) -> None:
    target = load_target("intel-cpu")
    refused = check_model(models / MODEL, target).refused
    assert "If" in {entry.op for entry in refused}
    assert check_model(models / MODEL, target, shapes=SHAPES).can_compile


@pytest.mark.parametrize("target", TARGETS)
def test_artifact_passes_parity_and_hears_what_its_source_hears(
    built: Built, splice: Splice, source_probabilities: NDArray[np.float64], target: str
) -> None:
    built.assert_sound(target)
    with load(built.artifacts[target]) as session:
        probabilities = listen(session.run, splice[0])
    assert np.abs(probabilities - source_probabilities).max() < 0.001
    auc = area_under_curve(source_probabilities, splice[1])
    assert area_under_curve(probabilities, splice[1]) == pytest.approx(auc, abs=0.001)
