"""Silero VAD over a stream of sound: windows that overlap, and a state that goes from one to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.models.sources import Source, read_speech

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.runtime import load
from edgec.runtime.streams import AudioWindows, Recurrent, Stream
from edgec.runtime.testing import onnxruntime_spec

pytestmark = [pytest.mark.models, pytest.mark.slow]

BLOCK, CONTEXT = 512, 64
RATE = np.array(16_000, np.int64)
MODEL = Path("silero_vad_v6", "silero_vad_16k_op15.onnx")


def test_a_stream_hears_what_a_loop_of_ones_own_hears(models: Path, tmp_path: Path) -> None:
    manifest = Manifest(
        model="silero",
        model_version="6",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=(
            TensorSpec("input", "float32", (1, CONTEXT + BLOCK)),
            TensorSpec("state", "float32", (2, 1, 128)),
            TensorSpec("sr", "int64", ()),
        ),
        outputs=(TensorSpec("output", "float32", (1, 1)), TensorSpec("stateN", "float32", (2, 1, 128))),
    )
    artifact = pack(tmp_path / "vad.edgec", manifest, {"model.onnx": (models / MODEL).read_bytes()})
    sound = read_speech(models)[: 200 * BLOCK]
    run = Source(models / MODEL).run
    state, context, wanted = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32), []
    for block in sound.reshape(-1, BLOCK):
        outputs = run({"input": np.concatenate([context, block])[None], "state": state, "sr": RATE})
        state, context = outputs["stateN"], block[-CONTEXT:]
        wanted.append(outputs["output"].item())
    windows = AudioWindows([sound], size=CONTEXT + BLOCK, hop=BLOCK, lead=CONTEXT, rate=16_000)
    with load(artifact) as session:
        voice = Recurrent(session, {"state": "stateN"}, fixed={"sr": RATE})
        with Stream(windows, voice) as stream:
            heard = [result.prediction["output"].item() for result in stream]
    np.testing.assert_allclose(heard, wanted, atol=1e-5)
    assert 0.1 < np.mean(np.array(heard) > 0.5) <= 1
