"""Source models: what is read, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.model import load_model
from edgec.errors import ModelError


def affine(batch: int | str = "batch", opset: int = 17, size: int = 4) -> onnx.ModelProto:
    """Return y = x @ w + b."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        [
            numpy_helper.from_array(np.ones((size, 2), np.float32), "w"),
            numpy_helper.from_array(np.zeros(2, np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_specs_name_dynamic_dimensions(tmp_path: Path) -> None:
    source = load_model(save(affine(), tmp_path / "m.onnx"))
    assert [str(s) for s in source.inputs] == ["x: float32[batch, 4]"]
    assert [str(s) for s in source.outputs] == ["y: float32[batch, 2]"]
    assert (source.opset, source.parameters) == (17, 10)


def test_initializers_that_are_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    model = affine()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    assert [s.name for s in load_model(save(model, tmp_path / "m.onnx")).inputs] == ["x"]


def test_a_pinned_shape_reaches_the_outputs(tmp_path: Path) -> None:
    source = load_model(save(affine(), tmp_path / "m.onnx"), {"x": (3, 4)})
    assert [s.shape for s in (*source.inputs, *source.outputs)] == [(3, 4), (3, 2)]


def test_outputs_of_inputs_with_fixed_sizes_are_inferred(tmp_path: Path) -> None:
    model = affine(batch=3)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert [s.shape for s in load_model(save(model, tmp_path / "m.onnx")).outputs] == [(3, 2)]


def test_what_the_exporter_says_of_values_within_stays_where_outputs_are_inferred(tmp_path: Path) -> None:
    model = affine(batch=3)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    # Nothing could infer this one: its operator is of another domain.
    model.graph.node.append(helper.make_node("Own", ["b"], ["own"], domain="maker"))
    model.opset_import.append(helper.make_opsetid("maker", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("own", TensorProto.FLOAT, [2]))
    source = load_model(save(model, tmp_path / "m.onnx"))
    assert source.proto.graph.value_info == model.graph.value_info
    assert [s.shape for s in source.outputs] == [(3, 2)]


def test_external_data_is_read_and_is_part_of_the_digest(tmp_path: Path) -> None:
    def write(value: float) -> str:
        model = affine(size=512)
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.full((512, 2), value, np.float32), "w")
        )
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
        source = load_model(tmp_path / "m.onnx")
        assert numpy_helper.to_array(source.proto.graph.initializer[0])[0, 0] == value
        assert source.external_files == ("w.bin",)
        (tmp_path / "w.bin").unlink()
        return source.sha256

    assert write(1.0) != write(2.0)


def nothing(_: Path) -> None:
    pass


def a_directory(path: Path) -> None:
    path.mkdir()


def an_empty_file(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("weights, honest")


def cut_off(path: Path) -> None:
    whole = affine().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])


def no_graph(path: Path) -> None:
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())


def missing_external_data(path: Path) -> None:
    onnx.save(affine(size=512), path, save_as_external_data=True, location="w.bin", size_threshold=16)
    (path.parent / "w.bin").unlink()


def short_external_data(path: Path) -> None:
    onnx.save(affine(size=512), path, save_as_external_data=True, location="w.bin", size_threshold=16)
    (path.parent / "w.bin").write_bytes(b"\0" * 100)


def external_data_outside(path: Path) -> None:
    model = affine(size=512)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=16)
    whole = onnx.load(path, load_external_data=False)
    whole.graph.initializer[0].external_data[0].value = "../w.bin"
    save(whole, path)


def newer_opset(path: Path) -> None:
    save(affine(opset=onnx.defs.onnx_opset_version() + 1), path)


def older_opset(path: Path) -> None:
    save(affine(opset=5), path)


def unknown_operator(path: Path) -> None:
    model = affine()
    model.graph.node[0].op_type = "MatMull"
    save(model, path)


def dangling_name(path: Path) -> None:
    model = affine()
    model.graph.node[1].input[0] = "nobody"
    save(model, path)


def sequence_output(path: Path) -> None:
    model = affine()
    model.graph.node.append(helper.make_node("SequenceConstruct", ["xw"], ["s"]))
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 2])
    kind = helper.make_sequence_type_proto(element)
    model.graph.output.append(helper.make_value_info("s", kind))
    save(model, path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (nothing, "no such file"),
        (a_directory, "is a directory"),
        (an_empty_file, "is empty"),
        (text, "not ONNX|not an ONNX model"),
        (cut_off, "not ONNX, or is cut off or corrupt"),
        (no_graph, "not an ONNX model"),
        (missing_external_data, "'w.bin' is missing .tensor 'w'"),
        (short_external_data, "'w.bin' is cut off"),
        (external_data_outside, "outside the model's directory"),
        (newer_opset, "uses ONNX opset"),
        (older_opset, "uses ONNX opset 5"),
        (unknown_operator, "MatMull"),
        (dangling_name, "nobody"),
        (sequence_output, "'s' is a sequence, not a tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_model_is_refused(tmp_path: Path, write: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "m.onnx"
    write(path)
    with pytest.raises(ModelError, match=says) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"z": (1, 4)}, "has no input 'z' to pin; its inputs are x"),
        ({"x": (1, 4, 4)}, "has 2 axes, --shape gives 3"),
        ({"x": (1, 5)}, "axis 1 of input 'x' is fixed at 4, --shape says 5"),
    ],
)
def test_pins_that_do_not_fit_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(save(affine(), tmp_path / "m.onnx"), shapes)
