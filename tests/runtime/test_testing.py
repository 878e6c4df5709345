"""The tiny models that ship for tests are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import Artifact, TensorSpec
from edgec.runtime import load
from edgec.runtime.testing import Node, onnx_members, tiny_artifact


def test_onnx_takes_the_models_for_its_own() -> None:
    onnx = pytest.importorskip("onnx")
    members = onnx_members(
        [
            Node("Conv", ["x", "w"], ["c"], {"pads": [1, 1, -1, 1], "group": 1, "auto_pad": "NOTSET"}),
            Node("LeakyRelu", ["c"], ["l"], {"alpha": 0.25}),
            Node("Constant", [], ["k"], {"value": np.array([-1, 2], np.int64)}),
            Node("Identity", ["l"], ["y"]),
        ],
        (TensorSpec("x", "float32", ("batch", 3, 300, 4)),),
        (TensorSpec("y", "float32", ("batch", 5, 300, 3)),),
        {"w": np.ones((5, 3, 3, 3), np.float32), "small": np.ones(2, np.float16)},
        external_bytes=64,
    )
    model = onnx.load_from_string(members["model.onnx"])
    first = model.graph.node[0]
    assert (first.op_type, list(first.input), list(first.output)) == ("Conv", ["x", "w"], ["c"])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for n in model.graph.node for a in n.attribute}
    assert attributes["pads"] == [1, 1, -1, 1]
    assert (attributes["group"], attributes["auto_pad"], attributes["alpha"]) == (1, b"NOTSET", 0.25)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(attributes["value"]), [-1, 2])
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", 3, 300, 4]
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


def test_onnx_checks_a_whole_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    inputs, outputs = (TensorSpec("x", "float32", (1, 32)),), (TensorSpec("y", "float32", (1, 32)),)
    members = onnx_members(
        [Node("MatMul", ["x", "w"], ["y"])], inputs, outputs, {"w": np.eye(32, dtype=np.float32)}
    )
    for name, data in members.items():
        (tmp_path / name).write_bytes(data)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


@pytest.mark.parametrize("batch", [1, 4, "n"])
def test_the_tiny_artifact_runs_and_tests_itself(tmp_path: Path, batch: int | str) -> None:
    pytest.importorskip("onnxruntime")
    path = tiny_artifact(tmp_path / "tiny.edgec", batch=batch)
    with Artifact.open(path) as artifact:
        artifact.verify()
    with load(path) as session:
        result = session.self_test()
    assert result.passed
    assert result.vectors == len(result.outputs) == 2


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (tiny_artifact(tmp_path / name).read_bytes() for name in ("a.edgec", "b.edgec"))
    assert first == second
