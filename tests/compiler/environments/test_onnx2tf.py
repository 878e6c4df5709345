"""onnx2tf in its environment: what it writes computes what ONNX does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.compiler.networks import cnn, model_of

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.environments import EnvironmentStore, default_home, get_environment
from edgec.compiler.environments.onnx2tf import convert_with_onnx2tf
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.report import CandidateInfo
from edgec.errors import ConversionError, MissingEnvironmentError

HOME = Path(os.environ["EDGEC_HOME"]) if "EDGEC_HOME" in os.environ else default_home()


def test_without_it_the_command_that_installs_it_is_said(tmp_path: Path) -> None:
    onnx.save(cnn(), tmp_path / "m.onnx")
    with pytest.raises(MissingEnvironmentError, match="edgec doctor --install onnx2tf"):
        convert_with_onnx2tf(tmp_path / "m.onnx", tmp_path, EnvironmentStore(tmp_path / "none"))


@pytest.mark.slow
def test_a_small_network_computes_the_same_in_litert(tmp_path: Path) -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    store = EnvironmentStore(HOME / "environments")
    onnx.save(cnn(), tmp_path / "m.onnx")
    try:
        made = convert_with_onnx2tf(tmp_path / "m.onnx", tmp_path, store, timeout_s=200)
    except MissingEnvironmentError as e:
        pytest.skip(str(e))
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    with ReferenceProgram(cnn()) as program:
        expected = program.run({"image": image})["scores"]
    interpreter = litert.Interpreter(str(made), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.transpose(0, 2, 3, 1))
    interpreter.invoke()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ConversionError, match="onnx2tf c"):
        convert_with_onnx2tf(tmp_path / "broken.onnx", tmp_path, store, timeout_s=200)


def odd_network() -> onnx.ModelProto:
    """A convolution, and an operator that edgec's writer does not have."""
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32) / 5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Celu", ["c"], ["y"], "odd"),
    ]
    return model_of(nodes, {"x": (1, 3, 8, 10)}, {"y": (1, 4, 8, 10)}, {"w": w})


def candidates(folder: Path, home: Path) -> dict[str, CandidateInfo]:
    onnx.save(odd_network(), folder / "m.onnx")
    options = CompileOptions(measure_s=0.05, workers=0, precision="fp32")
    built = compile_model(folder / "m.onnx", ["cpu-x86_64"], folder / "out", options=options, home=home)
    return {c["name"]: c for c in built.report["artifacts"][0]["candidates"]}


@pytest.mark.slow
def test_a_build_says_what_would_write_what_the_writer_lacks(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    reason = candidates(tmp_path, tmp_path / "home")["litert fp32"].get("reason") or ""
    assert "Celu 'odd': the writer has no such operator" in reason
    assert "edgec doctor --install onnx2tf" in reason


@pytest.mark.slow
def test_what_the_writer_lacks_goes_through_it_and_is_held_to_parity(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    try:
        EnvironmentStore(HOME / "environments").python(get_environment("onnx2tf"))
    except MissingEnvironmentError as e:
        pytest.skip(str(e))
    made = candidates(tmp_path, HOME)["litert fp32"]
    assert made["status"] in ("winner", "slower"), made
    parity = made.get("parity")
    assert parity is not None
    assert parity["passed"]
