"""TFLite files as C, and how much memory they need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from tests.compiler.tflite.harness import model_of, quantized

from edgec.cli import main_group
from edgec.compiler.tflite import write_tflite
from edgec.compiler.tflite.arena import estimate_arena
from edgec.compiler.tflite.c_array import emit_c_array, make_c_array
from edgec.errors import ConversionError
from edgec.runtime.testing import tiny_artifact

node = helper.make_node
_DUMP = """
#include <stdint.h>
#include <stdio.h>
#include "{stem}.h"
int main(void) {{
  if ((uintptr_t){symbol} % 16 != 0 || {upper}_ARENA_BYTES < 1024) return 1;
  return fwrite({symbol}, 1, {symbol}_len, stdout) == {symbol}_len ? 0 : 2;
}}
"""


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def chain() -> onnx.ModelProto:
    """x -> a -> b -> y, of 4000, 8000, 2000 and 1000 bytes in float32; a is taken again at the end."""
    constants = {"w": normal(1000, 2000), "v": normal(2000, 500), "u": normal(500, 250)}
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["a", "v"], ["b"]),
        node("MatMul", ["b", "u"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 1000]}, ["y"], constants)


def test_the_plan_lets_tensors_share_memory_that_do_not_live_together() -> None:
    # The largest pair that lives at once is 8000 + 4000 bytes; 2000 take the place of the input, 1000 any.
    estimate = estimate_arena(write_tflite(chain()).data)
    assert 12_000 <= estimate.activations_bytes <= 12_000 * 17 / 16 + 48
    assert estimate.persistent_bytes > 1024
    assert estimate.total_bytes % 1024 == 0
    assert estimate.total_bytes >= estimate.activations_bytes + estimate.persistent_bytes


def test_the_plan_covers_values_that_live_on() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Sigmoid", ["a"], ["b"]),
        node("Sigmoid", ["b"], ["c"]),
        node("Add", ["c", "a"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 4000]}, ["y"])
    estimate = estimate_arena(write_tflite(model).data)
    assert estimate.activations_bytes >= 3 * 16_000


def test_states_and_integers_are_counted() -> None:
    small, large = (estimate_arena(quantized(model).data) for model in (_conv(4), _conv(64)))
    assert large.activations_bytes > small.activations_bytes
    assert large.persistent_bytes >= small.persistent_bytes + 60 * 8


def _conv(channels: int) -> onnx.ModelProto:
    constants = {"w": normal(channels, 3, 3, 3)}
    return model_of([node("Conv", ["x", "w"], ["y"])], {"x": [1, 3, 12, 12]}, ["y"], constants)


@pytest.mark.parametrize("stem", ["digits-ethos-u55-128", "7segments"])
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_array_compiles_to_the_same_bytes(tmp_path: Path, stem: str, language: str) -> None:
    compiler = shutil.which("gcc" if language == "c" else "g++")
    if compiler is None:
        pytest.skip(f"no compiler of {language} is installed")
    data = quantized(_conv(4)).data
    made = make_c_array(data, stem, "a model\nin two lines")
    (tmp_path / f"{stem}.h").write_text(made.header)
    (tmp_path / f"{stem}.cc").write_text(made.source)
    words = {"stem": stem, "symbol": made.symbol, "upper": made.symbol.upper()}
    (tmp_path / "dump.c").write_text(_DUMP.format(**words))
    command = [compiler, "-x", language, "-Wall", "-Wextra", "-Werror", f"{stem}.cc", "dump.c", "-o", "dump"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "dump"], check=True, capture_output=True).stdout == data


@pytest.mark.slow
def test_compile_emits_a_c_array_beside_the_artifact(tmp_path: Path) -> None:
    onnx.save(_conv(8), tmp_path / "net.onnx")
    samples = np.random.default_rng(0).standard_normal((16, 3, 12, 12))
    np.savez(tmp_path / "c.npz", x=samples.astype(np.float32))
    out = tmp_path / "out"
    words = ["compile", str(tmp_path / "net.onnx"), "-t", "npu-tflite", "-o", str(out), "--emit", "c-array"]
    more = ["-c", str(tmp_path / "c.npz"), "--no-cache", "--workers", "0", "--quiet"]
    result = CliRunner().invoke(main_group, [*words, *more])
    assert result.exit_code == 0, result.output
    assert "#define NET_NPU_TFLITE_ARENA_BYTES " in (out / "net-npu-tflite.h").read_text()
    assert f"emitted   {out / 'net-npu-tflite.cc'}" in result.output


def test_a_target_without_tflite_files_is_refused_before_any_work(tmp_path: Path) -> None:
    onnx.save(_conv(8), tmp_path / "net.onnx")
    words = ["compile", str(tmp_path / "net.onnx"), "-t", "jetson", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main_group, [*words, "--emit", "c-array"])
    assert result.exit_code == 2
    assert "none is made for jetson" in result.output
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_engine_has_no_c_array(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "net.edgec")
    with pytest.raises(ConversionError, match="and a C array is made of a TFLite file: compile for a target"):
        emit_c_array(path)
    assert not list(tmp_path.glob("*.h"))
