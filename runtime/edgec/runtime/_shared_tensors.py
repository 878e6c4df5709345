"""Tensors in memory that two processes share."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import InputError

_ALIGNMENT = 64
_LEAST_BYTES = 4096
# Before each element of a tensor of texts: whether it is text or bytes, and how long.
_ELEMENT = struct.Struct("<?Q")


class Segment:
    """Memory without a name: it is gone with the last process that has it, however that ends.

    Attributes:
        fd: Its descriptor, for the other process.
    """

    fd: int

    def __init__(self, fd: int | None = None) -> None:
        """Make one, or take the other process's.

        Args:
            fd: Inherited descriptor; None for new memory.
        """
        self._map: mmap.mmap | None = None
        self.fd = -1
        if fd is None:
            fd = os.memfd_create("edgec-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # Who reads beyond the end of a file that has shrunk is ended.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.fd = fd

    def take(self, size: int, *, grow: bool) -> mmap.mmap:
        """Return at least `size` bytes, mapped.

        Raises:
            ValueError: There are fewer, and they are not to grow.
            OSError: There is no memory for it.
        """
        size = max(size, _LEAST_BYTES)
        if self._map is None or len(self._map) < size:
            has = os.fstat(self.fd).st_size
            if has < size:
                if not grow:
                    raise ValueError(f"expected {size} bytes of shared memory, there are {has}")
                # Half as much again, so that sizes that rise slowly are not mapped anew at each call.
                has = size + size // 2
                os.ftruncate(self.fd, has)
            self._map = mmap.mmap(self.fd, has)  # what views the one before keeps it until they are gone
        return self._map

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; views of it stay valid."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SharedTensors:
    """The inputs, or the outputs, of one call at a time, in a segment: one process writes, one reads."""

    def __init__(self, specs: Sequence[TensorSpec], segment: Segment) -> None:
        """Both processes have the same specs."""
        self.segment = segment
        self._specs = tuple(specs)
        self._format = struct.Struct(f"<{sum(len(spec.shape) + 1 for spec in specs)}q")
        self._sizes: tuple[int, ...] = ()
        self._views: list[NDArray[Any]] = []

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """Copy arrays, one per spec, into the segment; return what the reader has to be told.

        Raises:
            InputError: An element of a tensor of texts is neither text nor bytes.
            OSError: There is no memory for it.
        """
        sizes: list[int] = []
        values: list[NDArray[Any]] = []
        for spec in self._specs:
            array = arrays[spec.name]
            sizes += array.shape
            if spec.dtype == "object":
                array = _encoded(spec, array)
            sizes.append(array.nbytes)
            values.append(array)
        for view, array in zip(self._arranged(tuple(sizes), grow=True), values, strict=True):
            np.copyto(view, array)
        return self._format.pack(*sizes)

    def views(self, told: bytes) -> dict[str, NDArray[Any]]:
        """Return what was written, where it is: valid until the next call.

        Raises:
            ValueError: The message is not what `write` gives for these specs.
        """
        try:
            sizes = self._format.unpack(told)
        except struct.error as e:
            raise ValueError(f"expected {self._format.size} bytes of sizes, got {len(told)}") from e
        arrays, at = {}, 0
        for spec, view in zip(self._specs, self._arranged(sizes, grow=False), strict=True):
            shape = sizes[at : at + len(spec.shape)]
            at += len(spec.shape) + 1
            arrays[spec.name] = _decoded(view, shape) if spec.dtype == "object" else view
        return arrays

    def read(self, told: bytes) -> dict[str, NDArray[Any]]:
        """Return new arrays of what was written.

        Raises:
            ValueError: As of `views`.
        """
        return {name: view.copy() for name, view in self.views(told).items()}

    def close(self) -> None:
        """Let go of the segment."""
        self._views = []
        self.segment.close()

    def _arranged(self, sizes: tuple[int, ...], *, grow: bool) -> list[NDArray[Any]]:
        """Return views for tensors of these sizes, made anew only where those differ from the last."""
        if sizes != self._sizes:
            places, end = self._places(sizes)
            memory = self.segment.take(end, grow=grow)
            self._views = [
                np.ndarray(shape, dtype, buffer=memory, offset=offset) for shape, dtype, offset in places
            ]
            self._sizes = sizes
        return self._views

    def _places(self, sizes: tuple[int, ...]) -> tuple[list[tuple[tuple[int, ...], np.dtype[Any], int]], int]:
        places: list[tuple[tuple[int, ...], np.dtype[Any], int]] = []
        at = end = 0
        for spec in self._specs:
            shape, count = sizes[at : at + len(spec.shape)], sizes[at + len(spec.shape)]
            at += len(spec.shape) + 1
            dtype = np.dtype(np.uint8 if spec.dtype == "object" else spec.dtype)
            if min((*shape, count)) < 0 or (
                spec.dtype != "object" and count != math.prod(shape) * dtype.itemsize
            ):
                raise ValueError(f"{spec} cannot have the shape {list(shape)} and {count} bytes")
            places.append(((count,) if spec.dtype == "object" else shape, dtype, end))
            end += -(-count // _ALIGNMENT) * _ALIGNMENT
        return places, end


def _encoded(spec: TensorSpec, array: NDArray[Any]) -> NDArray[np.uint8]:
    parts: list[bytes] = []
    for element in array.flat:
        if not isinstance(element, (str, bytes)):
            raise InputError(f"expected texts for {spec}, got {type(element).__name__}")
        data = element.encode("utf-8", "surrogatepass") if isinstance(element, str) else element
        parts += (_ELEMENT.pack(isinstance(element, str), len(data)), data)
    return np.frombuffer(b"".join(parts), np.uint8)


def _decoded(view: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    data, at = view.tobytes(), 0
    array = np.empty(math.prod(shape), object)
    for i in range(len(array)):
        if at + _ELEMENT.size > len(data):
            raise ValueError(f"expected {len(array)} texts, got {i}")
        is_text, length = _ELEMENT.unpack_from(data, at)
        at += _ELEMENT.size + length
        element = data[at - length : at]
        array[i] = element.decode("utf-8", "surrogatepass") if is_text else element
    return array.reshape(shape)
