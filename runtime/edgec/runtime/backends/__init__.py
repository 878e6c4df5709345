"""Backends: one engine each, imported only when an artifact asks for it.

To add one: write ``backends/<name>.py`` with a class that satisfies `Backend`, name it in
``_BUILTIN``, and add the extra of the same name. The conformance suite in ``tests/conformance``
then runs against it. A backend that lives elsewhere registers under the entry point group
``edgec.backends``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError

_BUILTIN = {
    "onnxruntime": "edgec.runtime.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "edgec.runtime.backends.openvino:OpenVinoBackend",
    "tensorrt": "edgec.runtime.backends.tensorrt:TensorRtBackend",
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load; what is None is left to the engine's own default.

    Attributes:
        threads: Threads that one inference may use.
        cache_dir: Where the engine may keep what it compiled, for the next start.
    """

    threads: int | None = None
    cache_dir: Path | None = None


class Payload(Protocol):
    """Where a backend finds the members it loads; an `edgec.artifact.Artifact` is one."""

    def view(self, name: str) -> memoryview:
        """Return the bytes of a member, mapped, not copied; valid until the payload is closed."""
        ...


class Program(Protocol):
    """A model loaded by a backend, ready to run.

    Attributes:
        engine_version: Version of the engine, as it says itself.
        precision: Effective precision, read back from the engine where it tells.
        placement: How many nodes run where, read back from the engine: ``{"CPU": 12}``.
    """

    engine_version: str
    precision: str
    placement: Mapping[str, int]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; `inputs` have been checked against the specs. Safe from several threads."""
        ...

    def close(self) -> None:
        """Free what the program holds; calling it again does nothing."""
        ...


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


def get_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        BackendUnavailableError: There is none, or its library is not installed.
    """
    reference = _BUILTIN.get(name)
    if reference is None:
        from importlib.metadata import entry_points

        found = entry_points(group="edgec.backends", name=name)
        if not found:
            raise BackendUnavailableError(f"no backend {name!r}; built in: {', '.join(_BUILTIN)}")
        reference = next(iter(found)).value
    module, _, attribute = reference.partition(":")
    try:
        backend: Backend = getattr(import_module(module), attribute)()
    except ModuleNotFoundError as e:
        raise BackendUnavailableError(
            f"backend {name!r} needs {e.name!r}, which is not installed: run  pip install 'edgec[{name}]'"
        ) from e
    return backend
