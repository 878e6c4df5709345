"""An engine for edgec: fully connected networks with ReLU between their layers, computed by numpy."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError, InferenceError
from edgec.runtime.backends import FunctionProgram, LoadOptions, Payload

Specs = tuple[TensorSpec, ...]


class NumpyBackend:
    def load(
        self, spec: EngineSpec, payload: Payload, inputs: Specs, outputs: Specs, options: LoadOptions
    ) -> FunctionProgram:
        if spec.device != "CPU":
            raise BackendUnavailableError(f"numpy runs on the CPU, not on {spec.device!r}")
        try:
            arrays = np.load(BytesIO(payload.view(spec.files[0])), allow_pickle=False)
            layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(len(arrays.files) // 2)]
        except (ValueError, KeyError, OSError) as e:
            raise InferenceError(f"the payload is no npz file of w0, b0, w1, b1 ...: {e}") from e

        def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            x = feeds[inputs[0].name]
            for i, (w, b) in enumerate(layers):
                x = x @ w + b if i == len(layers) - 1 else np.maximum(x @ w + b, 0)
            return {outputs[0].name: x}

        return FunctionProgram(run, engine_version=np.__version__, layers=len(layers))
