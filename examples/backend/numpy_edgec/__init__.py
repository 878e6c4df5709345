"""An engine for edgec: fully connected networks with ReLU between their layers, computed by numpy."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError, InferenceError
from edgec.runtime.backends import LoadOptions, Payload

Specs = tuple[TensorSpec, ...]


class NumpyBackend:
    def load(
        self, spec: EngineSpec, payload: Payload, inputs: Specs, outputs: Specs, options: LoadOptions
    ) -> "NumpyProgram":
        if spec.device != "CPU":
            raise BackendUnavailableError(f"numpy runs on the CPU, not on {spec.device!r}")
        return NumpyProgram(payload.view(spec.files[0]), inputs[0].name, outputs[0].name)


class NumpyProgram:
    engine_version, precision = np.__version__, "fp32"

    def __init__(self, member: memoryview, input_name: str, output_name: str) -> None:
        try:
            arrays = np.load(BytesIO(member), allow_pickle=False)
            layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(arrays.files) // 2)]
        except (ValueError, KeyError, OSError) as e:
            raise InferenceError(f"the payload is no npz file of w0, b0, w1, b1 ...: {e}") from e
        self._layers: list[tuple[NDArray[Any], NDArray[Any]]] | None = layers
        self._input, self._output = input_name, output_name
        self.placement, self.precisions = {"CPU": len(layers)}, {"fp32": len(layers)}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        layers, x = self._layers, inputs[self._input]
        if layers is None:
            raise InferenceError("the session is closed: load the artifact again")
        for i, (w, b) in enumerate(layers):
            x = x @ w + b if i == len(layers) - 1 else np.maximum(x @ w + b, 0)
        return {self._output: x}

    def close(self) -> None:
        self._layers = None
