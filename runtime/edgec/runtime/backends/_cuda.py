"""CUDA through the driver's own library, and nothing else.

``libcuda.so.1`` comes with the driver, so it is there wherever a GPU can work at all. What else speaks
CUDA may not be: JetPack has no ``cuda-python``, and the name of ``libcudart`` changes with every major
version of CUDA. Memory lies in the device's primary context, which is the one that TensorRT works in.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import BackendUnavailableError, InferenceError

DRIVER = "libcuda.so.1"
# Numbers of CUdevice_attribute in cuda.h: COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76
_MAX_NAME = 256


@dataclass(frozen=True)
class Cuda:
    """What the CUDA driver says.

    Attributes:
        devices: How many GPUs it can use.
        problem: Why it can use none; empty where it can.
    """

    devices: int
    problem: str


def open_library(name: str) -> Any:
    """Load a shared library, as the dynamic linker finds it.

    Raises:
        OSError: It is not installed.
    """
    return ctypes.CDLL(name)


def find_cuda(library: str = DRIVER) -> Cuda:
    """Ask the CUDA driver for its devices.

    Args:
        library: The driver's own, as the dynamic linker finds it.
    """
    try:
        driver = open_library(library)
    except OSError:
        return Cuda(0, f"{library}, the driver's library, is not installed")
    # Numbers of errors are those of CUresult in cuda.h: 100 is CUDA_ERROR_NO_DEVICE.
    if (error := driver.cuInit(0)) != 0:
        return Cuda(0, f"the driver does not start (cuInit gives error {error})")
    count = ctypes.c_int()
    if (error := driver.cuDeviceGetCount(ctypes.byref(count))) != 0:
        return Cuda(0, f"the driver does not count its devices (cuDeviceGetCount gives error {error})")
    return Cuda(count.value, "" if count.value else "the driver works, but finds no GPU")


class CudaDevice:
    """A GPU: its memory, and streams of work on it. Close it when nothing of it is used any more.

    Addresses and streams are plain integers. A thread must call `use` before anything else.

    Attributes:
        name: As the driver calls it: ``Orin``.
        compute_capability: ``8.7``.
        cuda_version: Newest CUDA that the driver can run: ``12.6``.
    """

    name: str
    compute_capability: str
    cuda_version: str

    def __init__(self, ordinal: int = 0) -> None:
        """Take the GPU of that number.

        Raises:
            BackendUnavailableError: There is no working driver, or no such GPU.
        """
        cuda = find_cuda()
        if cuda.devices <= ordinal:
            problem = cuda.problem or f"there is no GPU {ordinal}, only {cuda.devices}"
            raise BackendUnavailableError(
                f"TensorRT needs an NVIDIA GPU with a working CUDA driver: {problem}"
            )
        self._driver = open_library(DRIVER)
        self._device = self._int("cuDeviceGet", ordinal)
        version = self._int("cuDriverGetVersion")
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        major = self._int("cuDeviceGetAttribute", ctypes.c_int(_MAJOR), self._device)
        minor = self._int("cuDeviceGetAttribute", ctypes.c_int(_MINOR), self._device)
        self.compute_capability = f"{major}.{minor}"
        name = ctypes.create_string_buffer(_MAX_NAME)
        self._call("cuDeviceGetName", name, ctypes.c_int(_MAX_NAME), self._device)
        self.name = name.value.decode(errors="replace")
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._context: ctypes.c_void_p | None = context
        self.use()

    def use(self) -> None:
        """Make the GPU's context that of the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def free_memory(self) -> int:
        """Return how many bytes are free; on a Jetson, where CPU and GPU share memory, of the system's."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory on the GPU, of at least one byte."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, nbytes)))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def open_stream(self) -> int:
        """Return a new stream."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        return stream.value or 0

    def close_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy an array, contiguous in C order, to the GPU; it must live until `synchronize`."""
        if array.nbytes:
            self._call(
                "cuMemcpyHtoDAsync_v2",
                ctypes.c_uint64(address),
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_size_t(array.nbytes),
                ctypes.c_void_p(stream),
            )

    def download(self, address: int, shape: tuple[int, ...], dtype: str, stream: int) -> NDArray[Any]:
        """Return a new array that is filled from the GPU by the time of `synchronize`."""
        array = np.empty(shape, dtype)
        if array.nbytes:
            self._call(
                "cuMemcpyDtoHAsync_v2",
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_uint64(address),
                ctypes.c_size_t(array.nbytes),
                ctypes.c_void_p(stream),
            )
        return array

    def synchronize(self, stream: int) -> None:
        """Wait for the work of a stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def close(self) -> None:
        """Give the context back; calling it again does nothing."""
        context, self._context = self._context, None
        if context is not None:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _int(self, function: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value), *arguments)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        """Call the driver.

        Raises:
            InferenceError: It gives an error.
        """
        error = getattr(self._driver, function)(*arguments)
        if error != 0:
            meaning = " (out of memory)" if error == 2 else ""
            raise InferenceError(f"the CUDA driver failed: {function} gives error {error}{meaning}")
