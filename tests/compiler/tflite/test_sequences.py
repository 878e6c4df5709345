"""Recurrent layers, attention, normalisation and comparisons against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.compiler.tflite.harness import (
    builtins,
    check,
    model_of,
    quantized,
    run_onnx,
    run_tflite,
    samples_of,
    snr_db,
)

from edgec.compiler.tflite import Mode, UnsupportedOperatorsError, unsupported, write_tflite

bounded = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
node = helper.make_node
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FLOORS = {Mode.FLOAT32: 100.0, Mode.FLOAT16: 55.0, Mode.DYNAMIC: 28.0, Mode.INT8: 25.0, Mode.INT16X8: 30.0}


def normal(shape: list[int] | tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def recurrent(
    op: str,
    *,
    steps: int = 6,
    batch: int = 1,
    direction: str = "forward",
    outputs: tuple[str, ...] = ("y",),
    states: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one layer of 5 inputs and 8 states; `states` are inputs of the model, too."""
    gates, count, size, hidden = GATES[op], 2 if direction == "bidirectional" else 1, 5, 8
    constants = {
        "w": normal([count, gates * hidden, size], 1, 0.4),
        "r": normal([count, gates * hidden, hidden], 2, 0.4),
        "b": normal([count, 2 * gates * hidden], 3, 0.2),
    }
    inputs, names = {"x": [steps, batch, size]}, ["x", "w", "r", "b", ""]
    if states:
        for name in ("h0", "c0")[: 2 if op == "LSTM" else 1]:
            names.append(name)
            inputs[name] = [count, batch, hidden]
    layer = node(op, names, list(outputs), hidden_size=hidden, direction=direction, **attributes)
    return model_of([layer], inputs, [o for o in outputs if o], constants)


@pytest.mark.slow
@bounded
@given(
    op=st.sampled_from(["LSTM", "LSTM", "GRU", "GRU", "RNN"]),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    steps=st.sampled_from([1, 2, 7]),
    batch=st.sampled_from([1, 3]),
    last=st.sampled_from(["none", "with", "alone", "cell"]),
    states=st.booleans(),
    after=st.integers(0, 1),
)
def test_recurrent_layers(
    op: str, direction: str, steps: int, batch: int, last: str, states: bool, after: int
) -> None:
    outputs = {"none": ("y",), "with": ("y", "h"), "alone": ("", "h"), "cell": ("y", "h", "c")}[last]
    model = recurrent(
        op,
        steps=steps,
        batch=batch,
        direction=direction,
        outputs=outputs if op == "LSTM" else outputs[:2],
        states=states,
        **({"linear_before_reset": after} if op == "GRU" else {}),
    )
    sample = samples_of(model, 1)[0]
    expected = run_onnx(model, sample)
    for mode, floor in FLOORS.items():
        got = snr_db(expected, run_tflite(quantized(model, mode), sample))
        assert got >= floor, f"{mode.value}: {got:.1f} dB"


@pytest.mark.parametrize("mode", [Mode.FLOAT32, Mode.DYNAMIC, Mode.INT8])
def test_an_lstm_starts_anew_in_every_call(mode: Mode) -> None:
    model = recurrent("LSTM", direction="bidirectional")
    written = quantized(model, mode, keep_layout=True)
    assert builtins(written).count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 2
    interpreter = Interpreter(model_content=written.data, num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    for sample in samples_of(model, 3):
        assert snr_db(run_onnx(model, sample), [runner(**sample)["y"]]) >= FLOORS[mode]


def test_an_lstm_of_batches_first_has_no_transpose() -> None:
    model = recurrent("LSTM", batch=2)
    layer = model.graph.node[0]
    layer.input[0], layer.output[0] = "t", "s"
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        layer,
        node("Transpose", ["s"], ["u"], perm=[2, 0, 1, 3]),
        node("Reshape", ["u", "z"], ["y"]),
    ]
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    constants["z"] = np.array([2, 6, 8], np.int64)
    batched = model_of(nodes, {"x": [2, 6, 5]}, ["y"], constants)
    written = write_tflite(batched)
    assert "TRANSPOSE" not in builtins(written)
    sample = samples_of(batched, 1)[0]
    assert snr_db(run_onnx(batched, sample), run_tflite(written, sample)) >= FLOORS[Mode.FLOAT32]


def test_what_no_recurrent_operator_has_is_refused() -> None:
    assert [u.reason for u in unsupported(recurrent("GRU", steps=129))] == [
        "it has 129 steps, and unrolled layers have at most 128"
    ]
    assert unsupported(recurrent("LSTM", steps=129)) == []
    assert unsupported(recurrent("LSTM", steps=129, outputs=("y", "", "c")))
    refused = unsupported(recurrent("LSTM", clip=3.0))
    assert [u.reason for u in refused] == ["it clips what goes into its activations"]
    activations = ["Sigmoid", "Relu", "Tanh"]
    refused = unsupported(recurrent("LSTM", activations=activations))
    assert [u.reason for u in refused] == ["its activations are Sigmoid, Relu, Tanh"]


@pytest.mark.slow
@bounded
@given(
    shapes=st.sampled_from(
        [
            ([3, 4], [4, 5]),
            ([2, 3, 4], [2, 4, 5]),
            ([2, 3, 6, 4], [2, 3, 4, 5]),
            ([2, 3, 6, 4], [1, 4, 5]),
            ([4], [4, 5]),
            ([2, 3, 4], [4]),
        ]
    ),
    constant=st.sampled_from(["none", "left", "right"]),
    swapped=st.booleans(),
)
def test_products_of_two_values(shapes: tuple[list[int], list[int]], constant: str, swapped: bool) -> None:
    left, right = shapes
    inputs, constants, nodes, name = {"a": left, "b": right}, {}, [], "b"
    if swapped and len(right) > 1:
        inputs["b"] = [*right[:-2], right[-1], right[-2]]
        perm = [*range(len(right) - 2), len(right) - 1, len(right) - 2]
        nodes, name = [node("Transpose", ["b"], ["t"], perm=perm)], "t"
    for side, key in (("left", "a"), ("right", "b")):
        if constant == side:
            constants[key] = normal(inputs.pop(key), 7)
    nodes.append(node("MatMul", ["a", name], ["y"]))
    check(model_of(nodes, inputs, ["y"], constants))


def test_scores_of_attention_take_the_keys_as_they_lie() -> None:
    constants = {"heads": np.array([1, 6, 2, 4], np.int64)}
    nodes = [
        node("Reshape", ["q", "heads"], ["q1"]),
        node("Transpose", ["q1"], ["q2"], perm=[0, 2, 1, 3]),
        node("Reshape", ["k", "heads"], ["k1"]),
        node("Transpose", ["k1"], ["k2"], perm=[0, 2, 3, 1]),
        node("MatMul", ["q2", "k2"], ["s"]),
        node("Softmax", ["s"], ["y"], axis=-1),
    ]
    model = model_of(nodes, {"q": [1, 6, 8], "k": [1, 6, 8]}, ["y"], constants)
    written = write_tflite(model)
    assert [b for b in builtins(written) if b != "RESHAPE"] == [
        "TRANSPOSE",
        "TRANSPOSE",
        "BATCH_MATMUL",
        "SOFTMAX",
    ]
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= 90


@pytest.mark.slow
@bounded
@given(
    equation=st.sampled_from(
        [
            "bqhd,bkhd->bhqk",
            "bhqk,bkhd->bqhd",
            "ij,jk->ik",
            "bij,bjk->bki",
            "i,j->ij",
            "bcn,bcm->bnm",
            "abc,bc->ab",
        ]
    )
)
def test_einsum(equation: str) -> None:
    sizes = dict(zip("bqhdkijncam", (2, 3, 4, 5, 6, 3, 4, 5, 2, 3, 4), strict=True))
    first, second = equation.split("->")[0].split(",")
    inputs = {"x": [sizes[i] for i in first], "z": [sizes[i] for i in second]}
    check(model_of([node("Einsum", ["x", "z"], ["y"], equation=equation)], inputs, ["y"]))


def test_an_einsum_that_is_no_product_of_matrices_is_refused() -> None:
    model = model_of([node("Einsum", ["x"], ["y"], equation="ij->ji")], {"x": [2, 3]}, ["y"])
    assert [u.reason for u in unsupported(model)] == ["its equation is 'ij->ji'"]


@pytest.mark.slow
@bounded
@given(
    op=st.sampled_from(["layer", "instance", "l1", "l2"]),
    rank=st.integers(3, 4),
    axis=st.integers(1, 3),
    image=st.booleans(),
)
def test_normalizations(op: str, rank: int, axis: int, image: bool) -> None:
    shape = [2, 4, 5, 6][:rank]
    axis = min(axis, rank - 1)
    constants: dict[str, Any] = {"w": normal([4, 4, 1, 1][:rank], 5)}
    nodes, x = ([node("Conv", ["x", "w"], ["t"])], "t") if image else ([], "x")
    if op == "layer":
        constants |= {"s": normal(shape[axis:], 1), "b": normal(shape[axis:], 2)}
        nodes.append(node("LayerNormalization", [x, "s", "b"], ["y"], axis=axis))
    elif op == "instance":
        constants |= {"s": normal([4], 1), "b": normal([4], 2)}
        nodes.append(node("InstanceNormalization", [x, "s", "b"], ["y"]))
    else:
        nodes.append(node("LpNormalization", [x], ["y"], axis=axis, p=int(op[1])))
    model = model_of(nodes, {"x": shape}, ["y"], constants)
    check(model, int8_db=20, float_fallback=True)


@pytest.mark.slow
@bounded
@given(
    op=st.sampled_from(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"]),
    other=st.sampled_from([[3, 4], [4], [1, 4], [3, 1]]),
    negated=st.booleans(),
)
def test_comparisons_choose(op: str, other: list[int], negated: bool) -> None:
    logical = op in ("And", "Or", "Xor")
    kind = TensorProto.BOOL if logical else TensorProto.INT64 if op == "Equal" else TensorProto.FLOAT
    nodes = [node(op, ["a", "b"], ["c"])]
    if negated:
        nodes.append(node("Not", ["c"], ["n"]))
    nodes.append(node("Where", ["n" if negated else "c", "x", "z"], ["y"]))
    inputs = {"a": [3, 4], "b": other, "x": [3, 4], "z": [1, 4]}
    model = model_of(nodes, inputs, ["y"], kinds={"a": kind, "b": kind})
    check(model, int8_db=25 if logical or op == "Equal" else None)


@pytest.mark.slow
@bounded
@given(
    op=st.sampled_from(["Sign", "Softplus", "CumSum", "Trilu"]),
    axis=st.integers(-3, 2),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_what_masks_are_made_of(op: str, axis: int, flags: tuple[bool, bool]) -> None:
    constants: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    if op == "CumSum":
        constants = {"k": np.array(axis, np.int64)}
        attributes = {"exclusive": int(flags[0]), "reverse": int(flags[1])}
    elif op == "Trilu":
        constants, attributes = {"k": np.array(axis, np.int64)}, {"upper": int(flags[0])}
    model = model_of([node(op, ["x", *constants], ["y"], **attributes)], {"x": [2, 4, 5]}, ["y"], constants)
    check(model, int8_db=None if op == "Sign" else 20, float_fallback=True)


def test_top_k_gives_values_and_places() -> None:
    model = model_of([node("TopK", ["x", "k"], ["y", "i"])], {"x": [3, 9]}, ["y", "i"], {"k": np.array([4])})
    sample = samples_of(model, 1)[0]
    written = write_tflite(model)
    assert written.outputs[1].dtype == "int64"
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= 90


def test_tokens_stay_int64() -> None:
    constants = {"e": normal([30, 8]), "s": normal([8], 1), "b": normal([8], 2)}
    nodes = [node("Gather", ["e", "ids"], ["g"]), node("LayerNormalization", ["g", "s", "b"], ["y"])]
    model = model_of(nodes, {"ids": [1, 7]}, ["y"], constants, kinds={"ids": TensorProto.INT64})
    written = write_tflite(model)
    assert written.inputs[0].dtype == "int64"
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= 90


def test_full_integer_refuses_a_layer_normalization_that_a_mixed_file_keeps_in_float() -> None:
    constants = {"w": normal([8, 8]), "s": normal([8], 1), "b": normal([8], 2)}
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("LayerNormalization", ["m", "s", "b"], ["y"], "norm")]
    model = model_of(nodes, {"x": [4, 8]}, ["y"], constants)
    with pytest.raises(UnsupportedOperatorsError, match="no integer kernel computes LayerNormalization"):
        quantized(model)
    written = quantized(model, float_fallback=True)
    assert written.float_nodes == ("norm",)
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= 30


def test_what_is_lacking_comes_with_a_way_out() -> None:
    boxes = {"b": [1, 6, 4], "s": [1, 1, 6]}
    model = model_of([node("NonMaxSuppression", ["b", "s"], ["y"])], boxes, ["y"])
    (refused,) = unsupported(model)
    assert refused.fix == "end the model before it; the pipeline's post-processing does it"


def vision_block() -> onnx.ModelProto:
    """A block of a vision transformer as exporters write it: patches, a class token, heads, a wide layer."""
    size, heads, tokens = 16, 2, 17
    constants = {
        "patch": normal([size, 3, 4, 4], 0, 0.2),
        "flat": np.array([1, size, tokens - 1], np.int64),
        "class": normal([1, 1, size], 1),
        "position": normal([1, tokens, size], 2, 0.5),
        "qkv": normal([size, 3 * size], 3, 0.2),
        "five": np.array([1, tokens, 3, heads, size // heads], np.int64),
        "scale": np.float32((size // heads) ** -0.5),
        "join": np.array([1, tokens, size], np.int64),
        "out": normal([size, size], 4, 0.2),
        "wide": normal([size, 4 * size], 5, 0.2),
        "narrow": normal([4 * size, size], 6, 0.2),
        "one": np.ones(size, np.float32),
        "none": np.zeros(size, np.float32),
        **{f"i{i}": np.array(i, np.int64) for i in range(3)},
    }
    nodes = [
        node("Conv", ["image", "patch"], ["p0"], strides=[4, 4]),
        node("Reshape", ["p0", "flat"], ["p1"]),
        node("Transpose", ["p1"], ["p2"], perm=[0, 2, 1]),
        node("Concat", ["class", "p2"], ["p3"], axis=1),
        node("Add", ["p3", "position"], ["x"]),
        node("LayerNormalization", ["x", "one", "none"], ["n"]),
        node("MatMul", ["n", "qkv"], ["a0"]),
        node("Reshape", ["a0", "five"], ["a1"]),
        node("Transpose", ["a1"], ["a2"], perm=[2, 0, 3, 1, 4]),
        *(node("Gather", ["a2", f"i{i}"], [name], axis=0) for i, name in enumerate(("q", "k", "v"))),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s0"]),
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Softmax", ["s1"], ["s2"], axis=-1),
        node("MatMul", ["s2", "v"], ["h0"]),
        node("Transpose", ["h0"], ["h1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["h1", "join"], ["h2"]),
        node("MatMul", ["h2", "out"], ["h3"]),
        node("Add", ["x", "h3"], ["r"]),
        node("LayerNormalization", ["r", "one", "none"], ["m"]),
        node("MatMul", ["m", "wide"], ["w0"]),
        node("Gelu", ["w0"], ["w1"]),
        node("MatMul", ["w1", "narrow"], ["w2"]),
        node("Add", ["r", "w2"], ["o"]),
        node("Gather", ["o", "i0"], ["y"], axis=1),
    ]
    return model_of(nodes, {"image": [1, 3, 16, 16]}, ["y"], constants, opset=20)


@pytest.mark.parametrize(
    ("mode", "floor"), [(Mode.FLOAT32, 100), (Mode.FLOAT16, 55), (Mode.DYNAMIC, 30), (Mode.INT8, 20)]
)
def test_a_block_of_a_vision_transformer(mode: Mode, floor: float) -> None:
    model = vision_block()
    sample = samples_of(model, 1)[0]
    written = quantized(model, mode, float_fallback=mode.integer)
    assert snr_db(run_onnx(model, sample), run_tflite(written, sample)) >= floor


def test_excluded_layers_of_a_dynamic_file_keep_their_weights() -> None:
    constants = {"w": normal([64, 64]), "v": normal([64, 64], 1)}
    nodes = [node("MatMul", ["x", "w"], ["m"], "first"), node("MatMul", ["m", "v"], ["y"], "second")]
    model = model_of(nodes, {"x": [4, 64]}, ["y"], constants)
    sample = samples_of(model, 1)[0]
    expected = run_onnx(model, sample)
    found = []
    for exclude in ([], ["first"], ["first", "second"]):
        written = write_tflite(model, mode=Mode.DYNAMIC, exclude=exclude)
        assert list(written.float_nodes) == exclude
        found.append((snr_db(expected, run_tflite(written, sample)), len(written.data)))
    assert found == sorted(found)
    assert found[2][0] >= 100


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("scaled", ["none", "scale", "both"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_layer_normalization_in_pieces_is_one(square: str, scaled: str, elsewhere: bool) -> None:
    constants = {"two": np.float32(2), "e": np.float32(1e-5), "s": normal([6], 1), "b": normal([6], 2)}
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]),
        node("Sub", ["x", "m"], ["d"]),
        node(square, ["d", "two" if square == "Pow" else "d"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=[-1]),
        node("Add", ["e", "v"], ["p"]),
        node("Sqrt", ["p"], ["r"]),
        node("Div", ["d", "r"], ["y" if scaled == "none" else "n"]),
    ]
    if scaled != "none":
        nodes.append(node("Mul", ["s", "n"], ["t" if scaled == "both" else "y"]))
    if scaled == "both":
        nodes.append(node("Add", ["t", "b"], ["y"]))
    outputs = ["y", "d"] if elsewhere else ["y"]
    model = model_of(nodes, {"x": [4, 6]}, outputs, constants)
    found = [u.operator for u in unsupported(model, Mode.INT8)]
    assert (found == ["LayerNormalization"]) is not elsewhere
    sample = samples_of(model, 1)[0]
    assert snr_db(run_onnx(model, sample), run_tflite(write_tflite(model), sample)) >= 90
