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
from contextlib import ExitStack
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
_MOST_BYTES = 1 << 20  # of one sample's outputs
_MOST_KEPT_BYTES = 1 << 30  # of all programs of a build together, but for one sample of each
_FILE_BYTES = 4 << 10  # that a file takes beside its content
_LOCK, _SIZE = "lock", "bytes"  # a directory's, and how many bytes it holds


class KeptProgram:
    """A program whose outputs are kept in files, where that is worth it; it opens when it is first needed.

    What cannot be kept, because the disk is full or the directory cannot be used, is computed again.

    Args:
        open_program: Opens what is run.
        directory: Where outputs are kept, made if need be; all who share it run the same program, and
            those beside it share 1 GiB with it. None to run it every time.
    """

    def __init__(self, open_program: Callable[[], ReferenceProgram], directory: Path | None) -> None:
        self._open = open_program
        self._directory = directory
        self._program: ReferenceProgram | None = None
        self.took_s = 0.0
        """How long it took to compute what `run` returned last, in seconds, whoever did."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for some inputs.

        One process computes at a time: the others wait, and find what it computed.

        Raises:
            UnsupportedModelError: The program cannot be opened, or fails on these inputs.
        """
        with ExitStack() as held:
            directory = self._directory = _locked(self._directory, held)
            if directory is None:
                return self._computed(inputs)
            path = directory / f"{_digest(inputs)}.npz"
            found = _read(path)
            if found is not None:
                outputs, self.took_s = found
                return outputs
            outputs = self._computed(inputs)
            if self.took_s < _WORTH_S:
                self._directory = None
            else:
                _write(path, outputs, self.took_s)
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

    def _computed(self, inputs: Arrays) -> Arrays:
        if self._program is None:
            self._program = self._open()
            self._program.run(inputs)  # the first time takes longer
        begun = time.monotonic()
        outputs = self._program.run(inputs)
        self.took_s = time.monotonic() - begun
        return outputs


def _locked(directory: Path | None, held: ExitStack) -> Path | None:
    """Return a directory that no other process has until `held` ends; None where it cannot be used."""
    if directory is None:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context((directory / _LOCK).open("wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return None
    return directory


def _digest(inputs: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        # The bytes of objects, which strings are, would be their addresses.
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[Arrays, float] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names, took_s, *values = arrays.values()
            return dict(zip(names.tolist(), values, strict=True)), float(took_s)
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile):  # not there, or of no use
        return None


def _write(path: Path, outputs: Arrays, took_s: float) -> None:
    """Keep outputs where there is room for them; else they will be computed again."""
    size = _FILE_BYTES + sum(a.nbytes for a in outputs.values())
    if size > _MOST_BYTES or any(a.dtype.kind not in "biufc" for a in outputs.values()):
        return
    directory = path.parent
    try:
        if size + sum(map(_size, directory.parent.iterdir())) > _MOST_KEPT_BYTES:
            return
        # First, so that what is kept is counted in any case.
        (directory / _SIZE).write_text(str(_size(directory) + size), encoding="ascii")
        with atomic_write(path, durable=False) as file:
            np.savez(file, np.array(list(outputs)), np.array(took_s), *outputs.values(), allow_pickle=False)
    except (OSError, OutputError):
        return


def _size(directory: Path) -> int:
    try:
        return int((directory / _SIZE).read_text("ascii"))
    except (OSError, ValueError):  # nothing is kept there, or another process is about to write it
        return 0
