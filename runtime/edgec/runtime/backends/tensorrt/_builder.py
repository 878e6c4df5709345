"""Builds an engine from the typed ONNX model of an artifact, as its recipe says.

One path serves TensorRT 10 and 11: a network that is strongly typed, which is a flag of its creation in
10 and the only kind in 11, where the flags that allowed other precisions are gone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

from edgec.errors import BackendUnavailableError, EdgecError, InferenceError
from edgec.runtime.backends.tensorrt._library import TensorRt
from edgec.runtime.backends.tensorrt._recipe import Recipe

# A step of the build, how many of its parts are done, and of how many (0 where that is not known).
Progress = Callable[[str, int, int], None]

_MIB = 1 << 20
_SHOWN_ERRORS = 10


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """What a build made.

    Attributes:
        plan: As TensorRT serialized it.
        timings: What it measured of kernels, serialized; empty where it does not tell.
        workspace_bytes: What the builder was allowed.
        notes: What people should know of it.
    """

    plan: bytes
    timings: bytes
    workspace_bytes: int
    notes: tuple[str, ...]


def build_engine(
    library: TensorRt,
    model: Path,
    recipe: Recipe,
    *,
    dla: int | None,
    timings: bytes,
    progress: Progress,
) -> BuiltEngine:
    """Build an engine.

    Args:
        library: TensorRT.
        model: The ONNX file, its external data beside it.
        recipe: How.
        dla: Core to build for; None for the GPU.
        timings: Of an earlier build; empty for none.
        progress: Called as the build goes on, from threads of TensorRT too.

    Raises:
        InferenceError: TensorRT refuses the model, or fails.
        BackendUnavailableError: There is no such DLA core here.
        KeyboardInterrupt: The build was interrupted, and has ended.
    """
    try:
        return _build(library, model, recipe, dla, timings, progress)
    except (EdgecError, KeyboardInterrupt) as e:
        # Without a traceback, whose frames would keep TensorRT's objects beyond the end of `library`.
        raise e.with_traceback(None) from None


def _build(
    library: TensorRt, model: Path, recipe: Recipe, dla: int | None, timings: bytes, progress: Progress
) -> BuiltEngine:
    trt, log = library.api, library.log
    log.clear()
    builder = trt.Builder(log.sink)
    flags = 0
    if library.major < 11:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    _parse(library, network, model, recipe if dla is not None else None, progress)
    config = builder.create_builder_config()
    workspace, notes = _workspace(library, recipe)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.builder_optimization_level = recipe.optimization_level
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, recipe.verbosity)
    for name in recipe.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    _set_profile(library, builder, config, recipe)
    if dla is not None:
        _set_dla(library, builder, config, recipe, dla)
    notes += _set_timings(config, timings)
    watch = _Watch(progress)
    monitor = _monitor(trt, watch)
    if monitor is not None:
        config.progress_monitor = monitor
    progress("building the engine", 0, 0)
    with _interrupts_end(watch):
        plan = builder.build_serialized_network(network, config)
    if watch.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise InferenceError(f"TensorRT {library.version} cannot build the engine: {log.errors()}")
    return BuiltEngine(
        plan=bytes(plan),
        timings=_timings(config),
        workspace_bytes=workspace,
        notes=tuple(notes),
    )


def _parse(
    library: TensorRt, network: Any, model: Path, dla_recipe: Recipe | None, progress: Progress
) -> None:
    trt = library.api
    parser = trt.OnnxParser(network, library.log.sink)
    for name in dla_recipe.parser_flags if dla_recipe is not None else ():
        parser.set_flag(getattr(trt.OnnxParserFlag, name))
    progress("reading the model", 0, 0)
    # From a file, so that the parser finds the external data beside it.
    if parser.parse_from_file(str(model)):
        return
    errors = [_error(parser.get_error(i)) for i in range(parser.num_errors)]
    more = f"; and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
    told = "; ".join(errors[:_SHOWN_ERRORS]) or library.log.errors()
    raise InferenceError(f"TensorRT {library.version} cannot read the model: {told}{more}")


def _error(error: Any) -> str:
    where = error.node_name() or f"node {error.node()}"
    operator = error.node_operator()
    return " ".join(f"{where}{f' ({operator})' if operator else ''}: {error.desc()}".split())


def _workspace(library: TensorRt, recipe: Recipe) -> tuple[int, list[str]]:
    """Return what the builder may use: what the recipe says, if that much is free."""
    wanted, free = recipe.workspace_mib * _MIB, library.device.free_memory()
    if wanted <= free:
        return wanted, []
    return free, [
        f"the builder had {free // _MIB} MiB, all that is free, and not the {recipe.workspace_mib} MiB of "
        "the recipe: with more it might have found faster kernels"
    ]


def _set_profile(library: TensorRt, builder: Any, config: Any, recipe: Recipe) -> None:
    if not recipe.profile:
        return
    profile = builder.create_optimization_profile()
    for name, shapes in recipe.profile.items():
        profile.set_shape(name, shapes.smallest, shapes.usual, shapes.largest)
    if config.add_optimization_profile(profile) < 0:
        raise InferenceError(
            f"TensorRT {library.version} refuses the recipe's range of shapes: {library.log.errors()}"
        )


def _set_dla(library: TensorRt, builder: Any, config: Any, recipe: Recipe, core: int) -> None:
    trt = library.api
    if core >= builder.num_DLA_cores:
        raise BackendUnavailableError(
            f"there is no DLA core {core} here: TensorRT {library.version} finds {builder.num_DLA_cores}"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    if recipe.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_timings(config: Any, timings: bytes) -> list[str]:
    """Give the builder what was measured before, or an empty cache to fill."""
    cache = config.create_timing_cache(timings)
    if timings and (cache is None or not config.set_timing_cache(cache, ignore_mismatch=False)):
        empty = config.create_timing_cache(b"")
        if empty is not None:
            config.set_timing_cache(empty, ignore_mismatch=False)
        return ["the timings of earlier builds do not fit, and were measured anew"]
    if not timings and cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)
    return []


def _timings(config: Any) -> bytes:
    cache = config.get_timing_cache()
    serialized = None if cache is None else cache.serialize()
    return b"" if serialized is None else bytes(serialized)


class _Watch:
    """Turns TensorRT's phases into progress, and an interrupt into the end of the build.

    Only the outermost phases count: inner ones come and go by the hundred.
    """

    def __init__(self, progress: Progress) -> None:
        self.interrupted = False
        self._progress = progress
        self._totals: dict[str, int] = {}
        self._lock = Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        if parent is None:
            with self._lock:
                self._totals[phase] = steps
            self._progress(phase, 0, steps)

    def step(self, phase: str, step: int) -> bool:
        total = self._totals.get(phase)
        if total is not None:
            self._progress(phase, min(step + 1, total), total)
        return not self.interrupted

    def finish(self, phase: str) -> None:
        with self._lock:
            self._totals.pop(phase, None)


@contextmanager
def _interrupts_end(watch: _Watch) -> Iterator[None]:
    """Let Ctrl-C end the build at its next step: an exception in a callback would end the process."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield
        return

    def interrupt(*_: object) -> None:
        watch.interrupted = True

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _monitor(trt: Any, watch: _Watch) -> Any:
    """Return what TensorRT tells its progress to; None where its API has no such thing."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return _Monitor()
