"""A ``tensorrt`` module that computes with ONNX Runtime and holds its callers to the documented API.

It has the names that the Python API of TensorRT 10 or 11 documents, as far as edgec calls them, and none
that 11 removed. Wrong types are TypeErrors, as pybind11 raises them; calls out of order, and objects that
outlive what they need, are collected in ``violations``. An engine is the ONNX model with its external
data behind a header, so that it computes what the real one should; like the real one it is refused by
another version of TensorRT and on another GPU.

Sources: docs.nvidia.com/deeplearning/tensorrt, Python API of 10.7 and 11.4.1, "Migrating from TensorRT 10.x
to 11.x"; github.com/NVIDIA/TensorRT, python/src and samples/python.
"""

from __future__ import annotations

import _thread
import ctypes
import enum
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from tests.fakes.cuda import FakeDriver

_MAGIC = b"fake plan\n"
_NUMPY = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(bool)": ("BOOL", np.bool_),
}


@dataclass
class Faults:
    """What goes wrong, and what was seen.

    Attributes:
        parse_errors: Descriptions that the parser gives, and fails.
        build_error: What the builder logs, and fails.
        kill: Whether the process is killed in the middle of a build.
        interrupt: Whether Ctrl-C is pressed in the middle of a build.
        offset: What every output is off by, as a broken kernel would have it.
        no_context: Whether there is no memory for an execution context.
        dla_cores: How many there are.
        on_host: Tensors that the engine wants in main memory, as those that hold shapes.
        violations: Calls that the real library might have crashed at.
        builds: Configurations of the builds that were done.
    """

    parse_errors: list[str] = field(default_factory=list)
    build_error: str = ""
    kill: bool = False
    interrupt: bool = False
    offset: float = 0.0
    no_context: bool = False
    dla_cores: int = 2
    on_host: tuple[str, ...] = ()
    violations: list[str] = field(default_factory=list)
    builds: list[dict[str, Any]] = field(default_factory=list)


def make_tensorrt(version: str, driver: FakeDriver, faults: Faults) -> Any:
    """Return a module as ``import tensorrt`` would give it.

    Args:
        version: ``10.3.0`` or ``11.4.1``: names that a major version has not are missing.
        driver: The CUDA driver that it works with.
        faults: What goes wrong.
    """
    eleven = int(version.partition(".")[0]) >= 11
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version

    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        Severity: Any = None

        def __init__(self) -> None:
            self._is_made = True

    ILogger.Severity = Severity

    class IProgressMonitor:
        def __init__(self) -> None:
            self._is_made = True

    def flags(name: str, *members: str) -> Any:
        return enum.IntEnum(name, {member: i for i, member in enumerate(members)})

    trt.ILogger, trt.IProgressMonitor = ILogger, IProgressMonitor
    trt.NetworkDefinitionCreationFlag = flags(
        "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED"
    )
    weak = () if eleven else ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS")
    trt.BuilderFlag = flags("BuilderFlag", *weak, "GPU_FALLBACK", "TF32", "SPARSE_WEIGHTS", "REFIT")
    trt.MemoryPoolType = flags("MemoryPoolType", "WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM")
    trt.ProfilingVerbosity = flags("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
    trt.DeviceType = flags("DeviceType", "GPU", "DLA")
    trt.TensorIOMode = flags("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    trt.TensorLocation = flags("TensorLocation", "DEVICE", "HOST")
    trt.DataType = flags("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "INT64", "BF16")
    dla_flags = ("ADJUST_FOR_DLA",) if eleven else ()
    trt.OnnxParserFlag = flags("OnnxParserFlag", "NATIVE_INSTANCENORM", *dla_flags)

    def need(value: object, kind: Any, what: str) -> None:
        # bool is an int for Python, not for pybind11's enums and sizes.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"incompatible function arguments: {what} is {type(value).__name__}")

    def need_cuda(what: str) -> None:
        if not driver.has_context():
            faults.violations.append(f"{what} without a CUDA context: the real library crashes here")

    def need_logger(logger: Any) -> None:
        need(logger, ILogger, "logger")
        if not getattr(logger, "_is_made", False):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")

    def log_error(logger: Any, message: str) -> None:
        logger.log(Severity.ERROR, f"[fake] {message}")

    class IHostMemory(bytes):
        @property
        def nbytes(self) -> int:
            return len(self)

    class ParserError:
        def __init__(self, description: str, node: int) -> None:
            self._description, self._node = description, node

        def desc(self) -> str:
            return self._description

        def node(self) -> int:
            return self._node

        def node_name(self) -> str:
            return f"Conv_{self._node}"

        def node_operator(self) -> str:
            return "Conv"

    class Network:
        def __init__(self, strongly_typed: bool) -> None:
            self.strongly_typed = strongly_typed
            self.model: bytes = b""
            self.files: dict[str, bytes] = {}
            self.inputs: dict[str, list[Any]] = {}

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            need(network, Network, "network")
            need_logger(logger)
            self._network, self._errors = network, list[ParserError]()
            self.flags: set[Any] = set()

        def set_flag(self, flag: Any) -> None:
            need(flag, trt.OnnxParserFlag, "flag")
            self.flags.add(flag)

        def parse_from_file(self, model: str) -> bool:
            need(model, str, "model")
            if self._network.model:
                faults.violations.append("a model is parsed into a network that has one")
            if faults.parse_errors:
                self._errors = [ParserError(text, i) for i, text in enumerate(faults.parse_errors)]
                return False
            path = Path(model)
            session = _open(path)  # fails where external data is not beside it
            self._network.inputs = {i.name: list(i.shape) for i in session.get_inputs()}
            self._network.files = {p.name: p.read_bytes() for p in path.parent.iterdir() if p != path}
            self._network.model = path.read_bytes()
            return True

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            need(index, int, "index")
            return self._errors[index]

    class OptimizationProfile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[tuple[int, ...]]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            need(input, str, "input")
            for shape in (min, opt, max):
                need(shape, (tuple, list), "shape")
            self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> IHostMemory:
            return IHostMemory(self.data)

    class BuilderConfig:
        __slots__ = (
            "_cache", "_device", "_dla", "_flags", "_level", "_monitor", "_pools", "_profiles", "_verbosity",
        )  # fmt: skip

        def __init__(self) -> None:
            self._cache: Any = None
            self._device, self._dla, self._level = trt.DeviceType.GPU, -1, 3
            self._verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self._flags: set[Any] = set()
            self._monitor: Any = None
            self._pools: dict[Any, int] = {}
            self._profiles: list[OptimizationProfile] = []

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            need(pool, trt.MemoryPoolType, "pool")
            need(pool_size, int, "pool_size")
            self._pools[pool] = pool_size

        @property
        def builder_optimization_level(self) -> int:
            return self._level

        @builder_optimization_level.setter
        def builder_optimization_level(self, level: int) -> None:
            need(level, int, "level")
            self._level = level

        @property
        def profiling_verbosity(self) -> Any:
            return self._verbosity

        @profiling_verbosity.setter
        def profiling_verbosity(self, verbosity: Any) -> None:
            need(verbosity, trt.ProfilingVerbosity, "verbosity")
            self._verbosity = verbosity

        @property
        def default_device_type(self) -> Any:
            return self._device

        @default_device_type.setter
        def default_device_type(self, device: Any) -> None:
            need(device, trt.DeviceType, "device")
            self._device = device

        @property
        def DLA_core(self) -> int:
            return self._dla

        @DLA_core.setter
        def DLA_core(self, core: int) -> None:
            need(core, int, "core")
            self._dla = core

        @property
        def progress_monitor(self) -> Any:
            return self._monitor

        @progress_monitor.setter
        def progress_monitor(self, monitor: Any) -> None:
            need(monitor, IProgressMonitor, "monitor")
            if not getattr(monitor, "_is_made", False):
                raise TypeError("IProgressMonitor.__init__() must be called when overriding __init__")
            self._monitor = monitor

        def set_flag(self, flag: Any) -> None:
            need(flag, trt.BuilderFlag, "flag")
            self._flags.add(flag)

        def add_optimization_profile(self, profile: OptimizationProfile) -> int:
            need(profile, OptimizationProfile, "profile")
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
            need(serialized_timing_cache, (bytes, bytearray, memoryview, IHostMemory), "cache")
            return TimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            need(cache, TimingCache, "cache")
            need(ignore_mismatch, bool, "ignore_mismatch")
            if cache.data and not cache.data.startswith(f"timings of {version}".encode()):
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            need_logger(logger)
            need_cuda("a Builder")
            self._logger = logger

        def __del__(self) -> None:
            if driver.retained == 0:
                faults.violations.append("a Builder outlives its CUDA context")

        @property
        def num_DLA_cores(self) -> int:
            return faults.dla_cores

        def create_network(self, flags: int = 0) -> Network:
            need(flags, int, "flags")
            strong = bool(flags & 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            return Network(strong or eleven)

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig()

        def create_optimization_profile(self) -> OptimizationProfile:
            return OptimizationProfile()

        def build_serialized_network(self, network: Network, config: BuilderConfig) -> Any:
            need(network, Network, "network")
            need(config, BuilderConfig, "config")
            need_cuda("build_serialized_network")
            if not network.model:
                log_error(self._logger, "the network has no layers")
                return None
            if not network.strongly_typed:
                faults.violations.append("the network is weakly typed")
            problem = _profile_problem(network.inputs, config._profiles) or faults.build_error
            if problem:
                log_error(self._logger, problem)
                return None
            if not self._work(config._monitor):
                return None
            known = config._cache is not None and bool(config._cache.data)
            if config._cache is not None:
                config._cache.data = f"timings of {version}".encode()
            faults.builds.append(
                {
                    "dla": config._dla if config._device == trt.DeviceType.DLA else None,
                    "flags": {flag.name for flag in config._flags},
                    "level": config._level,
                    "pools": {pool.name: limit for pool, limit in config._pools.items()},
                    "known_timings": known,
                    "verbosity": config._verbosity.name,
                }
            )
            profile = config._profiles[0].shapes if config._profiles else {}
            return IHostMemory(_plan(version, driver, config._dla, profile, network.model, network.files))

        def _work(self, monitor: Any) -> bool:
            steps = 3
            if monitor is None:
                return True
            monitor.phase_start("Building Engine", None, steps)
            going = True
            for step in range(steps):
                if step == 1 and faults.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                if step == 1 and faults.interrupt:
                    # Not os.kill: after the conformance suite has run other engines in this process, the
                    # delivery of a real signal was seen to crash it.
                    _thread.interrupt_main()
                inner = f"Layer {step}"
                monitor.phase_start(inner, "Building Engine", 1)
                going = going and _is_true(monitor.step_complete(inner, 0))
                monitor.phase_finish(inner)
                going = going and _is_true(monitor.step_complete("Building Engine", step))
                if not going:
                    break
            monitor.phase_finish("Building Engine")
            return going

    class Runtime:
        def __init__(self, logger: Any) -> None:
            need_logger(logger)
            need_cuda("a Runtime")
            self._logger, self._dla = logger, -1

        @property
        def DLA_core(self) -> int:
            return self._dla

        @DLA_core.setter
        def DLA_core(self, core: int) -> None:
            need(core, int, "core")
            self._dla = core

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            need(serialized_engine, (bytes, bytearray, memoryview), "serialized_engine")
            need_cuda("deserialize_cuda_engine")
            data = bytes(serialized_engine)
            if not data.startswith(_MAGIC):
                log_error(
                    self._logger, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
                )
                return None
            header, _, rest = data[len(_MAGIC) :].partition(b"\n")
            facts = json.loads(header)
            if (facts["version"], facts["capability"], facts["dla"]) != (
                version, list(driver.capability), self._dla,
            ):  # fmt: skip
                log_error(self._logger, "The engine plan file is not compatible with this version or device")
                return None
            return Engine(self, facts, rest)

    class Engine:
        def __init__(self, runtime: Runtime, facts: dict[str, Any], rest: bytes) -> None:
            self.runtime, self.profile = runtime, facts["profile"]
            self._folder = tempfile.TemporaryDirectory()
            at = 0
            for name, size in facts["files"].items():
                Path(self._folder.name, name).write_bytes(rest[at : at + size])
                at += size
            self.session = _open(Path(self._folder.name, "model.onnx"))
            ins, outs = self.session.get_inputs(), self.session.get_outputs()
            self.tensors = {t.name: (t, trt.TensorIOMode.INPUT) for t in ins}
            self.tensors |= {t.name: (t, trt.TensorIOMode.OUTPUT) for t in outs}

        def __del__(self) -> None:
            if driver.retained == 0:
                faults.violations.append("an engine outlives its CUDA context")
            if hasattr(self, "_folder"):
                self._folder.cleanup()

        @property
        def num_io_tensors(self) -> int:
            return len(self.tensors)

        @property
        def num_layers(self) -> int:
            return 2

        @property
        def device_memory_size_v2(self) -> int:
            return 4096

        def get_tensor_name(self, index: int) -> str:
            need(index, int, "index")
            return str(list(self.tensors)[index])

        def get_tensor_mode(self, name: str) -> Any:
            return self.tensors[name][1]

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[_NUMPY[self.tensors[name][0].type][0]]

        def get_tensor_location(self, name: str) -> Any:
            return trt.TensorLocation.HOST if name in faults.on_host else trt.TensorLocation.DEVICE

        def create_execution_context(self) -> Any:
            need_cuda("create_execution_context")
            if faults.no_context:
                log_error(self.runtime._logger, "out of memory")
                return None
            return ExecutionContext(self)

    class ExecutionContext:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
            need(name, str, "name")
            need(shape, (tuple, list), "shape")
            declared = self._engine.tensors[name][0].shape
            allowed = self._engine.profile.get(name)
            fits = len(shape) == len(declared) and all(
                isinstance(want, str) or want == have for want, have in zip(declared, shape, strict=True)
            )
            if allowed is not None:
                low, _, high = allowed
                fits = fits and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            if fits:
                self._shapes[name] = tuple(shape)
            else:
                log_error(self._engine.runtime._logger, f"{name}: shape is outside of the profile")
            return fits

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            sizes: dict[Any, int] = {}
            for tensor in self._engine.session.get_inputs():
                sizes |= zip(tensor.shape, self._shapes.get(tensor.name, ()), strict=False)
            declared = self._engine.tensors[name][0].shape
            return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in declared)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            need(name, str, "name")
            need(memory, int, "memory")
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            need(stream_handle, int, "stream_handle")
            need_cuda("execute_async_v3")
            for name, (tensor, _) in self._engine.tensors.items():
                shape = self.get_tensor_shape(name)
                size = int(np.prod(shape)) * np.dtype(_NUMPY[tensor.type][1]).itemsize
                if not driver.is_memory(self._addresses.get(name, 0), size):
                    faults.violations.append(f"{name} has no memory of {size} bytes")
                    return False
            driver.streams[stream_handle].append(self._compute)
            return True

        def _compute(self) -> None:
            session = self._engine.session
            values = session.run(None, {t.name: self._array(t) for t in session.get_inputs()})
            for tensor, value in zip(session.get_outputs(), values, strict=True):
                self._array(tensor)[...] = value + np.asarray(faults.offset, value.dtype)

        def _array(self, tensor: Any) -> Any:
            shape, dtype = self.get_tensor_shape(tensor.name), np.dtype(_NUMPY[tensor.type][1])
            size = int(np.prod(shape)) * dtype.itemsize
            memory = (ctypes.c_ubyte * size).from_address(self._addresses[tensor.name])
            return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    trt.OnnxParser, trt.Builder, trt.Runtime = OnnxParser, Builder, Runtime
    return trt


def _open(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _profile_problem(inputs: dict[str, list[Any]], profiles: list[Any]) -> str:
    """Return what the builder says of inputs with free dimensions and no range for them."""
    known = profiles[0].shapes if profiles else {}
    free = [name for name, shape in inputs.items() if any(not isinstance(n, int) for n in shape)]
    missing = [name for name in free if name not in known]
    return f"{missing[0]}: Network has dynamic inputs, but no optimization profile" if missing else ""


def _is_true(value: object) -> bool:
    assert isinstance(value, bool), "step_complete must return a bool"
    return value


def _plan(
    version: str,
    driver: FakeDriver,
    dla: int,
    profile: dict[str, Any],
    model: bytes,
    files: dict[str, bytes],
) -> bytes:
    every = {"model.onnx": model, **files}
    header = {
        "version": version,
        "capability": driver.capability,
        "dla": dla,
        "profile": profile,
        "files": {name: len(data) for name, data in every.items()},
    }
    return _MAGIC + json.dumps(header).encode() + b"\n" + b"".join(every.values())
