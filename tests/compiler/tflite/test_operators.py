"""Every operator over random shapes, strides, pads and axes against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.compiler.tflite.harness import check, model_of

from edgec.compiler.tflite import unsupported

pytestmark = pytest.mark.slow

bounded = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
node = helper.make_node


def normal(shape: list[int] | tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prefixed(shape: list[int], after: list[Any], outputs: list[str], **more: Any) -> Any:
    """Return a model in which a Conv comes first, so that what is tested works on NHWC."""
    channels = shape[1]
    first = node("Conv", ["x", "w0"], ["t"])
    constants = {"w0": normal([channels, channels, 1, 1][: len(shape)]), **more.pop("constants", {})}
    return model_of([first, *after], {"x": shape}, outputs, constants, **more)


@st.composite
def windows(draw: st.DrawFn, *, pool: bool = False) -> dict[str, Any]:
    dims = draw(st.sampled_from([1, 2, 2, 2]))
    kernel = [draw(st.integers(1, 4)) for _ in range(dims)]
    dilations = [1 if pool else draw(st.sampled_from([1, 1, 2])) for _ in range(dims)]
    limit = [k - 1 if pool else (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    return {
        "sizes": [draw(st.integers(9, 14)) for _ in range(dims)],
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 5 if dims == 1 else 3)) for _ in range(dims)],
        "dilations": dilations,
        "pads": [draw(st.integers(0, min(n, 3))) for n in limit * 2],
    }


@bounded
@given(
    window=windows(),
    groups=st.sampled_from(["one", "one", "each", "twice", "two"]),
    bias=st.booleans(),
    relu=st.booleans(),
)
def test_conv(window: dict[str, Any], groups: str, bias: bool, relu: bool) -> None:
    channels, out = 4, {"one": 5, "each": 4, "twice": 8, "two": 6}[groups]
    group = {"one": 1, "each": 4, "twice": 4, "two": 2}[groups]
    sizes = window.pop("sizes")
    constants = {"w": normal([out, channels // group, *window["kernel_shape"]])}
    if bias:
        constants["b"] = normal([out], 1)
    nodes = [node("Conv", ["x", *constants], ["c" if relu else "y"], group=group, **window)]
    if relu:
        nodes.append(node("Relu", ["c"], ["y"]))
    check(model_of(nodes, {"x": [1, channels, *sizes]}, ["y"], constants))


@bounded
@given(data=st.data(), relu=st.booleans(), group=st.sampled_from([1, 1, 2]))
def test_conv_transpose(data: st.DataObject, relu: bool, group: int) -> None:
    dims = data.draw(st.sampled_from([1, 2, 2]))
    kernel = [data.draw(st.integers(1, 4)) for _ in range(dims)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    dilations = [data.draw(st.sampled_from([1, 1, 2])) for _ in range(dims)]
    pads = [data.draw(st.integers(0, (k - 1) // 2)) for k in kernel * 2]
    extra = [data.draw(st.integers(0, s - 1)) for s in strides]
    constants = {"w": normal([4, 3, *kernel]), "b": normal([3 * group], 1)}
    nodes = [
        node(
            "ConvTranspose",
            ["x", "w", "b"],
            ["c" if relu else "y"],
            strides=strides,
            dilations=dilations,
            pads=pads,
            output_padding=extra,
            group=group,
        )
    ]
    if relu:
        nodes.append(node("Relu", ["c"], ["y"]))
    sizes = [data.draw(st.integers(3, 6)) for _ in range(dims)]
    check(model_of(nodes, {"x": [1, 4, *sizes]}, ["y"], constants))


@bounded
@given(window=windows(pool=True), ceil=st.booleans(), relu=st.booleans())
def test_max_pool(window: dict[str, Any], ceil: bool, relu: bool) -> None:
    sizes = window.pop("sizes")
    window.pop("dilations")
    nodes = [node("Relu" if relu else "Identity", ["t"], ["r"])]
    nodes.append(node("MaxPool", ["r"], ["y"], ceil_mode=int(ceil), **window))
    model = prefixed([1, 4, *sizes], nodes, ["y"])
    assume(not ceil or not unsupported(model))  # windows beyond the input, of which nobody agrees
    check(model)


@bounded
@given(window=windows(pool=True), counted=st.booleans())
def test_average_pool(window: dict[str, Any], counted: bool) -> None:
    sizes = window.pop("sizes")
    window.pop("dilations")
    pool = node("AveragePool", ["t"], ["y"], count_include_pad=int(counted), **window)
    check(prefixed([1, 4, *sizes], [pool], ["y"]), int8_db=22)


@bounded
@given(rank=st.integers(2, 4), activation=st.sampled_from(["Relu", "Sigmoid", None]))
def test_batch_normalization(rank: int, activation: str | None) -> None:
    shape = [2, 5, 6, 7][:rank]
    constants = {n: normal([5], i) for i, n in enumerate("sbm")} | {"v": np.abs(normal([5], 9)) + 0.1}
    nodes = [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"])]
    nodes.append(node(activation or "Identity", ["n"], ["y"]))
    check(model_of(nodes, {"x": shape}, ["y"], constants))


BINARY = ["Add", "Sub", "Mul", "Max", "Min"]


@bounded
@given(data=st.data(), op=st.sampled_from([*BINARY, "Div"]), constant=st.booleans(), swap=st.booleans())
def test_binary(data: st.DataObject, op: str, constant: bool, swap: bool) -> None:
    rank = data.draw(st.integers(1, 5))
    shape = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    other = [data.draw(st.sampled_from([s, s, 1])) for s in shape][data.draw(st.integers(0, rank)) :]
    names = ["b", "a"] if swap else ["a", "b"]
    if op == "Div":  # of any numbers, by numbers that are not near zero
        assume(not swap)
        constant = True
    b = normal(other, 3)
    inputs: dict[str, Any] = {"a": shape} if constant else {"a": shape, "b": other}
    model = model_of(
        [node(op, names, ["y"])], inputs, ["y"], {"b": b + np.copysign(0.5, b)} if constant else {}
    )
    check(model, int8_db=22)


@bounded
@given(
    op=st.sampled_from(BINARY), other=st.sampled_from([[1, 5, 1, 1], [5, 1, 1], [6], [1], [], [1, 5, 7, 6]])
)
def test_binary_on_images(op: str, other: list[int]) -> None:
    model = prefixed([1, 5, 7, 6], [node(op, ["t", "c"], ["y"])], ["y"], constants={"c": normal(other, 5)})
    check(model)


@bounded
@given(
    op=st.sampled_from(
        [
            ("Relu", {}),
            ("LeakyRelu", {"alpha": 0.2}),
            ("Elu", {}),
            ("Sigmoid", {}),
            ("Tanh", {}),
            ("HardSwish", {}),
            ("HardSigmoid", {"alpha": 0.2, "beta": 0.4}),
            ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
            ("Exp", {}),
            ("Abs", {}),
            ("Neg", {}),
            ("Erf", {}),
            ("Sin", {}),
            ("Cos", {}),
            ("Floor", {}),
            ("Ceil", {}),
            ("Round", {}),
        ]
    ),
    rank=st.integers(1, 4),
    image=st.booleans(),
)
def test_unary(op: tuple[str, dict[str, Any]], rank: int, image: bool) -> None:
    unary = node(op[0], ["t" if image else "x"], ["y"], **op[1])
    shape = [2, 3, 5, 4][: max(rank, 3) if image else rank]
    model = prefixed(shape, [unary], ["y"]) if image else model_of([unary], {"x": shape}, ["y"])
    step = op[0] in ("Floor", "Ceil", "Round")
    check(model, float_db=80 if op[0] == "Erf" else 90, int8_db=None if step else 24, float_fallback=True)


@bounded
@given(op=st.sampled_from(["Sqrt", "Log", "Reciprocal"]), rank=st.integers(1, 4))
def test_unary_of_positive(op: str, rank: int) -> None:
    nodes = [
        node("Abs", ["x"], ["a"]),
        node("Add", ["a", "half"], ["p"]),
        node(op, ["p"], ["y"]),
    ]
    model = model_of(nodes, {"x": [3, 4, 2, 2][:rank]}, ["y"], {"half": np.float32(0.5)})
    check(model, float_fallback=True)


@bounded
@given(power=st.sampled_from([2.0, 3.0, 0.5, -0.5, 1.5]))
def test_pow(power: float) -> None:
    nodes = [node("Abs", ["x"], ["a"]), node("Add", ["a", "half"], ["p"]), node("Pow", ["p", "e"], ["y"])]
    constants = {"half": np.float32(0.5), "e": np.float32(power)}
    check(model_of(nodes, {"x": [3, 4]}, ["y"], constants), float_fallback=True)


@bounded
@given(
    bounds=st.sampled_from([(0, 6), (-1, 1), (0, None), (-0.5, 0.7), (0.1, 0.5), (None, 0.4)]),
    conv=st.booleans(),
)
def test_clip(bounds: tuple[float | None, float | None], conv: bool) -> None:
    constants = {n: np.float32(b) for n, b in zip("lh", bounds, strict=True) if b is not None}
    names = [n if b is not None else "" for n, b in zip("lh", bounds, strict=True)]
    clip = node("Clip", ["t" if conv else "x", *names], ["y"])
    shape = [1, 3, 5, 5]
    check(
        prefixed(shape, [clip], ["y"], constants=constants)
        if conv
        else model_of([clip], {"x": shape}, ["y"], constants)
    )


@bounded
@given(slope=st.sampled_from([[3, 1, 1], [1], [3, 5, 4], [1, 1, 1]]), image=st.booleans())
def test_prelu(slope: list[int], image: bool) -> None:
    constants = {"s": normal(slope, 2)}
    prelu = node("PRelu", ["t" if image else "x", "s"], ["y"])
    shape = [1, 3, 5, 4]
    check(
        prefixed(shape, [prelu], ["y"], constants=constants)
        if image
        else model_of([prelu], {"x": shape}, ["y"], constants)
    )


@bounded
@given(
    op=st.sampled_from(["Softmax", "LogSoftmax"]), rank=st.integers(1, 4), data=st.data(), image=st.booleans()
)
def test_softmax(op: str, rank: int, data: st.DataObject, image: bool) -> None:
    shape = [2, 3, 4, 5][: max(rank, 3) if image else rank]
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    made = node(op, ["t" if image else "x"], ["y"], axis=axis)
    check(prefixed(shape, [made], ["y"]) if image else model_of([made], {"x": shape}, ["y"]), int8_db=22)


@bounded
@given(
    op=st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"]),
    data=st.data(),
    keep=st.booleans(),
    image=st.booleans(),
)
def test_reductions(op: str, data: st.DataObject, keep: bool, image: bool) -> None:
    shape = [2, 3, 4, 5][: 4 if image else data.draw(st.integers(1, 4))]
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    name = "t" if image else "x"
    constants = {"a": np.array(axes, np.int64)} if op == "ReduceSum" else {}
    made = (
        node(op, [name, "a"], ["y"], keepdims=int(keep))
        if constants
        else node(op, [name], ["y"], axes=axes, keepdims=int(keep))
    )
    model = (
        prefixed(shape, [made], ["y"], constants=constants)
        if image
        else model_of([made], {"x": shape}, ["y"], constants)
    )
    check(model, int8_db=None if op == "ReduceProd" else 18, float_fallback=True)


@bounded
@given(op=st.sampled_from(["GlobalAveragePool", "GlobalMaxPool"]), rank=st.integers(3, 4))
def test_global_pools(op: str, rank: int) -> None:
    check(prefixed([2, 3, 6, 5][:rank], [node(op, ["t"], ["y"])], ["y"]), int8_db=20)


@bounded
@given(op=st.sampled_from(["ArgMax", "ArgMin"]), axis=st.integers(-4, 3), keep=st.booleans())
def test_arg(op: str, axis: int, keep: bool) -> None:
    made = node(op, ["t"], ["y"], axis=axis, keepdims=int(keep))
    check(prefixed([2, 3, 4, 5], [made], ["y"]), int8_db=None)


@bounded
@given(
    target=st.sampled_from([[2, 60], [2, 3, 20], [2, 12, 5], [6, 4, 5], [2, 3, 2, 2, 5], [-1], [2, 20, 3, 1]])
)
def test_reshape(target: list[int]) -> None:
    constants = {"s": np.array(target, np.int64)}
    nodes = [node("Reshape", ["t", "s"], ["r"]), node("Add", ["r", "r"], ["y"])]
    check(prefixed([2, 3, 4, 5], nodes, ["y"], constants=constants))


@bounded
@given(perm=st.permutations([0, 1, 2, 3]), again=st.permutations([0, 1, 2, 3]))
def test_transpose(perm: list[int], again: list[int]) -> None:
    nodes = [
        node("Transpose", ["t"], ["p"], perm=perm),
        node("Sigmoid", ["p"], ["s"]),
        node("Transpose", ["s"], ["y"], perm=again),
    ]
    check(prefixed([2, 3, 4, 5], nodes, ["y"]))


@bounded
@given(axes=st.sampled_from([[0], [2], [1, 2], [4], [-1]]))
def test_unsqueeze_and_squeeze(axes: list[int]) -> None:
    nodes = [
        node("Unsqueeze", ["t", "a"], ["u"]),
        node("Sigmoid", ["u"], ["s"]),
        node("Squeeze", ["s", "a"], ["y"]),
    ]
    check(prefixed([1, 3, 4, 5], nodes, ["y"], constants={"a": np.array(axes, np.int64)}))


@bounded
@given(axis=st.integers(-4, 3), with_constant=st.booleans())
def test_concat_and_split(axis: int, with_constant: bool) -> None:
    nodes = [
        node("Sigmoid", ["t"], ["s"]),
        node("Concat", ["s", "t", "k" if with_constant else "s"], ["c"], axis=axis),
        node("Split", ["c", "n"], ["y", "z"], axis=axis),
    ]
    shape = [2, 3, 4, 5]
    total = shape[axis] * 3
    constants = {"k": normal(shape, 4), "n": np.array([1, total - 1], np.int64)}
    check(prefixed(shape, nodes, ["y", "z"], constants=constants))


@bounded
@given(data=st.data())
def test_slice(data: st.DataObject) -> None:
    shape = [2, 5, 6, 7]
    axes = data.draw(st.lists(st.integers(0, 3), unique=True, min_size=1))
    starts, ends, steps = [], [], []
    for axis in axes:
        step = data.draw(st.sampled_from([1, 1, 2, -1, -2]))
        low = data.draw(st.integers(0, shape[axis] - 2))
        high = data.draw(st.integers(low + 1, shape[axis]))
        starts.append(low if step > 0 else high - 1)
        ends.append(high if step > 0 else (low - 1 if low > 0 else -100))
        steps.append(step)
    constants = {
        n: np.array(v, np.int64)
        for n, v in zip(("b", "e", "a", "s"), (starts, ends, axes, steps), strict=True)
    }
    check(prefixed(shape, [node("Slice", ["t", "b", "e", "a", "s"], ["y"])], ["y"], constants=constants))


@bounded
@given(mode=st.sampled_from(["constant", "reflect"]), value=st.sampled_from([0.0, 1.5]), data=st.data())
def test_pad(mode: str, value: float, data: st.DataObject) -> None:
    pads = [0, *(data.draw(st.integers(0, 2)) for _ in range(3))] * 2
    constants = {"p": np.array(pads, np.int64), "v": np.float32(value)}
    inputs = ["t", "p", "v"] if mode == "constant" else ["t", "p"]
    check(prefixed([1, 3, 4, 5], [node("Pad", inputs, ["y"], mode=mode)], ["y"], constants=constants))


@bounded
@given(
    mode=st.sampled_from(["nearest", "linear"]),
    coordinates=st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]),
    rounding=st.sampled_from(["floor", "round_prefer_floor", "round_prefer_ceil", "ceil"]),
    sizes=st.tuples(st.integers(2, 13), st.integers(2, 13)),
)
def test_resize(mode: str, coordinates: str, rounding: str, sizes: tuple[int, int]) -> None:
    constants = {"z": np.array([1, 3, *sizes], np.int64)}
    made = node(
        "Resize",
        ["t", "", "", "z"],
        ["y"],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode=rounding,
    )
    check(prefixed([1, 3, 5, 6], [made], ["y"], constants=constants))


@bounded
@given(mode=st.sampled_from(["DCR", "CRD"]), block=st.sampled_from([2, 3]))
def test_depth_and_space(mode: str, block: int) -> None:
    nodes = [
        node("DepthToSpace", ["t"], ["d"], blocksize=block, mode=mode),
        node("SpaceToDepth", ["d"], ["y"], blocksize=block),
    ]
    check(prefixed([1, 2 * block * block, 3, 4], nodes, ["y"]))


@bounded
@given(axis=st.integers(-4, 3), indices=st.sampled_from([[0, 1], [-1], [[1, 0], [0, -1]], 1]))
def test_gather(axis: int, indices: Any) -> None:
    constants = {"i": np.array(indices, np.int64)}
    check(prefixed([2, 3, 4, 5], [node("Gather", ["t", "i"], ["y"], axis=axis)], ["y"], constants=constants))


@bounded
@given(rank=st.integers(1, 4), grow=st.booleans())
def test_expand_and_tile(rank: int, grow: bool) -> None:
    shape = [1, 3, 1, 2][:rank]
    wide = ([4] if grow and rank < 4 else []) + [s if s > 1 else 3 for s in shape]
    constants = {"s": np.array(wide, np.int64), "r": np.array([2, *[1] * (len(wide) - 1)], np.int64)}
    nodes = [node("Expand", ["x", "s"], ["e"]), node("Tile", ["e", "r"], ["y"])]
    check(model_of(nodes, {"x": shape}, ["y"], constants))


@bounded
@given(
    transposes=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from([None, [6], [1, 6], [1]]),
    alpha=st.sampled_from([1.0, 0.5]),
)
def test_gemm(transposes: tuple[bool, bool], bias: list[int] | None, alpha: float) -> None:
    a, b = transposes
    constants = {"w": normal([6, 5] if b else [5, 6])}
    if bias is not None:
        constants["c"] = normal(bias, 3)
    made = node("Gemm", ["x", *constants], ["y"], transA=int(a), transB=int(b), alpha=alpha, beta=0.7)
    check(model_of([made], {"x": [5, 3] if a else [3, 5]}, ["y"], constants))


@bounded
@given(rank=st.integers(2, 4), bias=st.booleans(), relu=st.booleans())
def test_matmul(rank: int, bias: bool, relu: bool) -> None:
    shape = [2, 3, 4, 5][4 - rank :]
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]) if bias else node("Abs", ["m"], ["a"]),
    ]
    nodes.append(node("Relu" if relu else "Identity", ["a"], ["y"]))
    check(model_of(nodes, {"x": shape}, ["y"], {"w": normal([5, 6]), "b": normal([6], 2)}))


@bounded
@given(flatten=st.booleans(), via=st.sampled_from(["Gemm", "MatMul"]))
def test_flattened_image_meets_weights(flatten: bool, via: str) -> None:
    constants = {"w": normal([60, 7]), "s": np.array([2, -1], np.int64)}
    flat = node("Flatten", ["t"], ["f"]) if flatten else node("Reshape", ["t", "s"], ["f"])
    check(prefixed([2, 3, 4, 5], [flat, node(via, ["f", "w"], ["y"])], ["y"], constants=constants))


@bounded
@given(to=st.sampled_from([TensorProto.INT32, TensorProto.INT64]))
def test_cast(to: int) -> None:
    nodes = [node("Cast", ["x"], ["i"], to=to), node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    check(model_of(nodes, {"x": [3, 4]}, ["y"]), int8_db=None)


def test_bytes_become_numbers_exactly() -> None:
    nodes = [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), node("Mul", ["f", "s"], ["y"])]
    model = model_of(nodes, {"x": [1, 8]}, ["y"], {"s": np.float32(0.1)}, kinds={"x": TensorProto.UINT8})
    check(model, int8_db=30)
