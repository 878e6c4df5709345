from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compiler import networks
from tests.compiler.test_quantization import NETWORKS

from edgec.compiler.calibration import calibrate
from edgec.compiler.converters.tensorrt import build_typed_onnx
from edgec.compiler.lint import lint_limits, lint_tensorrt
from edgec.compiler.model import walk_nodes
from edgec.targets import AttributeLimit, Limits, load_target, target_names

JETSON = load_target("jetson-orin-nano-jp6")
TENSORRT_TARGETS = [n for n in target_names() if load_target(n).family == "tensorrt"]


def typed(
    precision: str = "int8", build: Callable[[], onnx.ModelProto] = networks.residual
) -> onnx.ModelProto:
    model = build()
    return build_typed_onnx(model, JETSON, precision, calibrate(model, networks.samples(model, 16)))


def rules(model: onnx.ModelProto) -> set[str]:
    return {f.rule for f in lint_tensorrt(model, JETSON)}


@pytest.mark.parametrize("target", TENSORRT_TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "mixed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_edgec_makes_is_clean(name: str, precision: str, target: str) -> None:
    model = NETWORKS[name]()
    table = calibrate(model, networks.samples(model, 8))
    made = build_typed_onnx(model, load_target(target), precision, table)
    assert lint_tensorrt(made, load_target(target)) == []


# -- planted faults: each is caught by its rule ------------------------------------------------------------


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def node(model: onnx.ModelProto, op: str, index: int = 0) -> onnx.NodeProto:
    found: onnx.NodeProto = [n for n in model.graph.node if n.op_type == op][index]
    return found


def put(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))


def insert_before(model: onnx.ModelProto, taker: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
    kept = list(model.graph.node)
    at = next(i for i, n in enumerate(kept) if n.name == taker.name)
    kept[at:at] = nodes
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def wrong_zero_point(model: onnx.ModelProto) -> None:
    put(model, node(model, "QuantizeLinear").input[2], np.array(3, np.int8))


def computed_zero_point(model: onnx.ModelProto) -> None:
    pair = node(model, "QuantizeLinear")
    cast = helper.make_node("Identity", [pair.input[2]], ["computed_zero"], "computing")
    pair.input[2] = "computed_zero"
    insert_before(model, pair, [cast])


def asymmetric(model: onnx.ModelProto) -> None:
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        put(model, node(model, kind).input[2], np.array(0, np.uint8))


def computed_scale(model: onnx.ModelProto) -> None:
    pair = node(model, "QuantizeLinear")
    largest = helper.make_node("ReduceMax", [pair.input[0]], ["largest"], "largest", keepdims=0)
    pair.input[1] = "largest"
    insert_before(model, pair, [largest])


def zero_scale(model: onnx.ModelProto) -> None:
    name = next(t.name for t in model.graph.initializer if t.name.endswith("/scale_0"))
    scales = numpy_helper.to_array(tensor(model, name)).copy()
    scales[1] = 0
    put(model, name, scales)


def infinite_scale(model: onnx.ModelProto) -> None:
    put(model, node(model, "QuantizeLinear").input[1], np.array(np.inf, np.float32))


def half_scale(model: onnx.ModelProto) -> None:
    pair = node(model, "QuantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float16), "half"))
    pair.input[1] = "half"


def wrong_axis(model: onnx.ModelProto) -> None:
    # w1 is [8, 8, 3, 3]: eight scales fit both axes, and only one of them is right.
    for pair in model.graph.node:
        if pair.op_type in ("QuantizeLinear", "DequantizeLinear") and "w1/scale_0" in pair.input:
            pair.attribute[0].i = 1


def axis_that_does_not_fit(model: onnx.ModelProto) -> None:
    put(model, "w1/scale_0", np.full(7, 0.1, np.float32))


def activation_per_channel(model: onnx.ModelProto) -> None:
    pairs = [n for n in model.graph.node if n.op_type.endswith("Linear") and n.input[1] == "image/scale"]
    put(model, "image/scale", np.full(3, 0.1, np.float32))
    put(model, "image/zero_point", np.zeros(3, np.int8))
    for pair in pairs:
        pair.attribute.append(helper.make_attribute("axis", 1))


def lone_quantize(model: onnx.ModelProto) -> None:
    pair = node(model, "DequantizeLinear")
    cast = helper.make_node("Cast", [pair.input[0]], ["cast_up"], "casting", to=TensorProto.FLOAT)
    insert_before(model, pair, [cast])


def lone_dequantize(model: onnx.ModelProto) -> None:
    pair = node(model, "DequantizeLinear")
    up = helper.make_node("Cast", [pair.input[0]], ["as_float"], "up", to=TensorProto.FLOAT)
    down = helper.make_node("Cast", ["as_float"], ["as_int8"], "down", to=TensorProto.INT8)
    pair.input[0] = "as_int8"
    insert_before(model, pair, [up, down])


def unequal_ends(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "other"))
    node(model, "DequantizeLinear").input[1] = "other"


def second_dequantized_branch(model: onnx.ModelProto) -> None:
    add = next(n for n in model.graph.node if n.name == "add1")
    scale, zero = node(model, "QuantizeLinear").input[1:3]
    pair = [
        helper.make_node("QuantizeLinear", [add.input[0], scale, zero], ["q"], "second_q"),
        helper.make_node("DequantizeLinear", ["q", scale, zero], ["dq"], "second_dq"),
    ]
    insert_before(model, add, pair)
    next(n for n in model.graph.node if n.name == "add1").input[0] = "dq"


def quantized_bias(model: onnx.ModelProto) -> None:
    conv = node(model, "Conv")
    channels = tensor(model, "w0").dims[0]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones(channels, np.int32), "b"),
            numpy_helper.from_array(np.array(0.1, np.float32), "bs"),
        ]
    )
    insert_before(model, conv, [helper.make_node("DequantizeLinear", ["b", "bs"], ["bias"], "bias_dq")])
    node(model, "Conv").input.append("bias")


def half_weights(model: onnx.ModelProto) -> None:
    relu = next(n for n in model.graph.node if n.name == "relu1")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float16), "one"))
    mul = helper.make_node("Mul", [relu.input[0], "one"], ["scaled"], "mixed_types")
    insert_before(model, relu, [mul])
    next(n for n in model.graph.node if n.name == "relu1").input[0] = "scaled"


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22


def older_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def newer_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 12


def custom_operator(model: onnx.ModelProto) -> None:
    relu = node(model, "Relu")
    relu.domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def refused_operator(model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Det", [last], ["det"], "det"))


def refused_attribute(model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    model.graph.node.append(
        helper.make_node("MaxPool", [last], ["pooled"], "dilated", kernel_shape=[2, 2], dilations=[2, 2])
    )


def pool_indices(model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    model.graph.node.append(
        helper.make_node("MaxPool", [last], ["pooled", "where"], "indexed", kernel_shape=[2, 2])
    )


def nine_axes(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.arange(5, dtype=np.int64), "axes"))
    model.graph.node.append(
        helper.make_node("Unsqueeze", [model.graph.output[0].name, "axes"], ["deep"], "deep")
    )


def refused_dtype(model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Cast", [last], ["odd"], "odd", to=TensorProto.UINT16))


def computing_in_uint8(model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    model.graph.node.extend(
        [
            helper.make_node("Cast", [last], ["bytes"], "to_bytes", to=TensorProto.UINT8),
            helper.make_node("Transpose", ["bytes"], ["turned"], "turn"),
        ]
    )


def free_dimension(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def computed_axes(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
    model.graph.node.append(
        helper.make_node("Unsqueeze", [model.graph.output[0].name, "axes"], ["d"], "dynamic")
    )


def uneven_lstm(model: onnx.ModelProto) -> None:
    names = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]
    weights = {"lw": (2, 8, 3), "lr": (2, 8, 2)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in weights.items()
    )
    model.graph.input.append(helper.make_tensor_value_info("seq", TensorProto.FLOAT, [4, 1, 3]))
    model.graph.node.append(
        helper.make_node(
            "LSTM",
            ["seq", "lw", "lr"],
            ["lo"],
            "uneven",
            hidden_size=2,
            direction="bidirectional",
            activations=names,
        )
    )


def diagonal(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("square", TensorProto.FLOAT, [4, 4]))
    model.graph.node.append(helper.make_node("Einsum", ["square"], ["trace"], "trace", equation="ii->i"))


def infinite_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        numpy_helper.from_array(np.full((16, 16, 1, 1), np.inf, np.float32), "huge")
    )
    model.graph.node.append(
        helper.make_node("Conv", [model.graph.output[0].name, "huge"], ["h"], "huge_conv")
    )


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "zero point 3": (wrong_zero_point, "zero-point"),
    "computed zero point": (computed_zero_point, "zero-point"),
    "uint8 pairs": (asymmetric, "quantized-dtype"),
    "computed scale": (computed_scale, "scale-constant"),
    "scale 0": (zero_scale, "scale-positive"),
    "infinite scale": (infinite_scale, "scale-positive"),
    "fp16 scale of fp32": (half_scale, "scale-dtype"),
    "scales along input channels": (wrong_axis, "axis"),
    "seven scales for eight channels": (axis_that_does_not_fit, "axis"),
    "activation per channel": (activation_per_channel, "axis"),
    "Q without DQ": (lone_quantize, "pair"),
    "DQ without Q": (lone_dequantize, "pair"),
    "unequal ends": (unequal_ends, "pair"),
    "second DQ on a residual Add": (second_dequantized_branch, "residual"),
    "quantized bias": (quantized_bias, "bias"),
    "fp16 times fp32": (half_weights, "dtype-consistency"),
    "opset too new": (newer_opset, "opset"),
    "opset too old": (older_opset, "opset"),
    "IR version too new": (newer_ir, "ir-version"),
    "custom operator": (custom_operator, "custom-operator"),
    "refused operator": (refused_operator, "unsupported-operator"),
    "refused attribute": (refused_attribute, "attribute"),
    "indices of MaxPool": (pool_indices, "maxpool-indices"),
    "nine axes": (nine_axes, "rank"),
    "refused dtype": (refused_dtype, "dtype"),
    "computing in uint8": (computing_in_uint8, "uint8"),
    "free dimension": (free_dimension, "dynamic-shape"),
    "computed axes": (computed_axes, "constant-input"),
    "uneven LSTM": (uneven_lstm, "recurrent-activations"),
    "diagonal": (diagonal, "einsum"),
    "infinite weights": (infinite_weights, "finite-weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_its_rule(fault: str) -> None:
    plant, rule = FAULTS[fault]
    model = typed()
    assert rules(model) == set()
    plant(model)
    found = lint_tensorrt(model, JETSON)
    assert rule in {f.rule for f in found}
    for finding in found:
        assert finding.node
        assert finding.fix
        assert finding.severity in ("error", "warning")


def test_a_fault_inside_a_subgraph_is_found() -> None:
    body = helper.make_graph(
        [helper.make_node("Det", ["x"], ["d"], "inner_det")],
        "body",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [])],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], "if", then_branch=body, else_branch=body)]
    model = networks.model_of([helper.make_node("Identity", ["x"], ["y"], "id")], {"x": [2, 2]}, ["y"])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [n.op_type for n in walk_nodes(model.graph)] == ["If", "Det", "Det"]
    found = [f for f in lint_tensorrt(model, JETSON) if f.rule == "unsupported-operator"]
    assert {f.node for f in found} == {"inner_det"}


def test_asymmetric_quantization_of_another_target_is_refused() -> None:
    from edgec.compiler.quantization import quantize_static

    model = networks.cnn()
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    found = rules(quantize_static(model, calibrate(model, networks.samples(model, 8)), scheme))
    assert {"zero-point", "quantized-dtype", "bias"} <= found


def test_an_axis_that_is_no_batch_is_not_taken_for_one() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "halves"], ["h"], "shuffle"),
        helper.make_node("Reshape", ["h", "whole"], ["w"], "back"),
        helper.make_node("MaxPool", ["w"], ["y"], "pool", kernel_shape=[2, 2]),
    ]
    shapes = {"halves": np.array([2, 3, 4, 4], np.int64), "whole": np.array([1, 6, 4, 4], np.int64)}
    model = networks.model_of(nodes, {"x": [1, 6, 4, 4]}, ["y"], shapes)
    assert lint_limits(model, Limits(max_batch=1)) == []
    shapes["whole"] = np.array([2, 3, 4, 4], np.int64)
    model = networks.model_of(nodes, {"x": [1, 6, 4, 4]}, ["y"], shapes)
    assert [f.node for f in lint_limits(model, Limits(max_batch=1))] == ["pool"]


# -- limits of other families ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        (Limits(max_opset=16), "opset"),
        (Limits(max_ir_version=7), "ir-version"),
        (Limits(max_rank=3), "rank"),
        (Limits(static_shapes=True), "dynamic-shape"),
        (Limits(max_batch=1), "batch"),
        (Limits(refused_operators=(("Tanh", "use Clip"),)), "unsupported-operator"),
        (Limits(allowed_operators=("MatMul", "Add")), "unsupported-operator"),
        (Limits(refused_dtypes=(("float32", "use int8"),)), "dtype"),
        (
            Limits(
                attributes=(AttributeLimit(operator="Transpose", attribute="perm", maximum=2, reason="no"),)
            ),
            "attribute",
        ),
        (
            Limits(
                attributes=(
                    AttributeLimit(operator="Softmax", attribute="axis", allowed=(1,), reason="last"),
                )
            ),
            "attribute",
        ),
    ],
)
def test_each_limit_of_a_target_file_is_checked(limits: Limits, rule: str) -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"], "tanh"),
        helper.make_node("Transpose", ["t"], ["u"], "transpose", perm=[0, 2, 1, 3]),
        helper.make_node("Softmax", ["u"], ["y"], "softmax"),
    ]
    model = networks.model_of(nodes, {"x": [4, 3, "n", 5]}, ["y"])
    assert lint_limits(model, Limits()) == []
    assert {f.rule for f in lint_limits(model, limits)} == {rule}


def test_attribute_defaults_count() -> None:
    # Softmax without an axis has -1: the schema says so, the node does not.
    model = networks.model_of([helper.make_node("Softmax", ["x"], ["y"], "s")], {"x": [2, 3]}, ["y"])
    limit = AttributeLimit(operator="Softmax", attribute="axis", allowed=(-1,), reason="last axis only")
    assert lint_limits(model, Limits(attributes=(limit,))) == []
    assert len(lint_limits(model, Limits(attributes=(replace(limit, allowed=(1,)),)))) == 1


def test_large_weights_do_not_hide_what_is_inferred() -> None:
    model = networks.cnn()
    big = numpy_helper.from_array(np.ones((12, 8, 3, 3), np.float32), "w2")
    next(t for t in model.graph.initializer if t.name == "w2").CopyFrom(big)
    assert {f.rule for f in lint_limits(model, Limits(max_rank=3))} == {"rank"}
