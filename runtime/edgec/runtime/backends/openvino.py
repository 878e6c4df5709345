"""OpenVINO, on Intel's CPUs, GPUs and NPUs and on other x86-64 and ARM CPUs.

The model is loaded from memory; its weights stay where they are in the mapped artifact, shared by
every process that has it open, as far as the device's plugin does not repack them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import ArtifactError, BackendUnavailableError, DeviceMemoryError, InferenceError
from edgec.runtime._buffers import check_shape
from edgec.runtime.backends import LoadOptions, Payload
from edgec.runtime.backends._failures import engine_failure
from edgec.runtime.backends._precision import effective_precision
from edgec.runtime.backends._profiles import LayerTime, layer_times
from edgec.runtime.backends._versions import check_version

# ov::Exception arrives as RuntimeError; what the Python layer refuses, as one of the others.
_FAILURES = (RuntimeError, TypeError, ValueError, MemoryError)
# OpenVINO picks bf16 or fp16 for a model in fp32 where the device has it; edgec says what it promised.
_HINTS = {
    "fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32", "int8-dynamic": "f32", "int8-weights": "f32",
    "int4-weights": "f32", "mixed": "f32",
}  # fmt: skip
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64", "i8": "int8", "u8": "int8"}
_COMPRESSED = {"i8": "int8-weights", "u8": "int8-weights", "i4": "int4-weights", "u4": "int4-weights"}
_DYNAMIC = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# Layers that do a model's arithmetic; what the others compute in hardly matters.
_ARITHMETIC = (
    "Attention", "Convolution", "Deconvolution", "FullyConnected", "GatherMatmul", "Interaction", "LLMMLP",
    "LSTM", "GRU", "MatMul", "MHA", "QKVProjection", "RNN",
)  # fmt: skip
_NO_WORK = ("Const", "Input", "Output", "Parameter", "Reorder", "Reshape", "Result")
# Inputs of fixed shape up to this size are copied into the engine's own buffers, which saves more
# than the copy costs (benchmarks/overhead.py); larger ones are read where they are.
_COPIED_BYTES = 64 * 1024


class OpenVinoBackend:
    """Loads OpenVINO's IR: ``model.xml`` and, where it has weights, ``model.bin``."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> OpenVinoProgram:
        """Load a model; see `edgec.runtime.backends.Backend.load`."""
        return self._load(spec, payload, inputs, outputs, options, {})

    def profile(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runs: int,
    ) -> list[LayerTime]:
        """Return what each layer takes; see `edgec.runtime.backends.Profiler.profile`."""
        program = self._load(spec, payload, inputs, outputs, options, {"PERF_COUNT": True})
        try:
            taken = [program.run_profiled(feeds[i % len(feeds)]) for i in range(runs + 2)]
        finally:
            program.close()
        return layer_times(taken[2:])

    def _load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
        more: Mapping[str, Any],
    ) -> OpenVinoProgram:
        check_version("OpenVINO", "openvino", ov.__version__, spec.version)
        core = ov.Core()
        _check_device(core, spec.device)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _hint(core, spec),
        }
        if _DYNAMIC in core.get_property(spec.device, "SUPPORTED_PROPERTIES"):
            # Otherwise the CPU plugin quantizes what meets compressed weights to eight bits, unasked.
            settings[_DYNAMIC] = "0"
        if options.threads is not None and spec.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache_dir is not None:
            settings["CACHE_DIR"] = str(options.cache_dir)
        settings.update(more)
        entry, *data = spec.files
        weights = _Writable(np.frombuffer(payload.view(data[0]) if data else b"", np.uint8))

        def compiled() -> ov.CompiledModel:
            # bytes(): the binding takes no memoryview. It is the graph only, without its weights.
            model = core.read_model(bytes(payload.view(entry)), _tensor(weights))
            return core.compile_model(model, spec.device, settings)

        try:
            first = compiled()
        except _FAILURES as e:
            raise InferenceError(f"OpenVINO {ov.__version__} cannot load the model: {_reason(e)}") from e
        return OpenVinoProgram(first, compiled, weights, spec, inputs, outputs)

    def devices(self) -> tuple[str, ...]:
        """Return where models can run on this machine: ``("CPU", "GPU")``."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in ov.Core().available_devices))


class OpenVinoProgram:
    """A model in OpenVINO."""

    def __init__(
        self,
        compiled: ov.CompiledModel,
        compile_again: Callable[[], ov.CompiledModel],
        weights: _Writable,
        spec: EngineSpec,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._compiled: ov.CompiledModel | None = compiled
        self._compile_again = compile_again
        self._changing = Lock()
        self._weights = weights
        self._promised = spec.precision
        self._device = spec.device
        self._inputs = [(_port(compiled.inputs, i, "input"), i) for i in inputs]
        ports = [_port(compiled.outputs, o, "output") for o in outputs]
        self._names = [o.name for o in outputs]
        self._ports = list(zip(self._names, ports, strict=True))
        # OpenVINO gives the outputs in its own order.
        self._order = None if ports == list(range(len(compiled.outputs))) else ports
        self._runtime_layers = _layers(compiled)
        self._idle = [_Lane(compiled, weights, self._inputs)]

    @property
    def engine_version(self) -> str:
        """Version of OpenVINO."""
        return str(ov.__version__)

    @property
    def precision(self) -> str:
        """What `precisions` comes to; the promise where the device's plugin does not tell."""
        return effective_precision(self.precisions, self._promised)

    @cached_property
    def precisions(self) -> Mapping[str, int]:
        """How many layers that do arithmetic compute in which precision, as the compiled model says."""
        known = [(kind, p) for kind, p in self._runtime_layers if p]
        working = [p for kind, p in known if kind not in _NO_WORK]
        arithmetic = [p for kind, p in known if any(word in kind for word in _ARITHMETIC)]
        return dict(Counter(arithmetic or working))

    @cached_property
    def placement(self) -> Mapping[str, int]:
        """How many layers of the compiled model run on which device."""
        return {
            self._device: sum(kind not in ("Const", "Input", "Output") for kind, _ in self._runtime_layers)
        }

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `edgec.runtime.backends.Program.run`."""
        idle, compiled = self._idle, self._compiled  # in this order: see _failure
        if compiled is None:
            raise InferenceError("the session is closed: load the artifact again")
        try:
            # As many lanes as calls ever ran at once. pop and append are atomic.
            lane = idle.pop() if idle else _Lane(compiled, self._weights, self._inputs)
        except IndexError:  # another thread was faster
            lane = _Lane(compiled, self._weights, self._inputs)
        try:
            for name, buffer in lane.copied:
                buffer[...] = inputs[name]
            for name, port in lane.shared:
                lane.request.set_input_tensor(port, _shared(inputs[name]))
            # Without share_outputs, these are copies that nobody else holds.
            values = lane.request.infer().to_tuple()
        except _FAILURES as e:  # the lane is left behind, for nobody knows its state
            raise self._failure(e, compiled) from e
        idle.append(lane)
        names = self._names
        if len(names) == 1:
            return {names[0]: values[0 if self._order is None else self._order[0]]}
        if self._order is not None:
            values = [values[i] for i in self._order]
        return dict(zip(names, values))  # noqa: B905 - strict= costs time

    def run_into(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run once, some outputs into arrays of the caller's, which have the dtype and are contiguous."""
        call = self._call(inputs, outputs)
        values = call()
        for name, port in self._ports:
            if name in outputs:  # it writes into a part of a buffer that is larger
                check_shape(name, outputs[name].shape, values[port].shape)
        given = {name: outputs[name] if name in outputs else values[port] for name, port in self._ports}
        return {name: array if name in outputs else array.copy() for name, array in given.items()}

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], object]:
        """Return a call that reads and writes these arrays where they are."""
        compiled, bound = self._compiled, self._call(inputs, outputs)

        def call() -> object:
            nonlocal compiled, bound
            if compiled is not self._compiled:  # compiled again: see _failure
                compiled, bound = self._compiled, self._call(inputs, outputs)
            return bound()

        return call

    def _call(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], Any]:
        compiled = self._compiled
        if compiled is None:
            raise InferenceError("the session is closed: load the artifact again")
        weights = self._weights
        # What cannot be shared (scalars; inputs that are read-only) is copied at each call.
        copied = [(port, spec.name) for port, spec in self._inputs if not _can_share(inputs[spec.name])]
        scalars = [
            (outputs[name], port) for name, port in self._ports if name in outputs and not outputs[name].ndim
        ]
        try:
            # A request of its own: one that was told to write elsewhere would go on doing so.
            request = compiled.create_infer_request()
            for port, spec in self._inputs:
                request.set_input_tensor(port, _shared(inputs[spec.name]))
            for name, port in self._ports:
                if name in outputs and outputs[name].ndim:
                    request.set_output_tensor(port, _shared(outputs[name]))
        except _FAILURES as e:
            raise InferenceError(f"OpenVINO failed: {_reason(e)}") from e

        def call(_mapped: _Writable = weights) -> Any:
            try:
                for port, name in copied:
                    request.set_input_tensor(port, _shared(inputs[name]))
                values = request.infer(share_outputs=True).to_tuple()
            except _FAILURES as e:
                raise self._failure(e, compiled) from e
            for buffer, port in scalars:
                buffer[...] = values[port]
            return values

        return call

    def run_profiled(self, inputs: Mapping[str, NDArray[Any]]) -> list[tuple[str, str, float]]:
        """Run once and return name, kind and milliseconds of each layer; while no other call runs.

        The model has to be compiled with ``PERF_COUNT``.
        """
        self.run(inputs)
        executed = ov.ProfilingInfo.Status.EXECUTED
        return [
            (info.node_name, f"{info.node_type} ({info.exec_type})", info.real_time.total_seconds() * 1e3)
            for info in self._idle[-1].request.profiling_info
            if info.status == executed
        ]

    def close(self) -> None:
        """Free the model; a call that still runs in another thread ends as it would have."""
        with self._changing:
            self._compiled = None
        self._idle.clear()

    def _failure(self, error: BaseException, compiled: ov.CompiledModel) -> InferenceError:
        """Return what to raise; where memory was short, compile the model again.

        A compiled model asks in every later call, however small, for what it once did not get.
        """
        failure = engine_failure("OpenVINO", _reason(error), error)
        if not isinstance(failure, DeviceMemoryError):
            return failure
        with self._changing, suppress(*_FAILURES):  # where that fails too, the next call tries again
            if self._compiled is compiled:  # else it is closed, or another thread was faster
                self._compiled = self._compile_again()
                self._idle = []  # a call that still runs puts its lane into the old list
        return failure


class _Lane:
    """A request of OpenVINO; serves one call at a time.

    It holds the weights, so that they stay mapped while a call runs.
    """

    __slots__ = ("copied", "request", "shared", "weights")

    def __init__(
        self, compiled: ov.CompiledModel, weights: _Writable, inputs: list[tuple[int, TensorSpec]]
    ) -> None:
        self.request = compiled.create_infer_request()
        self.weights = weights
        self.copied: list[tuple[str, NDArray[Any]]] = []
        self.shared: list[tuple[str, int]] = []
        for port, spec in inputs:
            if spec.is_static and compiled.inputs[port].partial_shape.is_static:
                buffer = self.request.get_input_tensor(port).data
                if buffer.nbytes <= _COPIED_BYTES:
                    self.copied.append((spec.name, buffer))
                    continue
            self.shared.append((spec.name, port))


class _Writable:
    """Weights that OpenVINO may believe it can write to: it asks for that, and does not use it."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.__array_interface__ = {
            **data.__array_interface__,
            "data": (data.__array_interface__["data"][0], False),
        }
        self._data = data  # keeps the memory mapped


def _hint(core: ov.Core, spec: EngineSpec) -> str:
    """Return the arithmetic to ask for.

    A device without fp16 arithmetic, asked for it, computes in bf16, which is coarser than what was
    promised; such a device gets fp16 weights and fp32 arithmetic.
    """
    if spec.precision == "fp16" and "FP16" not in core.get_property(spec.device, "OPTIMIZATION_CAPABILITIES"):
        return "f32"
    if spec.precision == "mixed" and spec.device == "CPU":
        # Finer where the CPU has no bf16, as promised.
        return "bf16" if "BF16" in core.get_property(spec.device, "OPTIMIZATION_CAPABILITIES") else "f32"
    return _HINTS[spec.precision]


def _tensor(weights: _Writable) -> ov.Tensor:
    return ov.Tensor(np.asarray(weights), shared_memory=True)


def _shared(array: NDArray[Any]) -> ov.Tensor:
    """Return an array as a tensor that reads it where it is, or a copy where that is impossible."""
    return ov.Tensor(array, shared_memory=_can_share(array))


def _can_share(array: NDArray[Any]) -> bool:
    return array.flags.c_contiguous and array.flags.writeable and array.ndim > 0


def _check_device(core: ov.Core, device: str) -> None:
    available = core.available_devices
    if not any(device == name or device == name.partition(".")[0] for name in available):
        raise BackendUnavailableError(
            f"OpenVINO finds no {device} here, only {', '.join(available)}: install the driver of the "
            "device, or compile for a target that is here"
        )


def _port(ports: list[ov.ConstOutput], spec: TensorSpec, role: str) -> int:
    for i, port in enumerate(ports):
        if spec.name in port.get_names():
            has = str(np.dtype(port.get_element_type().to_dtype()))
            if has != spec.dtype:
                raise ArtifactError(
                    f"the manifest declares the {role} {spec}, the model has {has}: compile it again"
                )
            return i
    names = sorted(name for port in ports for name in port.get_names())
    raise ArtifactError(
        f"the manifest declares the {role} {spec.name!r}, the model has {names}: compile it again"
    )


def _layers(compiled: ov.CompiledModel) -> list[tuple[str, str]]:
    """Return kind and precision of each layer of the compiled model; none where the plugin does not tell.

    The precision is empty where it is none that edgec has a name for.
    """
    try:
        return [
            (str(op.get_rt_info()["layerType"].astype(str)), _layer_precision(op))
            for op in compiled.get_runtime_model().get_ops()
            if "layerType" in op.get_rt_info() and "runtimePrecision" in op.get_rt_info()
        ]
    except RuntimeError:
        return []


def _layer_precision(op: ov.Node) -> str:
    """Return what a layer computes in: compressed weights alone where what they meet stays in float."""
    said = str(op.get_rt_info()["runtimePrecision"].astype(str))
    if said in _COMPRESSED and op.get_input_size():
        taken = op.input_value(0)
        given = taken.get_node().get_rt_info()
        outputs = str(given["outputPrecisions"].astype(str)).split(",") if "outputPrecisions" in given else []
        if taken.get_index() < len(outputs) and outputs[taken.get_index()] in ("f32", "f16", "bf16"):
            return _COMPRESSED[said]
    return _PRECISIONS.get(said, "")


def _reason(e: BaseException) -> str:
    """Return what went wrong: OpenVINO's messages begin with where in its sources."""
    lines = [line.strip() for line in str(e).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return telling[0] if telling else (lines[0] if lines else type(e).__name__)
