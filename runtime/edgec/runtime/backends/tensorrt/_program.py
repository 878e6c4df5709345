"""An engine, loaded and ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import ArtifactError, EdgecError, InferenceError
from edgec.runtime.backends.tensorrt._library import TensorRt

# Names of tensorrt.DataType, and numpy's.
_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip


class EngineRefusedError(Exception):
    """TensorRT does not take a serialized engine; it has to be built again."""


class TensorRtProgram:
    """An engine of TensorRT with one execution context; calls from several threads wait for each other."""

    def __init__(
        self,
        library: TensorRt,
        plan: bytes,
        dla: int | None,
        spec: EngineSpec,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Load an engine, and close `library` with it.

        Raises:
            EngineRefusedError: TensorRT does not take it; `library` is left open.
            ArtifactError: Its inputs or outputs are not those of the manifest; likewise.
            InferenceError: There is not enough memory for it, say; likewise.
        """
        self._library: TensorRt | None = library
        self._inputs, self._outputs = inputs, outputs
        self._buffers: dict[str, tuple[int, int]] = {}  # address and size, by name of the tensor
        self._lock = Lock()
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        try:
            layers = self._load(library, plan, dla)
            self._stream = library.device.open_stream()
        except (EdgecError, EngineRefusedError) as e:
            # Now, and without a traceback, whose frames would keep the engine beyond the end of `library`.
            self._release()
            raise e.with_traceback(None) from e.__cause__
        self._precision = spec.precision
        self._placement = {} if dla is not None else {spec.device: layers}

    @property
    def engine_version(self) -> str:
        """Version of TensorRT."""
        return self._open().version

    @property
    def precision(self) -> str:
        """What the artifact promises: types of tensors decide it, and the engine does not tell."""
        return self._precision

    @property
    def precisions(self) -> Mapping[str, int]:
        """Empty: the engine does not tell."""
        return {}

    @property
    def placement(self) -> Mapping[str, int]:
        """How many layers the engine has, all on the GPU; empty with a DLA, as the engine does not tell."""
        return self._placement

    @property
    def memory_bytes(self) -> int:
        """What a call needs on the GPU beside weights, inputs and outputs."""
        self._open()
        return int(self._engine.device_memory_size_v2)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `edgec.runtime.backends.Program.run`."""
        with self._lock:
            library = self._open()
            library.log.clear()
            device, context = library.device, self._context
            device.use()
            # Held until the stream has been waited for.
            arrays = {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self._inputs}
            try:
                for spec in self._inputs:
                    array = arrays[spec.name].reshape(inputs[spec.name].shape)
                    if not context.set_input_shape(spec.name, array.shape):
                        raise InferenceError(
                            f"the engine does not take {spec.name} as {list(array.shape)}: "
                            f"{library.log.errors()}"
                        )
                    self._bind(library, spec.name, array.nbytes)
                    device.upload(self._buffers[spec.name][0], array, self._stream)
                shapes = {spec.name: self._output_shape(library, spec) for spec in self._outputs}
                for spec in self._outputs:
                    self._bind(library, spec.name, _nbytes(shapes[spec.name], spec.dtype))
                if not context.execute_async_v3(stream_handle=self._stream):
                    raise InferenceError(f"TensorRT {library.version} failed: {library.log.errors()}")
                results = {
                    spec.name: device.download(
                        self._buffers[spec.name][0], shapes[spec.name], spec.dtype, self._stream
                    )
                    for spec in self._outputs
                }
            finally:
                # Copies may be under way even if a later call failed; arrays must outlive them.
                device.synchronize(self._stream)
            return results

    def close(self) -> None:
        """Free the engine and leave the GPU; a call that still runs ends first."""
        with self._lock:
            library, self._library = self._library, None
            if library is None:
                return
            library.device.use()
            self._release()
            for address, _ in self._buffers.values():
                library.device.free(address)
            self._buffers.clear()
            library.device.close_stream(self._stream)
            library.close()

    def _load(self, library: TensorRt, plan: bytes, dla: int | None) -> int:
        """Load the engine and return how many layers it has."""
        trt, log = library.api, library.log
        log.clear()
        library.device.use()
        self._runtime = trt.Runtime(log.sink)
        if dla is not None:
            self._runtime.DLA_core = dla
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineRefusedError(f"TensorRT {library.version} does not load it: {log.errors()}")
        _check_tensors(trt, self._engine, self._inputs, self._outputs)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise InferenceError(f"TensorRT {library.version} cannot run the engine here: {log.errors()}")
        return int(self._engine.num_layers)

    def _release(self) -> None:
        # One after the other: each needs the next one to end well.
        self._context = None
        self._engine = None
        self._runtime = None

    def _bind(self, library: TensorRt, name: str, nbytes: int) -> None:
        """Give a tensor memory of at least that size; what it has is kept where that is enough."""
        address, size = self._buffers.get(name, (0, -1))
        if size < nbytes:
            if size >= 0:
                del self._buffers[name]
                library.device.free(address)
            address = library.device.allocate(nbytes)
            self._buffers[name] = (address, nbytes)
        if not self._context.set_tensor_address(name, address):
            raise InferenceError(
                f"TensorRT {library.version} refuses memory of {name}: {library.log.errors()}"
            )

    def _output_shape(self, library: TensorRt, spec: TensorSpec) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise InferenceError(
                f"the shape of {spec.name} depends on values, which edgec does not run in TensorRT "
                f"{library.version}: take the step that makes it so out of the model"
            )
        return shape

    def _open(self) -> TensorRt:
        library = self._library
        if library is None:
            raise InferenceError("the session is closed: load the artifact again")
        return library


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _check_tensors(
    trt: Any, engine: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Raise ArtifactError where the engine's inputs and outputs are not those of the manifest."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for specs, mode, role in (
        (inputs, trt.TensorIOMode.INPUT, "input"),
        (outputs, trt.TensorIOMode.OUTPUT, "output"),
    ):
        for spec in specs:
            # It would take the address of GPU memory for one of main memory.
            if spec.name in names and engine.get_tensor_location(spec.name) != trt.TensorLocation.DEVICE:
                raise InferenceError(
                    f"the {role} {spec.name} holds shapes, which edgec does not run in TensorRT: give the "
                    "model fixed shapes with --shape and compile it again"
                )
        there = {
            name: engine.get_tensor_dtype(name) for name in names if engine.get_tensor_mode(name) == mode
        }
        for spec in specs:
            if spec.name not in there:
                raise ArtifactError(
                    f"the manifest declares the {role} {spec.name!r}, the engine has {sorted(there)}: "
                    "compile it again"
                )
            has = _TYPES.get(there[spec.name].name, there[spec.name].name)
            if has != spec.dtype:
                raise ArtifactError(
                    f"the manifest declares the {role} {spec}, the engine has {has}: compile it again"
                )
        if role == "input" and (unknown := sorted(set(there) - {spec.name for spec in specs})):
            raise ArtifactError(f"the engine has inputs that the manifest does not: {unknown}")
