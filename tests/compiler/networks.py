"""Tiny real models for the tests of the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, NDArray[Any]]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str] | Mapping[str, Sequence[int | str]],
    weights: dict[str, NDArray[Any]] | None = None,
    *,
    opset: int = 17,
    input_type: int = TensorProto.FLOAT,
    output_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a checked model of the given nodes; shapes of outputs are needed where onnx infers none."""
    shapes = outputs if isinstance(outputs, Mapping) else {}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(n, input_type, list(shape)) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, output_type, shapes.get(n)) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    ids = [helper.make_opsetid("", opset)]
    domains = {n.domain for n in nodes} - {""}
    ids += [helper.make_opsetid(d, 1) for d in sorted(domains)]
    model = helper.make_model(graph, opset_imports=ids, ir_version=8)
    if not domains:
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
    return model


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return np.asarray(rng.normal(size=shape) / np.sqrt(fan_in), np.float32)


def cnn() -> onnx.ModelProto:
    """A small classifier, ``image`` [1,3,16,16] to ``scores`` [1,5], with a Relu, a Clip and two pools."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"], "clip2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "pool2"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], "head", transB=1),
    ]
    weights = {
        "w1": _normal(rng, 8, 3, 3, 3),
        "b1": _normal(rng, 8),
        "w2": _normal(rng, 12, 8, 3, 3),
        "b2": _normal(rng, 12),
        "low": np.float32(0),
        "high": np.float32(6),
        "w3": _normal(rng, 5, 12),
        "b3": _normal(rng, 5),
    }
    return model_of(
        nodes, {"image": [1, 3, 16, 16]}, ["scores"], {k: np.asarray(v) for k, v in weights.items()}
    )


def residual() -> onnx.ModelProto:
    """Two residual blocks, the second with a projection on its shortcut."""
    rng = np.random.default_rng(2)
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "stem", pads=pads),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "conv1", pads=pads),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=pads),
        helper.make_node("Add", ["c2", "r0"], ["a1"], "add1"),
        helper.make_node("Relu", ["a1"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "conv3", pads=pads, strides=[2, 2]),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("Conv", ["r3", "w4"], ["c4"], "conv4", pads=pads),
        helper.make_node("Conv", ["r2", "w5"], ["c5"], "shortcut", strides=[2, 2]),
        helper.make_node("Add", ["c5", "c4"], ["a2"], "add2"),
        helper.make_node("Relu", ["a2"], ["features"], "relu4"),
    ]
    weights: Arrays = {
        "w0": _normal(rng, 8, 3, 3, 3),
        "w1": _normal(rng, 8, 8, 3, 3),
        "w2": _normal(rng, 8, 8, 3, 3),
        "w3": _normal(rng, 16, 8, 3, 3),
        "w4": _normal(rng, 16, 16, 3, 3),
        "w5": _normal(rng, 16, 8, 1, 1),
    }
    return model_of(nodes, {"image": [1, 3, 16, 16]}, ["features"], weights)


def mlp() -> onnx.ModelProto:
    """Two layers as exporters of Keras write them, MatMul then Add; batch size free."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], "dense1"),
        helper.make_node("Add", ["m1", "b1"], ["d1"], "bias1"),
        helper.make_node("Tanh", ["d1"], ["t1"], "tanh"),
        helper.make_node("MatMul", ["t1", "w2"], ["m2"], "dense2"),
        helper.make_node("Add", ["b2", "m2"], ["y"], "bias2"),
    ]
    weights: Arrays = {
        "w1": _normal(rng, 16, 32),
        "b1": _normal(rng, 32),
        "w2": _normal(rng, 32, 4),
        "b2": _normal(rng, 1, 4),
    }
    return model_of(nodes, {"x": ["batch", 16]}, ["y"], weights)


def lstm() -> onnx.ModelProto:
    """An LSTM and a linear head, ``x`` [5,1,8] to ``y`` [1,1,3]."""
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], "lstm", hidden_size=6),
        helper.make_node("MatMul", ["h", "head"], ["y"], "head"),
    ]
    weights: Arrays = {"w": _normal(rng, 1, 24, 8), "r": _normal(rng, 1, 24, 6), "head": _normal(rng, 6, 3)}
    return model_of(nodes, {"x": [5, 1, 8]}, ["y"], weights)


def upsampler() -> onnx.ModelProto:
    """Conv, BatchNormalization, ConvTranspose: ``x`` [1,4,8,8] to ``y`` [1,3,16,16]."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("ConvTranspose", ["r", "w2"], ["y"], "up", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    weights: Arrays = {
        "w1": _normal(rng, 6, 4, 3, 3),
        "s": np.full(6, 1.5, np.float32),
        "o": _normal(rng, 6),
        "m": _normal(rng, 6),
        "v": np.abs(_normal(rng, 6)) + np.float32(0.5),
        "w2": _normal(rng, 6, 3, 2, 2),
    }
    return model_of(nodes, {"x": [1, 4, 8, 8]}, ["y"], weights)


def camera() -> onnx.ModelProto:
    """A head as folded pre-processing writes it: uint8 NHWC pixels, cast, transposed, scaled; then a Conv."""
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("Cast", ["frame"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], "layout", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["t", "scale"], ["s"], "scaling"),
        helper.make_node("Add", ["s", "shift"], ["n"], "shifting"),
        helper.make_node("Conv", ["n", "w"], ["y"], "conv"),
    ]
    weights: Arrays = {
        "scale": np.array([1 / 64, 1 / 60, 1 / 70], np.float32).reshape(1, 3, 1, 1),
        "shift": np.array([-2, -1.9, -1.8], np.float32).reshape(1, 3, 1, 1),
        "w": _normal(rng, 4, 3, 3, 3),
    }
    return model_of(nodes, {"frame": [1, 8, 8, 3]}, ["y"], weights, input_type=TensorProto.UINT8)


def transformer(outlier: float = 1.0) -> onnx.ModelProto:
    """One block of a transformer, ``tokens`` int64 [1,8] to ``y`` [1,8,16], with a vocabulary of 256.

    Args:
        outlier: Factor on one channel of what both LayerNormalizations give.
    """
    rng = np.random.default_rng(8)
    make = helper.make_node
    nodes = [
        make("Gather", ["words", "tokens"], ["e"], "embedding"),
        make("LayerNormalization", ["e", "g1", "o1"], ["n1"], "norm1"),
        *(make("MatMul", ["n1", f"w{p}"], [f"m{p}"], f"matmul_{p}") for p in "qkv"),
        *(make("Add", [f"m{p}", f"b{p}"], [p], f"add_{p}") for p in "qkv"),
        make("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        make("MatMul", ["q", "kt"], ["logits"], "attention"),
        make("Softmax", ["logits"], ["a"], "softmax"),
        make("MatMul", ["a", "v"], ["c"], "mix"),
        make("MatMul", ["c", "wp"], ["p"], "project"),
        make("Add", ["p", "e"], ["r1"], "residual1"),
        make("LayerNormalization", ["r1", "g2", "o2"], ["n2"], "norm2"),
        make("MatMul", ["n2", "w1"], ["m1"], "wide"),
        make("Add", ["m1", "b1"], ["d1"], "wide_bias"),
        make("Div", ["d1", "root"], ["s"], "gelu1"),
        make("Erf", ["s"], ["erf"], "gelu2"),
        make("Add", ["erf", "one"], ["f"], "gelu3"),
        make("Mul", ["d1", "f"], ["h"], "gelu4"),
        make("MatMul", ["h", "w2"], ["m2"], "narrow"),
        make("Add", ["m2", "r1"], ["y"], "residual2"),
    ]
    gain = np.ones(16, np.float32)
    gain[3] = outlier
    weights: Arrays = {
        "words": rng.normal(size=(256, 16)).astype(np.float32),
        **{n: gain.copy() for n in ("g1", "g2")},
        **{n: _normal(rng, 16) / np.float32(4) for n in ("o1", "o2", "bq", "bk", "bv")},
        **{n: _normal(rng, 16, 16) for n in ("wq", "wk", "wv", "wp")},
        "w1": _normal(rng, 16, 64),
        "b1": _normal(rng, 64),
        "w2": _normal(rng, 64, 16),
        "root": np.array(np.sqrt(2), np.float32),
        "one": np.array(1, np.float32),
    }
    # What the outlier meets is small, as in trained models.
    for name in ("wq", "wk", "wv", "w1"):
        weights[name][3] /= np.float32(outlier)
    return model_of(nodes, {"tokens": [1, 8]}, {"y": [1, 8, 16]}, weights, input_type=TensorProto.INT64)


def samples(model: onnx.ModelProto, count: int = 24, seed: int = 0) -> list[Arrays]:
    """Return seeded samples of a model's inputs; free dimensions become 1."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sample: Arrays = {}
        for value in model.graph.input:
            tensor = value.type.tensor_type
            shape = [d.dim_value or 1 for d in tensor.shape.dim]
            if tensor.elem_type in (TensorProto.UINT8, TensorProto.INT64):
                integer = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
                sample[value.name] = rng.integers(0, 256, shape, dtype=integer)
            else:
                sample[value.name] = rng.normal(size=shape).astype(np.float32)
        found.append(sample)
    return found


def run(model: onnx.ModelProto, sample: Arrays) -> list[NDArray[Any]]:
    """Run a model in ONNX Runtime with its optimizations on, as a device does."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, sample)]


def snr_db(wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """Return the signal-to-noise ratio over all outputs of all samples."""
    signal = sum(float(np.square(w, dtype=np.float64).sum()) for w in wanted)
    noise = sum(float(np.square(w.astype(np.float64) - g).sum()) for w, g in zip(wanted, got, strict=True))
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))
