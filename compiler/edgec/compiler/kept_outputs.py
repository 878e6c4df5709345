"""Outputs of a program, computed once for each input by whichever process needs them first.

Every candidate is held against the same source on the same samples, in several worker processes. A source
that runs as its author wrote it, without optimizations, often takes longer than the candidate itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import atomic_write
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.errors import OutputError

Arrays = Mapping[str, NDArray[Any]]
_WORTH_S = 2e-3  # a program that is faster runs again: reading a file takes about as long
_MOST_BYTES = 1 << 20  # of one sample's outputs, so that a thousand of them stay below 1 GiB


class KeptProgram:
    """A program whose outputs are kept in files, where that is worth it; it opens when it is first needed.

    Args:
        open_program: Opens what is run.
        directory: Where outputs are kept, made if need be; all who share it run the same program. None to
            run it every time.
    """

    def __init__(self, open_program: Callable[[], ReferenceProgram], directory: Path | None) -> None:
        self._open = open_program
        self._directory = directory
        self._program: ReferenceProgram | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for some inputs.

        One process computes at a time: the others wait, and find what it computed.

        Raises:
            UnsupportedModelError: The program cannot be opened, or fails on these inputs.
        """
        if self._directory is None:
            return self._running().run(inputs)
        path = self._directory / f"{_digest(inputs)}.npz"
        with (self._directory / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _read(path)
            if found is not None:
                return found
            program = self._running()
            begun = time.monotonic()
            outputs = program.run(inputs)
            if time.monotonic() - begun < _WORTH_S:
                self._directory = None
            else:
                _write(path, outputs)
            return outputs

    def close(self) -> None:
        """Free the program; what is kept stays. Calling it again does nothing."""
        if self._program is not None:
            self._program.close()
            self._program = None

    def __enter__(self) -> KeptProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> ReferenceProgram:
        if self._program is None:
            self._program = self._open()
        return self._program


def _digest(inputs: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        # The bytes of objects, which strings are, would be their addresses.
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names, *values = arrays.values()
            return dict(zip(names.tolist(), values, strict=True))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):  # not there, or of no use
        return None


def _write(path: Path, outputs: Arrays) -> None:
    numbers = all(a.dtype.kind in "biufc" for a in outputs.values())
    if not numbers or sum(a.nbytes for a in outputs.values()) > _MOST_BYTES:
        return
    try:
        with atomic_write(path, durable=False) as file:
            np.savez(file, np.array(list(outputs)), *outputs.values(), allow_pickle=False)
    except OutputError:
        return  # no room: it will be computed again
