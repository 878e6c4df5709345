"""Backends: one engine each, imported only when an artifact asks for it.

To add one: write ``backends/<name>.py`` with a class that satisfies `Backend`, name it in
``_BUILTIN``, and add the extra of the same name. The conformance suite in ``tests/conformance``
then runs against it. A backend that lives elsewhere registers under the entry point group
``edgec.backends``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError, InferenceError
from edgec.errors.extras import import_advice, import_cause

if TYPE_CHECKING:
    from pathlib import Path

    from edgec.runtime.backends._profiles import LayerTime

_BUILTIN = {
    "litert": "edgec.runtime.backends.litert:LiteRtBackend",
    "onnxruntime": "edgec.runtime.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "edgec.runtime.backends.openvino:OpenVinoBackend",
    "tensorrt": "edgec.runtime.backends.tensorrt:TensorRtBackend",
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load; what is None is left to the engine's own default.

    Attributes:
        threads: Threads that one inference may use.
        cache_dir: Where the engine may keep what it compiled, for the next start. OpenVINO does;
            TensorRT looks here for what ``edgec finish`` built; ONNX Runtime compiles nothing worth
            keeping.
        delegate: Shared library through which LiteRT reaches an NPU; only the application names one.
        providers: Execution providers that ONNX Runtime is to try before the CPU, with their options.
        content_digest: Of the artifact, for engines that are built of it on the device; set by `load`.
        recipe: How the device builds the engine, as the manifest has it; set by `load`.
    """

    threads: int | None = None
    cache_dir: Path | None = None
    delegate: Path | None = None
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    content_digest: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)


class Payload(Protocol):
    """Where a backend finds the members it loads; an `edgec.artifact.Artifact` is one."""

    def view(self, name: str) -> memoryview:
        """Return the bytes of a member, mapped, not copied; valid until the payload is closed."""
        ...


class Program(Protocol):
    """A model loaded by a backend, ready to run."""

    @property
    def engine_version(self) -> str:
        """Version of the engine, as it says itself."""
        ...

    @property
    def precision(self) -> str:
        """Effective precision: what `precisions` comes to, or the promise where it is empty."""
        ...

    @property
    def precisions(self) -> Mapping[str, int]:
        """How many layers compute in which precision, read back: ``{"int8": 20, "fp32": 1}``.

        Empty where the engine does not tell.
        """
        ...

    @property
    def placement(self) -> Mapping[str, int]:
        """How many nodes run where, read back from the engine: ``{"CPU": 12}``."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; `inputs` have been checked against the specs. Safe from several threads.

        Returns:
            New arrays that belong to the caller, in the order of the output specs.

        Raises:
            InferenceError: The engine failed; the program can be used again.
        """
        ...

    def close(self) -> None:
        """Free what the program holds; calling it again does nothing."""
        ...


class FunctionProgram:
    """A `Program` out of one function, for engines that have no more to say than where and in what they run.

    Attributes:
        engine_version: See `Program`.
        precision: Likewise.
        precisions: Likewise.
        placement: Likewise.
    """

    engine_version: str
    precision: str
    precisions: Mapping[str, int]
    placement: Mapping[str, int]

    def __init__(
        self,
        run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]],
        *,
        engine_version: str,
        layers: int,
        device: str = "CPU",
        precision: str = "fp32",
    ) -> None:
        """Wrap a function.

        Args:
            run: What `Program.run` is to do; closing lets go of it, and of the model with it.
            engine_version: Of the engine, as it says itself.
            layers: Of the model, all in one place and one precision.
            device: That place.
            precision: That precision, as the engine tells it.
        """
        self._run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None = run
        self.engine_version, self.precision = engine_version, precision
        self.precisions, self.placement = {precision: layers}, {device: layers}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `Program.run`."""
        run = self._run
        if run is None:
            raise InferenceError("the session is closed: load the artifact again")
        return run(inputs)

    def close(self) -> None:
        """Let go of the function; a call that still runs in another thread ends as it would have."""
        self._run = None


class Backend(Protocol):
    """An inference engine."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> Program:
        """Load the members that `spec` names.

        `payload` stays open for as long as the program lives.

        Raises:
            BackendUnavailableError: The engine cannot work on this device.
            InferenceError: The engine refused the model.
        """
        ...


@runtime_checkable
class Profiler(Protocol):
    """A backend whose engine tells how long each layer takes. Not every one does."""

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
        """Load as `Backend.load` does, with the profiler, and run: twice, and then `runs` times.

        Args:
            spec: See `Backend.load`, as for the next four.
            payload: Needed until this returns.
            inputs: Of the model.
            outputs: Of the model.
            options: How to load.
            feeds: What to run it on, in turn.
            runs: Inferences to take the medians of.

        Raises:
            InferenceError: The engine refused the model, or failed.
        """
        ...


def _registered() -> dict[str, str]:
    from importlib.metadata import entry_points  # here, because its import takes 15 ms

    return {found.name: found.value for found in entry_points(group="edgec.backends")}


def backend_names() -> list[str]:
    """Return the names of all backends, built in or registered; their engines need not be installed."""
    return sorted({*_BUILTIN, *_registered()})


def get_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        BackendUnavailableError: There is none, or its library is not installed or does not load.
    """
    reference = _BUILTIN.get(name)
    remedy = f"run  pip install 'edgec[{name}]'"
    if reference is None:
        reference = _registered().get(name)
        if reference is None:
            raise BackendUnavailableError(
                f"no backend {name!r}; there are: {', '.join(backend_names())}; another one comes with "
                "a package that registers it under the entry point group 'edgec.backends'"
            )
        remedy = "reinstall the package that registers the backend"
    module, _, attribute = reference.partition(":")
    try:
        backend: Backend = getattr(import_module(module), attribute)()
    except (ImportError, OSError, MemoryError) as e:  # a library that it needs is missing, or memory is short
        if isinstance(e, ModuleNotFoundError) and e.name is not None:
            raise BackendUnavailableError(
                f"backend {name!r} needs {e.name!r}, which is not installed: {remedy}"
            ) from e
        advice, cause = import_advice(e, remedy), import_cause(e)
        raise BackendUnavailableError(f"backend {name!r} cannot be imported ({cause}): {advice}") from e
    return backend
