"""A folded model on camera frames computes what the source model computes on prepared ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.compiler.networks import model_of

from edgec.artifact import Pipeline, steps
from edgec.compiler.model import real_inputs, tensor_specs
from edgec.compiler.passes.fold_preprocessing import fold_preprocessing
from edgec.runtime.pipeline import Processor

pytest.importorskip("cv2")
Array = NDArray[Any]
Step = dict[str, Any]

DECODE: Step = {"step": "decode", "color": "BGR"}
LETTERBOX: Step = {"step": "resize", "width": 10, "height": 8, "mode": "letterbox", "pad": [1, 100, 200]}
NORMALIZE: Step = {"step": "normalize", "scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [0.2, 0.3, 0.4]}
PLANES: Step = {"step": "layout", "order": "NCHW"}
RGB: Step = {"step": "color", "order": "RGB"}


def convolution(*, channels_first: bool = True, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model that can tell channels, axes and borders apart: ``image`` 8 x 10 to ``scores``."""
    weights = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    weights = weights.astype(helper.tensor_dtype_to_np_dtype(dtype))
    shape: Sequence[int | str] = ("n", 3, 8, 10) if channels_first else ("n", 8, 10, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["scores"], pads=[1, 1, 1, 1])]
    perm = [0, 1, 2, 3] if channels_first else [0, 3, 1, 2]
    nodes.insert(0, helper.make_node("Transpose", ["image"], ["x"], perm=perm))
    return model_of(nodes, {"image": shape}, ["scores"], {"w": weights}, input_type=dtype, output_type=dtype)


def pipeline_of(before: list[Step], after: list[Step] | None = None) -> Pipeline:
    return Pipeline.from_dict({"preprocess": before, "postprocess": after or [], "labels": []})


def outputs_of(model: onnx.ModelProto, pipeline: Pipeline, sample: Any) -> dict[str, Array]:
    inputs = tensor_specs(real_inputs(model))
    outputs = tensor_specs(model.graph.output)
    prepared, _ = Processor(pipeline, inputs, outputs).preprocess(sample)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in outputs]
    values: list[Any] = list(session.run(names, prepared))
    return dict(zip(names, values, strict=True))


def fold(model: onnx.ModelProto, before: list[Step]) -> tuple[onnx.ModelProto, Pipeline]:
    folded = fold_preprocessing(model, pipeline_of(before))
    assert folded is not None
    onnx.checker.check_model(folded[0], full_check=True)
    return folded


def assert_same(model: onnx.ModelProto, before: list[Step], sample: Any) -> tuple[onnx.ModelProto, Pipeline]:
    """Check that folding changes nothing, and return what it gave."""
    folded, left = fold(model, before)
    expected = outputs_of(model, pipeline_of(before), sample)
    got = outputs_of(folded, left, sample)
    for name, array in expected.items():
        scale = np.abs(array.astype(np.float64)).max()
        tolerance = 4e-3 if array.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * scale)
    return folded, left


def operators(model: onnx.ModelProto, added_to: onnx.ModelProto) -> list[str]:
    count = len(model.graph.node) - len(added_to.graph.node)
    return [node.op_type for node in model.graph.node[:count]]


@pytest.fixture
def frame() -> Array:
    return np.random.default_rng(1).integers(0, 256, (37, 23, 3), np.uint8)


def test_the_device_passes_the_camera_frame_as_it_is(frame: Array) -> None:
    model = convolution()
    folded, left = assert_same(model, [DECODE, LETTERBOX, RGB, NORMALIZE, PLANES], frame)
    assert left.preprocess == (
        steps.Decode(color="BGR"),
        steps.Resize(width=10, height=8, mode="letterbox", pad=(1.0, 100.0, 200.0)),
    )
    (spec,) = tensor_specs(real_inputs(folded))
    assert (spec.name, spec.dtype, spec.shape) == ("image", "uint8", ("n", 8, 10, 3))
    # TensorRT takes bytes only where a Cast comes first.
    assert operators(folded, model) == ["Cast", "Transpose", "Gather", "Mul", "Add"]


def test_folding_leaves_the_source_as_it_was(frame: Array) -> None:
    model = convolution()
    before = model.SerializeToString()
    fold(model, [DECODE, LETTERBOX, NORMALIZE, PLANES])
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ([NORMALIZE, PLANES], ["Cast", "Transpose", "Mul", "Add"]),
        ([PLANES, NORMALIZE], ["Cast", "Transpose", "Mul", "Add"]),
        ([NORMALIZE, NORMALIZE, PLANES], ["Cast", "Transpose", "Mul", "Add", "Mul", "Add"]),
        ([NORMALIZE, RGB, PLANES], ["Cast", "Transpose", "Mul", "Add", "Gather"]),
        (
            [RGB, {"step": "color", "order": "BGR"}, NORMALIZE, PLANES],
            ["Cast", "Transpose", *["Gather"] * 2, "Mul", "Add"],
        ),
        ([{"step": "dtype", "to": "float32"}, PLANES], ["Cast", "Transpose"]),
        ([{"step": "normalize", "scale": 0.5}, PLANES], ["Cast", "Transpose", "Mul"]),
        ([{"step": "normalize", "mean": 3}, PLANES], ["Cast", "Transpose", "Add"]),
        ([NORMALIZE, {"step": "layout", "order": "CHW"}], ["Cast", "Transpose", "Mul", "Add"]),
    ],
)
def test_channels_first(before: list[Step], added: list[str], frame: Array) -> None:
    model = convolution()
    folded, left = assert_same(model, [DECODE, LETTERBOX, *before], frame)
    assert len(left.preprocess) == 2
    assert operators(folded, model) == added


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ([NORMALIZE], ["Cast", "Mul", "Add"]),
        ([RGB, NORMALIZE, {"step": "layout", "order": "NHWC"}], ["Cast", "Gather", "Mul", "Add"]),
        ([{"step": "dtype", "to": "float32"}], ["Cast"]),
    ],
)
def test_channels_last(before: list[Step], added: list[str], frame: Array) -> None:
    model = convolution(channels_first=False)
    folded, _ = assert_same(model, [DECODE, LETTERBOX, *before], frame)
    assert operators(folded, model) == added


def test_half_precision(frame: Array) -> None:
    model = convolution(dtype=TensorProto.FLOAT16)
    half: Step = {"step": "dtype", "to": "float16"}
    folded, _ = assert_same(model, [DECODE, LETTERBOX, NORMALIZE, half, PLANES], frame)
    assert operators(folded, model) == ["Cast", "Transpose", "Mul", "Add", "Cast"]


def test_bytes_with_channels_first(frame: Array) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["scores"], axes=[2, 3]),
    ]
    model = model_of(nodes, {"image": (1, 3, 8, 10)}, ["scores"], input_type=TensorProto.UINT8)
    folded, _ = assert_same(model, [DECODE, LETTERBOX, RGB, PLANES], frame)
    assert operators(folded, model) == ["Transpose", "Gather"]


def test_a_model_without_a_batch_axis(frame: Array) -> None:
    node = helper.make_node("ReduceMean", ["image"], ["scores"], axes=[1])
    model = model_of([node], {"image": (3, 8, 10)}, ["scores"])
    folded, _ = assert_same(model, [DECODE, LETTERBOX, NORMALIZE, {"step": "layout", "order": "CHW"}], frame)
    assert tensor_specs(real_inputs(folded))[0].shape == (8, 10, 3)


def test_the_input_may_be_read_in_several_places(frame: Array) -> None:
    def body(name: str, operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["image"], [name])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    nodes = [
        helper.make_node("ReduceMax", ["image"], ["high"], keepdims=0),
        helper.make_node("Greater", ["high", "limit"], ["bright"]),
        helper.make_node(
            "If", ["bright"], ["scores"], then_branch=body("a", "Neg"), else_branch=body("b", "Abs")
        ),
    ]
    model = model_of(nodes, {"image": (1, 3, 8, 10)}, ["scores"], {"limit": np.float32(1)})  # type: ignore[dict-item]
    for sample in (frame, frame // 8):
        assert_same(model, [DECODE, LETTERBOX, NORMALIZE, PLANES], sample)


def test_names_in_the_graph_do_not_collide(frame: Array) -> None:
    nodes = [
        helper.make_node("Neg", ["image"], ["image_prepared"]),
        helper.make_node("Neg", ["image_prepared"], ["scores"]),
    ]
    model = model_of(nodes, {"image": (1, 3, 8, 10)}, ["scores"])
    assert_same(model, [DECODE, LETTERBOX, NORMALIZE, PLANES], frame)


def test_each_input_is_folded_where_it_can_be(frame: Array) -> None:
    node = helper.make_node("Concat", ["left", "right"], ["scores"], axis=1)
    model = model_of([node], {"left": (1, 3, 8, 10), "right": (1, 3, 8, 10)}, ["scores"])
    left_eye = [{**step, "input": "left"} for step in (DECODE, LETTERBOX, NORMALIZE, PLANES)]
    right_eye = [{**step, "input": "right"} for step in (DECODE, NORMALIZE, LETTERBOX, PLANES)]
    # Steps of the two inputs may be mixed.
    mixed = [step for pair in zip(left_eye, right_eye, strict=True) for step in pair]
    folded, left = assert_same(model, mixed, {"left": frame, "right": frame[::-1]})
    assert [spec.dtype for spec in tensor_specs(real_inputs(folded))] == ["uint8", "float32"]
    assert len(left.preprocess) == 6


def test_old_models_that_list_weights_as_inputs(frame: Array) -> None:
    model = convolution()
    weights = next(t for t in model.graph.initializer if t.name == "w")
    model.graph.input.append(helper.make_tensor_value_info("w", weights.data_type, list(weights.dims)))
    assert_same(model, [DECODE, LETTERBOX, NORMALIZE, PLANES], frame)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([], [], id="nothing to fold"),
        pytest.param([NORMALIZE], [], id="no image"),
        pytest.param([DECODE, NORMALIZE, LETTERBOX, PLANES], [], id="resized as floats"),
        pytest.param(
            [DECODE, PLANES, {"step": "reshape", "shape": [1, 3, 8, 10]}, NORMALIZE], [], id="another step"
        ),
        pytest.param(
            [DECODE, LETTERBOX, {"step": "dtype", "to": "int32"}, NORMALIZE, PLANES], [], id="by integers"
        ),
        pytest.param([DECODE, LETTERBOX, PLANES], [], id="bytes where the model takes floats"),
        pytest.param(
            [DECODE, LETTERBOX, NORMALIZE, PLANES],
            [{"step": "reconstruction_error"}],
            id="compared with the output",
        ),
    ],
)
def test_what_cannot_move_stays(before: list[Step], after: list[Step]) -> None:
    assert fold_preprocessing(convolution(), pipeline_of(before, after)) is None


def test_an_input_that_is_an_output_stays() -> None:
    model = convolution()
    model.graph.output.append(model.graph.input[0])
    assert fold_preprocessing(model, pipeline_of([DECODE, LETTERBOX, NORMALIZE, PLANES])) is None


def test_nothing_moves_into_a_model_of_bytes_that_needs_nothing() -> None:
    node = helper.make_node("Cast", ["image"], ["scores"], to=TensorProto.FLOAT)
    model = model_of([node], {"image": (1, 8, 10, 3)}, ["scores"], input_type=TensorProto.UINT8)
    assert fold_preprocessing(model, pipeline_of([DECODE, LETTERBOX])) is None


def test_gray_frames(frame: Array) -> None:
    weights = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["image", "w"], ["scores"])
    model = model_of([node], {"image": (1, 1, 8, 10)}, ["scores"], {"w": numpy_helper.to_array(weights)})
    gray = [DECODE, {**LETTERBOX, "pad": 0}, {"step": "color", "order": "GRAY"}]
    folded, left = assert_same(model, [*gray, {"step": "normalize", "std": 255}, PLANES], frame)
    # Weighting the channels rounds to bytes, which stays with OpenCV.
    assert len(left.preprocess) == 3
    assert operators(folded, model) == ["Cast", "Transpose", "Mul"]
