"""What importing `edgec.runtime` brings along: nothing heavy. (How long it takes: benchmarks/overhead.py.)"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "tensorrt", "onnx", "onnx_ir", "cv2",
    "tokenizers", "scipy", "torch",
)  # fmt: skip
# Of the standard library; each takes longer to import than all of edgec.runtime is worth.
SLOW = ("asyncio", "email", "http", "importlib.metadata", "multiprocessing", "subprocess", "unittest", "xml")


def modules_after(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_runtime_imports_no_engine() -> None:
    loaded = modules_after("import edgec.runtime")
    assert "edgec.runtime" in loaded
    assert loaded & set(HEAVY) == set()


def test_importing_the_runtime_imports_nothing_slow_that_numpy_does_not() -> None:
    added = modules_after("import edgec.runtime") - modules_after("import numpy")
    assert added & set(SLOW) == set()


@pytest.mark.parametrize(
    "module", ["edgec.runtime.benchmark", "edgec.runtime.testing", "edgec.runtime.results"]
)
def test_neither_do_its_other_modules(module: str) -> None:
    assert modules_after(f"import {module}") & set(HEAVY) == set()


def test_the_command_line_helps_without_any_engine() -> None:
    code = (
        "import contextlib, io; from edgec.cli import main_group; "
        "contextlib.redirect_stdout(io.StringIO()).__enter__(); "
        "main_group(['--help'], standalone_mode=False); sys_stdout = __import__('sys').__stdout__; "
        "__import__('sys').stdout = sys_stdout"
    )
    assert modules_after(code) & {*HEAVY, "numpy"} == set()
