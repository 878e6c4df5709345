"""Model in, artifact out.

>>> from edgec.compiler import compile_model                                  # doctest: +SKIP
>>> compile_model("model.onnx", ["cpu"], "build", calibration="samples.npz")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgec.errors import ExtraError
from edgec.errors.extras import failed_package, import_failed

if TYPE_CHECKING:
    from edgec.compiler._compile import BuildResult, compile_model
    from edgec.compiler._rebuild import Rebuilt, rebuild
    from edgec.compiler.model import SourceModel, load_model
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.source import SourceProgram, open_source

__all__ = [
    "BuildResult",
    "CompileOptions",
    "Rebuilt",
    "SourceModel",
    "SourceProgram",
    "compile_model",
    "load_model",
    "open_source",
    "rebuild",
]

_HOMES = {
    "BuildResult": "_compile",
    "CompileOptions": "options",
    "Rebuilt": "_rebuild",
    "SourceModel": "model",
    "SourceProgram": "source",
    "compile_model": "_compile",
    "load_model": "model",
    "open_source": "source",
    "rebuild": "_rebuild",
}
_EXTRA_MODULES = ("onnx", "onnx_ir", "onnxslim", "onnxruntime", "jinja2", "google", "ml_dtypes")


def __getattr__(name: str) -> Any:
    # Lazily, because onnx and onnxruntime take half a second to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"edgec.compiler.{_HOMES[name]}"), name)
    except (ImportError, OSError, MemoryError) as e:
        if isinstance(e, ExtraError) or failed_package(e, _EXTRA_MODULES) is None:
            raise
        raise import_failed("edgec.compiler", e, "compiler") from e
