"""Random small networks of the parts that pruning has to follow, and what masks do to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.onnxruntime import ReferenceProgram

Arrays = dict[str, NDArray[Any]]
SIDE = 6


class Net:
    """A network under construction; `x` is its last tensor, of `channels` channels.

    Args:
        seed: Of the weights.
    """

    def __init__(self, seed: int, channels: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.x, self.channels, self.inputs = "image", channels, channels

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.constant(np.asarray(self.rng.normal(size=shape) / scale, np.float32))

    def constant(self, array: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{op.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"{op.lower()}{len(self.nodes)}", **attributes))
        return names[0]

    def conv(self, x: str, into: int, out: int, kernel: int = 3, group: int = 1, bias: bool = True) -> str:
        extra = [self.weight(out)] if bias else []
        w = self.weight(out, into // group, kernel, kernel)
        return self.node("Conv", x, w, *extra, pads=[kernel // 2] * 4, group=group)

    def model(self, *, head: str = "pool") -> onnx.ModelProto:
        """Return the network with a head: ``pool``, ``flatten``, or ``last`` for channels last."""
        if head == "pool":
            flat = self.node("Flatten", self.node("GlobalAveragePool", self.x))
            width = self.channels
        elif head == "flatten":
            flat, width = self.node("Flatten", self.x), self.channels * SIDE * SIDE
        else:
            last = self.node("Transpose", self.x, perm=[0, 2, 3, 1])
            width = self.channels * SIDE * SIDE
            flat = self.node("Reshape", last, self.ints(1, width))
        self.nodes.append(helper.make_node("MatMul", [flat, self.weight(width, 4)], ["product"], "head"))
        self.nodes.append(helper.make_node("Add", ["product", self.weight(4)], ["scores"], "head_bias"))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, self.inputs, SIDE, SIDE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made


def _plain(n: Net) -> None:
    n.x, n.channels = n.node("Relu", n.conv(n.x, n.channels, 8)), 8


def _normalized(n: Net) -> None:
    n.x, n.channels = n.conv(n.x, n.channels, 12, bias=False), 12
    parts = [n.weight(12), n.weight(12), n.weight(12), n.constant(np.full(12, 1.5, np.float32))]
    n.x = n.node("Sigmoid", n.node("BatchNormalization", n.x, *parts))


def _residual(n: Net) -> None:
    y = n.node("Relu", n.conv(n.x, n.channels, 8))
    n.x = n.node("Relu", n.node("Add", n.conv(y, 8, n.channels), n.x))


def _inverted(n: Net) -> None:
    y = n.node("HardSwish", n.conv(n.x, n.channels, 16, 1))
    y = n.node("HardSwish", n.conv(y, 16, 16, group=16))
    n.x, n.channels = n.conv(y, 16, 8, 1), 8


def _multiplied(n: Net) -> None:
    n.x, n.channels = n.conv(n.x, n.channels, 2 * n.channels, group=n.channels), 2 * n.channels


def _grouped(n: Net) -> None:
    y = n.node("Relu", n.conv(n.x, n.channels, 8, 1))
    n.x, n.channels = n.node("Relu", n.conv(y, 8, 16, group=4)), 16


def _concatenated(n: Net) -> None:
    a, b = n.node("Relu", n.conv(n.x, n.channels, 8)), n.conv(n.x, n.channels, 4, 1)
    n.x, n.channels = n.node("Concat", a, b, n.x, axis=1), 12 + n.channels


def _split(n: Net) -> None:
    y = n.conv(n.x, n.channels, 16, 1)
    a = n.node("Split", y, n.ints(6, 10), outputs=2, axis=1)
    b = n.nodes[-1].output[1]
    n.x, n.channels = n.node("Concat", n.conv(a, 6, 6), n.node("Relu", b), axis=1), 16


def _sliced(n: Net) -> None:
    y = n.node("Relu", n.conv(n.x, n.channels, 12))
    cut = n.node("Slice", y, n.ints(2), n.ints(10), n.ints(1))
    n.x, n.channels = n.node("Mul", cut, n.weight(8, 1, 1)), 8


def _gated(n: Net) -> None:
    n.x, n.channels = n.conv(n.x, n.channels, 12), 12
    y = n.node("Relu", n.conv(n.node("GlobalAveragePool", n.x), 12, 8, 1))
    n.x = n.node("Mul", n.x, n.node("Sigmoid", n.conv(y, 8, 12, 1)))


def _shuffled(n: Net) -> None:
    y = n.node("Relu", n.conv(n.x, n.channels, 12, 1))
    y = n.node("Reshape", y, n.ints(1, 3, 4, SIDE, SIDE))
    y = n.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    n.x, n.channels = n.node("Reshape", y, n.ints(0, 12, SIDE, SIDE)), 12


def _resized(n: Net) -> None:
    y = n.node("MaxPool", n.conv(n.x, n.channels, 8), kernel_shape=[2, 2], strides=[2, 2])
    y = n.node("Pad", n.node("PRelu", y, n.weight(8, 1, 1)), n.ints(0, 0, 0, 0, 0, 0, 0, 0))
    sizes = n.ints(1, 8, SIDE, SIDE)
    n.x, n.channels = n.node("Resize", y, "", "", sizes, mode="nearest"), 8


def _transposed(n: Net) -> None:
    y = n.node("Relu", n.conv(n.x, n.channels, 8))
    up = n.node("ConvTranspose", y, n.weight(8, 8, 3, 3), n.weight(8), pads=[1] * 4)
    n.x, n.channels = n.node("ConvTranspose", up, n.weight(8, 1, 3, 3), pads=[1] * 4, group=8), 8


PARTS = {
    "plain": _plain,
    "normalized": _normalized,
    "residual": _residual,
    "inverted": _inverted,
    "multiplied": _multiplied,
    "grouped": _grouped,
    "concatenated": _concatenated,
    "split": _split,
    "sliced": _sliced,
    "gated": _gated,
    "shuffled": _shuffled,
    "resized": _resized,
    "transposed": _transposed,
}


def network(parts: Sequence[str], head: str, seed: int) -> onnx.ModelProto:
    """Return a network of parts in their order, between a first convolution and a head."""
    net = Net(seed)
    _plain(net)
    for part in parts:
        PARTS[part](net)
    return net.model(head=head)


def attention(seed: int = 0, heads: int = 4, size: int = 5) -> onnx.ModelProto:
    """A block of a transformer: heads of queries, keys and values, and a feed-forward network."""
    n, width = Net(seed), heads * size
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        y = n.node("Add", n.node("MatMul", "image", n.weight(12, width)), n.weight(width))
        y = n.node("Reshape", y, n.ints(0, -1, heads, size))
        parts.append(n.node("Transpose", y, perm=perm))
    scores = n.node("Softmax", n.node("MatMul", parts[0], parts[1]), axis=-1)
    mixed = n.node("Transpose", n.node("MatMul", scores, parts[2]), perm=[0, 2, 1, 3])
    mixed = n.node("Reshape", mixed, n.ints(1, 7, width))
    mixed = n.node("Add", n.node("MatMul", mixed, n.weight(width, 12)), "image")
    normal = n.node("LayerNormalization", mixed, n.weight(12), n.weight(12))
    hidden = n.node("Gelu", n.node("Add", n.node("MatMul", normal, n.weight(12, 24)), n.weight(24)))
    n.nodes.append(helper.make_node("MatMul", [hidden, n.weight(24, 12)], ["scores"], "out"))
    graph = helper.make_graph(
        n.nodes,
        "block",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 7, 12])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 7, 12])],
        [numpy_helper.from_array(a, name) for name, a in n.weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def inputs(model: onnx.ModelProto, count: int, seed: int = 0) -> list[Arrays]:
    """Return random inputs of a model of one input."""
    rng = np.random.default_rng(seed)
    (given,) = model.graph.input
    shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
    return [{given.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def masked(model: onnx.ModelProto, masks: Mapping[str, Mapping[int, NDArray[np.bool_]]]) -> onnx.ModelProto:
    """Return a model whose tensors are zero along an axis, wherever a node gives them.

    Args:
        model: Left as it is.
        masks: By tensor and axis: which channels stay.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    shapes = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in copy.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            current = name
            for axis, keep in masks.get(name, {}).items():
                shape = [1] * shapes[name]
                shape[axis] = len(keep)
                mask = numpy_helper.from_array(keep.astype(np.float32).reshape(shape), f"{name}/mask{axis}")
                copy.graph.initializer.append(mask)
                before = f"{name}/before{axis}"
                if current == name:
                    node.output[index] = before
                else:
                    nodes[-1].output[0] = before
                nodes.append(helper.make_node("Mul", [before, mask.name], [name]))
                current = before
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return copy


def run(model: onnx.ModelProto, sample: Arrays) -> NDArray[Any]:
    """Return the scores of a model."""
    with ReferenceProgram(model) as program:
        return program.run(sample)["scores"]
