"""TensorRT: asked for on any machine, the process lives on and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from edgec.errors import BackendUnavailableError, InferenceError
from edgec.runtime.backends import LoadOptions, _cuda, get_backend
from edgec.runtime.backends._cuda import find_cuda
from edgec.runtime.testing import MemoryPayload, onnxruntime_spec


def test_it_is_refused_before_its_library_is_touched() -> None:
    with pytest.raises(BackendUnavailableError, match=r"CUDA driver") as refusal:
        get_backend("tensorrt").load(onnxruntime_spec(), MemoryPayload({}), (), (), LoadOptions())
    assert "tensorrt" not in sys.modules
    assert "\n" not in str(refusal.value)


def test_no_driver_is_said() -> None:
    cuda = find_cuda("libno-such-driver.so.1")
    assert (cuda.devices, cuda.problem) == (
        0,
        "libno-such-driver.so.1, the driver's library, is not installed",
    )


DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return ASKED; }
"""


@pytest.mark.parametrize(
    ("init", "count", "asked", "devices", "problem"),
    [
        (0, 2, 0, 2, ""),
        (0, 0, 0, 0, "the driver works, but finds no GPU"),
        (35, 0, 0, 0, "the driver does not start (cuInit gives error 35)"),
        (0, 1, 3, 0, "the driver does not count its devices (cuDeviceGetCount gives error 3)"),
    ],
)
def test_what_a_driver_says_is_told(
    tmp_path: Path, init: int, count: int, asked: int, devices: int, problem: str
) -> None:
    compiler = which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a driver with")
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    defines = [f"-DINIT={init}", f"-DCOUNT={count}", f"-DASKED={asked}"]
    subprocess.run([compiler, "-shared", "-fPIC", *defines, source, "-o", library], check=True)
    cuda = find_cuda(str(library))
    assert (cuda.devices, cuda.problem) == (devices, problem)


WORKING_DRIVER = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef unsigned long long ptr;
static void *context = (void *)0x123456789abcull;
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 11 : attribute == 76 ? 0 : -1; return device; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Thor", size); return device; }
int cuDevicePrimaryCtxRetain(void **out, int device) { *out = context; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuCtxSetCurrent(void *c) { return c == context ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 1ull << 36; *total = 1ull << 37; return 0; }
int cuMemAlloc_v2(ptr *address, size_t size) {
    if (size > 1 << 20) return 2;
    *address = (ptr)(uintptr_t)malloc(size); return 0; }
int cuMemFree_v2(ptr address) { free((void *)(uintptr_t)address); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0xfedcba987654ull; return flags; }
static int known(void *stream) { return stream == (void *)0xfedcba987654ull ? 0 : 400; }
int cuStreamDestroy_v2(void *stream) { return known(stream); }
int cuStreamSynchronize(void *stream) { return known(stream); }
int cuMemcpyHtoDAsync_v2(ptr to, const void *from, size_t size, void *stream) {
    memcpy((void *)(uintptr_t)to, from, size); return known(stream); }
int cuMemcpyDtoHAsync_v2(void *to, ptr from, size_t size, void *stream) {
    memcpy(to, (void *)(uintptr_t)from, size); return known(stream); }
"""


def test_a_device_is_used_through_the_drivers_own_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a driver with")
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(WORKING_DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    opened = _cuda.open_library(str(library))
    monkeypatch.setattr(_cuda, "open_library", lambda name: opened)
    device = _cuda.CudaDevice()
    assert (device.name, device.compute_capability, device.cuda_version) == ("Thor", "11.0", "13.2")
    assert device.free_memory() == 1 << 36
    stream = device.open_stream()
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    address = device.allocate(array.nbytes)
    device.upload(address, array, stream)
    back = device.download(address, (3, 4), "float32", stream)
    device.synchronize(stream)
    np.testing.assert_array_equal(back, array)
    with pytest.raises(InferenceError, match=r"cuMemAlloc_v2 gives error 2 \(out of memory\)"):
        device.allocate(1 << 21)
    device.free(address)
    device.close_stream(stream)
    with pytest.raises(InferenceError, match="cuStreamSynchronize gives error 400"):
        device.synchronize(1)
    device.close()
    device.close()
    with pytest.raises(BackendUnavailableError, match="no GPU 1, only 1"):
        _cuda.CudaDevice(1)
