"""ONNX Runtime, on the CPU, and on GPUs where its build has TensorRT or CUDA.

The graph is loaded from memory, and its weights from the mapped member ``weights.bin``: nothing is
unpacked to disk. ONNX Runtime copies the weights while it loads, so that the map is read once.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as binding
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.artifact.onnx_reader import ExternalTensor, read_facts
from edgec.errors import ArtifactError, BackendUnavailableError, DeadlineError, InferenceError
from edgec.runtime._buffers import deliver
from edgec.runtime._interrupt import interrupt_here
from edgec.runtime.backends import LoadOptions, Payload
from edgec.runtime.backends._failures import engine_failure
from edgec.runtime.backends._precision import effective_precision
from edgec.runtime.backends._profiles import LayerTime, kernel_runs, layer_times
from edgec.runtime.backends._providers import check_started, choose_providers
from edgec.runtime.backends._versions import check_version

# Between Q/DQ pairs it rounds the weights of layers that a build left in float to int8, with one scale for
# all of them; where weights are in int8 already it has nothing to do.
_DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]
# What the binding raises: classes of its own with no base but Exception, and for some failures
# inside of numpy or the standard library of C++ the built-in ones.
_FAILURES = (
    binding.EngineError,
    binding.EPFail,
    binding.Fail,
    binding.InvalidArgument,
    binding.InvalidGraph,
    binding.InvalidProtobuf,
    binding.ModelLoaded,
    binding.NoModel,
    binding.NoSuchFile,
    binding.NotFound,
    binding.NotImplemented,
    binding.RuntimeException,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Inputs up to this size are copied into buffers that stay bound to the engine, which saves more
# than the copy costs (benchmarks/overhead.py); larger ones are handed over as they are.
_BOUND_BYTES = 16 * 1024
# Element types of onnx.proto that numpy has too; the others are handed over as raw bytes.
_NUMPY_TYPES = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8",
    12: "<u4", 13: "<u8", 14: "<c8", 15: "<c16",
}  # fmt: skip
_ENGINE_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
    "tensor(complex64)": "complex64",
    "tensor(complex128)": "complex128",
    **{f"tensor({name})": name for name in ("float16", "bfloat16")},
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
# Kernels that do a model's arithmetic; what the others compute in hardly matters.
_ARITHMETIC = (
    "Attention", "Conv", "Einsum", "Gemm", "Gru", "Lstm", "MatMul", "Rnn", "FullyConnected",
)  # fmt: skip
_PRECISIONS = {
    "float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64", "uint8": "int8", "int8": "int8",
}  # fmt: skip


class OnnxRuntimeBackend:
    """Loads ONNX, with ``weights.bin`` as external data where a model has it."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> OnnxRuntimeProgram:
        """Load a model; see `edgec.runtime.backends.Backend.load`."""
        check_version("ONNX Runtime", "onnxruntime", ort.__version__, spec.version)
        model = _Model(spec, payload, options)
        session = model.open()
        _check_interface(session, inputs, outputs)
        small = sum(_static_bytes(i) for i in inputs) <= _BOUND_BYTES
        numeric = all(s.dtype != "object" for s in (*inputs, *outputs))
        kind = _BoundProgram if small and numeric else OnnxRuntimeProgram
        return kind(model, session, inputs, outputs)

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
        """Return what each kernel takes; see `edgec.runtime.backends.Profiler.profile`."""
        names = [spec.name for spec in outputs]
        try:
            with tempfile.TemporaryDirectory(prefix="edgec-") as directory:
                session = _Model(spec, payload, options).open(profile_prefix=f"{directory}/profile")
                for i in range(runs + 2):
                    session.run(names, dict(feeds[i % len(feeds)]))
                events = json.loads(Path(session.end_profiling()).read_text())
        except _FAILURES as e:
            raise _failure(e) from e
        except OSError as e:
            raise InferenceError(f"there is no room for a profile of ONNX Runtime: {e}") from e
        return layer_times(kernel_runs(events)[2:])

    def devices(self) -> tuple[str, ...]:
        """Return where models can run."""
        gpu = {"TensorrtExecutionProvider", "CUDAExecutionProvider"} & set(ort.get_available_providers())
        return ("CPU", "GPU") if gpu else ("CPU",)


class _Model:
    """What an inference session is made from."""

    def __init__(self, spec: EngineSpec, payload: Payload, options: LoadOptions) -> None:
        self.promised = spec.precision
        self._payload = payload
        self._entry, *data = spec.files
        self._threads = options.threads
        self._providers = choose_providers(spec, options, ort.get_available_providers(), ort.__version__)
        facts = read_facts(payload.view(self._entry))
        self.nodes = facts.nodes
        self.packed_bits = facts.packed_bits
        self._external = facts.external
        for tensor in self._external:
            if tensor.location not in data:
                raise ArtifactError(
                    f"the model wants tensor {tensor.name!r} from {tensor.location!r}, "
                    f"which is not among the members of its engine: {', '.join(spec.files)}"
                )

    def open(self, profile_prefix: str | None = None) -> ort.InferenceSession:
        """Return a new session.

        Args:
            profile_prefix: Where the profile goes; None for no profile.

        Raises:
            InferenceError: ONNX Runtime refuses the model.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        # The arrays that external data is read from have to live until the session is made.
        kept = self._add_external(options)
        try:
            # bytes(): the binding takes no memoryview. It is the graph only, without its weights.
            session = ort.InferenceSession(
                bytes(self._payload.view(self._entry)),
                options,
                providers=self._providers,
                disabled_optimizers=_DISABLED_OPTIMIZERS,
                enable_fallback=0,  # else a call that fails on a GPU makes this a session on the CPU
            )
        except _FAILURES as e:
            raise InferenceError(
                f"ONNX Runtime {ort.__version__} cannot load the model: {_first_line(e)}"
            ) from e
        del kept
        check_started(self._providers, session.get_providers(), ort.__version__)
        return session

    def _add_external(self, options: ort.SessionOptions) -> list[object]:
        files = sorted({tensor.location for tensor in self._external})
        views = [self._payload.view(name) for name in files]
        if not files:
            return []
        if hasattr(options, "add_external_initializers_from_files_in_memory"):
            options.add_external_initializers_from_files_in_memory(
                files, views, [len(view) for view in views]
            )
            return [views]
        # ONNX Runtime before 1.24, the last there is for Python 3.10.
        by_name = dict(zip(files, views, strict=True))
        values = [_ort_value(tensor, by_name[tensor.location]) for tensor in self._external]
        options.add_external_initializers([tensor.name for tensor in self._external], values)
        return [views, values]


class OnnxRuntimeProgram:
    """A model in ONNX Runtime."""

    def __init__(
        self,
        model: _Model,
        session: ort.InferenceSession,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._model = model
        self._session: ort.InferenceSession | None = session
        self._inputs = inputs
        # As many as the engine gives, checked when it was loaded. One is common, and half a
        # microsecond faster without dict and zip.
        self._names = [spec.name for spec in outputs]
        self._numeric = all(s.dtype != "object" for s in (*inputs, *outputs))
        self._measuring = Lock()
        self.placement = _placement(session, model.nodes)

    @property
    def engine_version(self) -> str:
        """Version of ONNX Runtime."""
        return str(ort.__version__)

    @property
    def precision(self) -> str:
        """What `precisions` comes to; the promise where it could not be measured."""
        return effective_precision(self.precisions, self._model.promised)

    @property
    def precisions(self) -> Mapping[str, int]:
        """How many kernels compute in which precision, as a profile of one inference shows.

        Measured when it is first asked for, and kept: the model is loaded a second time for it, and
        run once with zeros, dynamic dimensions being 1. Empty where the model does not run on such
        inputs, or where there is no directory for temporary files.
        """
        with self._measuring:
            return self._measured

    @cached_property
    def _measured(self) -> Mapping[str, int]:
        if self._session is None:
            raise InferenceError("the session is closed: read its precision before")
        try:
            with tempfile.TemporaryDirectory(prefix="edgec-") as directory:
                session = self._model.open(profile_prefix=f"{directory}/profile")
                # Exactly what runs in production: the outputs decide which nodes do.
                session.run(self._names, {i.name: _zeros(i) for i in self._inputs})
                return _precisions(Path(session.end_profiling()), self._model.packed_bits)
        except (*_FAILURES, OSError):
            return {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `edgec.runtime.backends.Program.run`."""
        session, names = self._session, self._names
        if session is None:
            raise InferenceError("the session is closed: load the artifact again")
        try:
            # ONNX Runtime 1.23 takes no other mapping.
            feeds = inputs if isinstance(inputs, dict) else dict(inputs)
            values: Any = session.run(names, feeds, _run_options())
        except _FAILURES as e:
            raise _failure(e) from e
        return {names[0]: values[0]} if len(names) == 1 else dict(zip(names, values))  # noqa: B905 - see _names

    def run_into(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run once, some outputs into arrays of the caller's, which have the dtype and are contiguous."""
        session = self._session
        if session is None:
            raise InferenceError("the session is closed: load the artifact again")
        if not self._numeric:
            return deliver(self.run(inputs), outputs)
        held = {
            i.name: np.ascontiguousarray(inputs[i.name]).reshape(inputs[i.name].shape) for i in self._inputs
        }
        try:
            bound = self._binding(session, held, outputs)
            session.run_with_iobinding(bound, _run_options())
            if len(outputs) == len(self._names):
                return {name: outputs[name] for name in self._names}
            values = bound.copy_outputs_to_cpu()
        except _FAILURES as e:
            raise _failure(e) from e
        return {**dict(zip(self._names, values, strict=True)), **outputs}

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], object]:
        """Return a call that reads and writes these arrays where they are."""
        session = self._session
        if session is None:
            raise InferenceError("the session is closed: load the artifact again")
        if not self._numeric:
            return lambda: deliver(self.run(inputs), outputs)
        try:
            bound = self._binding(session, inputs, outputs)
        except _FAILURES as e:
            raise _failure(e) from e
        run = session.run_with_iobinding

        def call() -> None:
            try:
                run(bound)
            except _FAILURES as e:
                raise _failure(e) from e

        return call

    def _binding(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
    ) -> ort.IOBinding:
        bound = session.io_binding()
        for spec in self._inputs:
            bound.bind_cpu_input(spec.name, inputs[spec.name])
        for name in self._names:
            array = outputs.get(name)
            if array is None:
                bound.bind_output(name)
            else:
                bound.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return bound

    def close(self) -> None:
        """Free the model; a call that still runs in another thread ends as it would have."""
        self._session = None


class _Lane:
    """Inputs bound to the engine; serves one call at a time."""

    __slots__ = ("binding", "buffers")

    def __init__(
        self, session: ort.InferenceSession, inputs: tuple[TensorSpec, ...], outputs: list[str]
    ) -> None:
        self.binding = session.io_binding()
        # The binding reads these arrays where they are.
        self.buffers = [(i.name, _zeros(i)) for i in inputs]
        for name, buffer in self.buffers:
            self.binding.bind_cpu_input(name, buffer)
        for name in outputs:
            self.binding.bind_output(name)


class _BoundProgram(OnnxRuntimeProgram):
    """A model with small inputs of fixed shape, which are copied into lanes of bound buffers."""

    def __init__(
        self,
        model: _Model,
        session: ort.InferenceSession,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        super().__init__(model, session, inputs, outputs)
        self._idle = [_Lane(session, inputs, self._names)]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `edgec.runtime.backends.Program.run`."""
        session, names = self._session, self._names
        if session is None:
            raise InferenceError("the session is closed: load the artifact again")
        try:
            # As many lanes as calls ever ran at once. pop and append are atomic.
            lane = self._idle.pop() if self._idle else _Lane(session, self._inputs, names)
        except IndexError:  # another thread was faster
            lane = _Lane(session, self._inputs, names)
        try:
            for name, buffer in lane.buffers:
                buffer[...] = inputs[name]
            session.run_with_iobinding(lane.binding, _run_options())
            values = lane.binding.copy_outputs_to_cpu()
        except _FAILURES as e:  # the lane is left behind, for nobody knows its state
            raise _failure(e) from e
        self._idle.append(lane)
        return {names[0]: values[0]} if len(names) == 1 else dict(zip(names, values))  # noqa: B905 - see _names

    def close(self) -> None:
        """Free the model; a call that still runs in another thread ends as it would have."""
        super().close()
        self._idle.clear()


def _ort_value(tensor: ExternalTensor, file: memoryview) -> ort.OrtValue:
    """Return a tensor as a value of ONNX Runtime that reads the bytes where they are."""
    if not tensor.top_level:
        raise BackendUnavailableError(
            f"ONNX Runtime {ort.__version__} cannot load tensor {tensor.name!r} of a subgraph from memory: "
            "run  pip install 'onnxruntime>=1.24'  (Python 3.11 or later)"
        )
    end = len(file) if tensor.length is None else tensor.offset + tensor.length
    data = np.frombuffer(file[tensor.offset : end], np.uint8)
    dtype = _NUMPY_TYPES.get(tensor.data_type)
    try:
        if dtype is not None:
            return ort.OrtValue.ortvalue_from_numpy(data.view(dtype).reshape(tensor.shape))
        size = np.prod(tensor.shape, dtype=np.int64)
        raw = data.view(f"u{len(data) // size}").reshape(tensor.shape)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, tensor.data_type)
    except (*_FAILURES, ZeroDivisionError, OverflowError) as e:
        raise ArtifactError(
            f"the bytes of tensor {tensor.name!r} do not fit its shape {list(tensor.shape)}: compile it again"
        ) from e


def _check_interface(
    session: ort.InferenceSession, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    for role, specs, nodes in (
        ("inputs", inputs, session.get_inputs()),
        ("outputs", outputs, session.get_outputs()),
    ):
        has = {node.name: _ENGINE_TYPES.get(node.type, node.type) for node in nodes}
        want = {spec.name: spec.dtype for spec in specs}
        if has != want:
            raise ArtifactError(
                f"the manifest declares the {role} {want}, the model has {has}: compile it again"
            )


def _placement(session: ort.InferenceSession, nodes: int) -> dict[str, int]:
    """Count the nodes on each device, as ONNX Runtime assigned them when it loaded the model.

    Args:
        session: That has loaded it.
        nodes: How many the model has, before anything is fused.
    """
    counts: Counter[str] = Counter()
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name.removesuffix("ExecutionProvider")] += len(part.get_nodes())
        return dict(counts)
    # ONNX Runtime before 1.24 tells the providers only, in their order: the rest is taken for kept.
    return {session.get_providers()[0].removesuffix("ExecutionProvider"): nodes}


def _precisions(profile: Path, packed_bits: tuple[int, ...]) -> dict[str, int]:
    """Count the kernels that do arithmetic in a profile, by precision; all kernels where none does."""
    kernels = [
        (event["args"]["op_name"], [next(iter(t)) for t in event["args"]["input_type_shape"] if t])
        for event in json.loads(profile.read_text())
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    dynamic = any(kernel == "DynamicQuantizeLinear" for kernel, _ in kernels)
    known = [
        (kernel, p) for kernel, types in kernels if (p := _precision_of(kernel, types, dynamic, packed_bits))
    ]
    arithmetic = [p for kernel, p in known if any(word.lower() in kernel.lower() for word in _ARITHMETIC)]
    return dict(Counter(arithmetic or [p for _, p in known]))


def _precision_of(kernel: str, types: list[str], dynamic: bool, packed_bits: tuple[int, ...]) -> str | None:
    """Return what a kernel computes in; None where that is no number.

    Args:
        kernel: Its operator.
        types: Element types of its inputs.
        dynamic: Whether activations are quantized anew in each call.
        packed_bits: Of the weights that MatMulNBits unpacks, the fewest first: its profile does not tell.
    """
    # ConvInteger, MatMulInteger and MatMulIntegerToFloat serve static quantization as well.
    if "DynamicQuantize" in kernel or (dynamic and "Integer" in kernel):
        return "int8-dynamic"
    if kernel == "MatMulNBits" and packed_bits:
        return f"int{packed_bits[0]}-weights"
    return next((_PRECISIONS[t] for t in types if t in _PRECISIONS), None)


def _static_bytes(spec: TensorSpec) -> float:
    """Return the size of an input in bytes; infinite where it depends on the call."""
    if not spec.is_static:
        return float("inf")
    return float(np.prod([n for n in spec.shape if isinstance(n, int)]) * np.dtype(spec.dtype).itemsize)


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.zeros([n if isinstance(n, int) else 1 for n in spec.shape], spec.dtype)


def _run_options() -> ort.RunOptions | None:
    """Return what lets a call be stopped between two nodes of its model, where somebody may want that."""
    interrupt = interrupt_here()
    if interrupt is None:
        return None
    options = ort.RunOptions()
    interrupt.attach(partial(setattr, options, "terminate", True))
    return options


def _failure(e: BaseException) -> InferenceError:
    interrupt = interrupt_here()
    if interrupt is not None and interrupt.asked:
        return DeadlineError("the call was stopped, since nobody waits for it any more")
    return engine_failure("ONNX Runtime", _first_line(e), e)


def _first_line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
