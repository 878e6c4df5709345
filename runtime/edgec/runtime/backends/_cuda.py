"""Whether there is a CUDA driver that works, asked without any library but the driver's own."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass(frozen=True)
class Cuda:
    """What the CUDA driver says.

    Attributes:
        devices: How many GPUs it can use.
        problem: Why it can use none; empty where it can.
    """

    devices: int
    problem: str


def find_cuda(library: str = "libcuda.so.1") -> Cuda:
    """Ask the CUDA driver for its devices.

    Args:
        library: The driver's own, as the dynamic linker finds it.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Cuda(0, f"{library}, the driver's library, is not installed")
    # Numbers of errors are those of CUresult in cuda.h: 100 is CUDA_ERROR_NO_DEVICE.
    if (error := driver.cuInit(0)) != 0:
        return Cuda(0, f"the driver does not start (cuInit gives error {error})")
    count = ctypes.c_int()
    if (error := driver.cuDeviceGetCount(ctypes.byref(count))) != 0:
        return Cuda(0, f"the driver does not count its devices (cuDeviceGetCount gives error {error})")
    return Cuda(count.value, "" if count.value else "the driver works, but finds no GPU")
