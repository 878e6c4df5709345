"""The one place where a package of an extra, imported when it is needed, turns out to be missing or broken.

with needs_extra("image preprocessing", "vision"):
    import cv2
"""

from __future__ import annotations

import re
from collections.abc import Collection
from types import TracebackType

from edgec.errors import BrokenExtraError, ExtraError, MissingExtraError

# What the dynamic linker, the allocator of the C library and Python say.
_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "cannot create shared object descriptor")
_NO_LIBRARY = re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file")


class _Needed:
    __slots__ = ("_extra", "_what")

    def __init__(self, what: str, extra: str) -> None:
        self._what, self._extra = what, extra

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ImportError | OSError | MemoryError) and not isinstance(error, ExtraError):
            raise import_failed(self._what, error, self._extra) from error


def needs_extra(what: str, extra: str) -> _Needed:
    """Return what translates the failure of the imports within it.

    Args:
        what: Needs them: ``"image preprocessing"``.
        extra: That brings them: ``"vision"``.

    Raises:
        MissingExtraError: A package is not installed.
        BrokenExtraError: It is, and does not load.
        ExtraError: Of another extra, as it came from within.
    """
    return _Needed(what, extra)


def import_failed(what: str, error: ImportError | OSError | MemoryError, extra: str) -> ExtraError:
    """Return the error for an import that failed; see `needs_extra`."""
    if isinstance(error, ExtraError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return MissingExtraError(what, error.name, extra)
    advice = import_advice(error, f"reinstall it:  pip install --force-reinstall 'edgec[{extra}]'")
    return BrokenExtraError(what, getattr(error, "name", None), extra, f"{import_cause(error)}; {advice}")


def failed_package(error: BaseException, packages: Collection[str]) -> str | None:
    """Return which of some packages was not imported; by the traceback where the error has no name.

    Args:
        error: What the import said.
        packages: That may be meant: ``{"onnx", "onnxruntime"}``.
    """
    name = getattr(error, "name", None)
    if name is not None:
        package = str(name).split(".")[0]
        return package if package in packages else None
    found, trace = None, error.__traceback__
    while trace is not None:  # the innermost counts
        package = str(trace.tb_frame.f_globals.get("__name__")).split(".")[0]
        found, trace = package if package in packages else found, trace.tb_next
    return found


def import_advice(error: BaseException, otherwise: str) -> str:
    """Return what to do about a package that is installed and does not load.

    Args:
        error: What its import said.
        otherwise: What to do where that is neither memory nor a library of the system.
    """
    text = str(error)
    if isinstance(error, MemoryError) or any(cause in text.lower() for cause in _NO_MEMORY):
        return "the process has too little memory for it: raise the limit (ulimit -v, its service, container)"
    missing = _NO_LIBRARY.search(text)
    if missing is None:
        return otherwise
    package = ", libgl1 on Debian and Ubuntu" if missing[1] == "libGL.so.1" else ""
    return f"install the system's library {missing[1]}{package}; or {otherwise}"


def import_cause(error: BaseException) -> str:
    """Return what an import said in one line; the kind of its error where it said nothing."""
    return " ".join(str(error).split()) or type(error).__name__
