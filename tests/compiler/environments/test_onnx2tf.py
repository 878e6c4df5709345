"""onnx2tf in its environment: what it writes computes what ONNX does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.compiler.networks import cnn

from edgec.compiler.environments import EnvironmentStore, default_home
from edgec.compiler.environments.onnx2tf import convert_with_onnx2tf
from edgec.compiler.onnxruntime import ReferenceProgram
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
