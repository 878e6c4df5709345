"""Source models as they are, in ONNX Runtime: what every artifact is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgec.artifact import Pipeline, TensorSpec
from edgec.runtime.pipeline import Processor

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class Source:
    """A source model, run in fp32 and without graph optimizations.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
    """

    def __init__(self, path: Path, pipeline: Pipeline | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self._processor = Processor(pipeline, self.inputs, self.outputs, None)

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""
        names = [spec.name for spec in self.outputs]
        arrays = self._session.run(names, dict(inputs))
        return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}

    def predict(self, sample: Any) -> Mapping[str, Any]:
        """The whole pipeline around `run`."""
        inputs, context = self._processor.preprocess(sample)
        return self._processor.postprocess(self.run(inputs), context)


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(value.name, _DTYPES[value.type], shape)


def area_under_curve(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """How often a positive scores higher than a negative, ties counting one half."""
    positive = positive.astype(bool)
    high, low = scores[positive][:, None], scores[~positive]
    return float((high > low).mean() + 0.5 * (high == low).mean())


def pink_noise(rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Noise of equal power per octave, of mean 0 and standard deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / noise.std())


def read_speech(models: Path) -> NDArray[np.float32]:
    """A sentence of LibriSpeech, float32[134960] from -1 to 1 at 16 kHz."""
    import soundfile  # here, because few tests need audio

    audio, rate = soundfile.read(
        models / "armzoo_librispeech_sample" / "84-121550-0000.flac", dtype="float32"
    )
    assert rate == 16_000
    return np.asarray(audio, np.float32)
