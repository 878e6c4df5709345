"""TensorRT: asked for on any machine, the process lives on and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from edgec.errors import BackendUnavailableError
from edgec.runtime.backends import LoadOptions, get_backend
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
