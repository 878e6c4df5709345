"""TensorRT: refused in this version, before its library is touched.

An artifact for TensorRT carries a typed ONNX model and the recipe of its build; the engine is built
on the device, by the TensorRT that is installed there. This version of edgec does not build it yet,
so that such an artifact runs on the fallback that its manifest declares.

The driver is asked first, because TensorRT crashes the process where there is none.
"""

from __future__ import annotations

from typing import NoReturn

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError
from edgec.runtime.backends import LoadOptions, Payload
from edgec.runtime.backends._cuda import find_cuda


class TensorRtBackend:
    """Says what is missing for TensorRT to run a model."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> NoReturn:
        """Refuse.

        Raises:
            BackendUnavailableError: Always; the message says what is missing.
        """
        cuda = find_cuda()
        if cuda.devices == 0:
            raise BackendUnavailableError(
                f"TensorRT needs an NVIDIA GPU with a working CUDA driver: {cuda.problem}"
            )
        raise BackendUnavailableError(
            f"the CUDA driver works and finds {cuda.devices} GPU, but the TensorRT engine of this artifact "
            "has to be built on the device, which this version of edgec does not do: build it from "
            f"{spec.files[0]} with trtexec as the recipe in the manifest says, or let the fallback run it"
        )
