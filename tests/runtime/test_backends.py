"""The table of backends, and backends that come with other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgec.errors import BackendUnavailableError, InferenceError
from edgec.runtime.backends import FunctionProgram, Program, backend_names, get_backend
from edgec.runtime.backends._precision import effective_precision


def test_the_built_in_backends_are_listed() -> None:
    assert {"onnxruntime", "openvino", "tensorrt"} <= set(backend_names())


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(BackendUnavailableError, match=r"no backend 'os'; there are: .*onnxruntime"):
        get_backend("os")


def run(code: str, path: Path) -> str:
    """Run code in a process that finds packages of `path` too."""
    prelude = f"import sys; sys.path[:0] = {[str(path), *sys.path]!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_engine_that_is_not_installed_is_told_with_the_command(tmp_path: Path) -> None:
    code = """
import importlib.abc
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from edgec.errors import BackendUnavailableError
from edgec.runtime.backends import get_backend
try:
    get_backend("onnxruntime")
except BackendUnavailableError as e:
    print(e)
"""
    said = run(code, tmp_path)
    assert "needs 'onnxruntime', which is not installed" in said
    assert "pip install 'edgec[onnxruntime]'" in said


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("ImportError('libfoo.so.1: cannot open shared object file')", "libfoo.so.1: cannot open shared"),
        ("OSError('libfoo.so.1: cannot open shared object file')", "libfoo.so.1: cannot open shared"),
        ("MemoryError", "(MemoryError): the process has too little memory"),
    ],
)
def test_an_engine_whose_library_does_not_load_is_told(tmp_path: Path, error: str, told: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(f"raise {error}\n")
    code = """
from edgec.errors import BackendUnavailableError
from edgec.runtime.backends import get_backend
try:
    get_backend("onnxruntime")
except BackendUnavailableError as e:
    print(e)
"""
    said = run(code, tmp_path)
    assert "cannot be imported (" in said
    assert told in said


BACKEND = """
import numpy as np


class Program:
    engine_version = "1.0"
    precision = "fp32"
    precisions = {"fp32": 1}
    placement = {"CPU": 1}

    def __init__(self, factor):
        self.factor = factor

    def run(self, inputs):
        return {"y": inputs["x"] * self.factor}

    def close(self):
        pass


class Backend:
    def load(self, spec, payload, inputs, outputs, options):
        return Program(np.frombuffer(payload.view(spec.files[0]), np.float32)[0])
"""


def test_a_backend_of_another_package_runs_artifacts(tmp_path: Path) -> None:
    (tmp_path / "times_backend.py").write_text(BACKEND)
    distribution = tmp_path / "times_backend-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: times-backend\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[edgec.backends]\ntimes = times_backend:Backend\n")
    code = f"""
import numpy as np
from edgec.artifact import EngineSpec, Manifest, TensorSpec, pack
from edgec.runtime import load
spec = EngineSpec(name="times", version="", device="CPU", precision="fp32", files=("factor.bin",))
manifest = Manifest(
    model="times", model_version="1", target="cpu-x86_64", engine=spec,
    inputs=(TensorSpec("x", "float32", (2,)),), outputs=(TensorSpec("y", "float32", (2,)),),
)
path = pack({str(tmp_path / "times.edgec")!r}, manifest, {{"factor.bin": np.float32(3).tobytes()}})
with load(path) as session:
    print(session.engine, session.run({{"x": np.array([1, 2], np.float32)}})["y"].tolist())
"""
    assert run(code, tmp_path) == "times [3.0, 6.0]\n"


@pytest.mark.parametrize(
    ("precisions", "effective"),
    [({}, "fp16"), ({"fp32": 3}, "fp32"), ({"int8": 20}, "int8"), ({"int8": 20, "fp32": 1}, "mixed")],
)
def test_the_effective_precision_is_that_of_all_layers(precisions: dict[str, int], effective: str) -> None:
    assert effective_precision(precisions, "fp16") == effective


def test_a_function_is_enough_for_a_program() -> None:
    program: Program = FunctionProgram(lambda feeds: {"y": feeds["x"] * 2}, engine_version="1.2", layers=3)
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(program.run({"x": x})["y"], [2, 2])
    assert (program.engine_version, program.precision) == ("1.2", "fp32")
    assert (program.precisions, program.placement) == ({"fp32": 3}, {"CPU": 3})
    program.close()
    program.close()
    with pytest.raises(InferenceError, match="closed"):
        program.run({"x": x})
