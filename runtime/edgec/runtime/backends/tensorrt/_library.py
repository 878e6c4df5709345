"""TensorRT's library, opened only where a CUDA driver works: without one it crashes the process."""

from __future__ import annotations

from importlib import import_module
from logging import getLogger
from platform import machine, system
from threading import Lock
from typing import Any

from edgec.artifact import EngineSpec
from edgec.errors import BackendUnavailableError
from edgec.runtime.backends._cuda import CudaDevice
from edgec.runtime.backends._versions import is_in_line
from edgec.runtime.backends.tensorrt._cache import EngineKey
from edgec.runtime.backends.tensorrt._recipe import Recipe

_KEPT = 20


class TensorRt:
    """TensorRT and the GPU it works on.

    Attributes:
        api: The module ``tensorrt``.
        version: ``10.3.0``.
        major: ``10``.
        device: The GPU.
        log: What TensorRT says goes here; as an argument of it, ``log.sink``.
    """

    def __init__(self, spec: EngineSpec) -> None:
        """Open both.

        Raises:
            BackendUnavailableError: There is no GPU that works, no TensorRT, or not of the line of `spec`.
        """
        self.device = CudaDevice()
        try:
            self.api: Any = _import()
            self.version = str(self.api.__version__)
            self.major = int(self.version.partition(".")[0])
            if not is_in_line(self.version, spec.version):
                raise BackendUnavailableError(
                    f"the artifact needs TensorRT {spec.version}, this is {self.version}: "
                    "compile for a target of this JetPack (edgec targets)"
                )
            self.log = Log(self.api)
        except BaseException:
            self.device.close()
            raise

    def key(self, content_digest: str, recipe: Recipe, dla: int | None) -> EngineKey:
        """Return what an engine that is built here and now is valid for."""
        return EngineKey(
            artifact=content_digest,
            tensorrt=self.version,
            compute_capability=self.device.compute_capability,
            cuda=self.device.cuda_version,
            system=f"{system()}-{machine()}",
            build=recipe.to_key(dla),
        )

    def close(self) -> None:
        """Leave the GPU; calling it again does nothing."""
        self.device.close()


class Log:
    """Keeps the last errors that TensorRT told; the rest goes to the logger ``edgec.runtime.tensorrt``.

    Attributes:
        sink: An ``ILogger``; it must outlive all objects of TensorRT that it is given to.
    """

    def __init__(self, api: Any) -> None:
        self._errors: list[str] = []
        self._lock = Lock()  # TensorRT calls from threads of its own
        log = self

        class _Sink(api.ILogger):  # type: ignore[misc]  # the module is known at run time only
            def __init__(self) -> None:
                api.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                log._take(severity, msg)

        self.sink: Any = _Sink()
        self._errors_are = (api.ILogger.Severity.INTERNAL_ERROR, api.ILogger.Severity.ERROR)
        self._warning = api.ILogger.Severity.WARNING

    def clear(self) -> None:
        """Forget the errors."""
        with self._lock:
            self._errors.clear()

    def errors(self) -> str:
        """Return what went wrong since `clear`, in one line."""
        with self._lock:
            told = list(dict.fromkeys(self._errors))
        return "; ".join(told) or "TensorRT does not say why"

    def _take(self, severity: Any, message: str) -> None:
        line = " ".join(str(message).split())
        if severity in self._errors_are:
            with self._lock:
                self._errors.append(line)
                del self._errors[:-_KEPT]
        elif severity == self._warning:
            getLogger("edgec.runtime.tensorrt").info("%s", line)
        else:
            getLogger("edgec.runtime.tensorrt").debug("%s", line)


def _import() -> Any:
    try:
        return import_module("tensorrt")
    except ImportError as e:  # not there, not for this Python, or a library of it is missing
        raise BackendUnavailableError(
            f"TensorRT is not installed for this Python ({e}): it comes with JetPack, run  "
            "apt install python3-libnvinfer, and make virtual environments with --system-site-packages"
        ) from e
