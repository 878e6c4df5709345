"""ResNet50 and MobileNetV2 as structures: their layers with random weights, for speed and compile time.

Weights are drawn as He et al. (2015) propose; batch normalization divides by a fixed standard deviation and
the last one of a residual branch scales by 0.3, so that activations keep their size through the depth. No
accuracy can be read from such models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT = (1, 3, 224, 224)
CLASSES = 1000
_RESIDUAL_GAIN = 0.3


@dataclass
class _Builder:
    """A graph under construction; each method adds a layer and returns the name of its output."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def weight(self, value: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32, order="C"), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def conv(
        self, x: str, channels: tuple[int, int], kernel: int, stride: int, group: int = 1, gain: float = 1.0
    ) -> str:
        """A convolution without bias, and batch normalization."""
        into, out = channels
        fan_in = into // group * kernel * kernel
        w = self.rng.normal(0, np.sqrt(2 / fan_in), (out, into // group, kernel, kernel))
        pads = [kernel // 2] * 4
        x = self.node(
            "Conv",
            [x, self.weight(w)],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=pads,
            group=group,
        )
        scale = gain * self.rng.uniform(0.8, 1.2, out)
        bias = self.rng.normal(0, 0.1, out)
        parts = [scale, bias, np.zeros(out), np.ones(out)]
        return self.node("BatchNormalization", [x, *map(self.weight, parts)], epsilon=1e-5)

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, self.weight(np.array(0.0)), self.weight(np.array(6.0))])

    def head(self, x: str, channels: int) -> str:
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        w = self.rng.normal(0, np.sqrt(1 / channels), (CLASSES, channels))
        return self.node("Gemm", [x, self.weight(w), self.weight(np.zeros(CLASSES))], transB=1)

    def model(self, name: str, output: str) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "scores"
        assert output != "scores"
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, INPUT)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, CLASSES))],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made


def resnet50() -> onnx.ModelProto:
    """ResNet50 v1.5: the stride of a block is in its 3x3 convolution."""
    b = _Builder(np.random.default_rng(0))
    x = b.node("Relu", [b.conv("image", (3, 64), 7, 2)])
    x = b.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            y = b.node("Relu", [b.conv(x, (channels, width), 1, 1)])
            y = b.node("Relu", [b.conv(y, (width, width), 3, stride)])
            y = b.conv(y, (width, 4 * width), 1, 1, gain=_RESIDUAL_GAIN)
            skip = b.conv(x, (channels, 4 * width), 1, stride) if block == 0 else x
            x = b.node("Relu", [b.node("Add", [y, skip])])
            channels = 4 * width
    return b.model("resnet50", b.head(x, channels))


def resnet18() -> onnx.ModelProto:
    """ResNet18: two 3x3 convolutions in each block."""
    b = _Builder(np.random.default_rng(0))
    x = b.node("Relu", [b.conv("image", (3, 64), 7, 2)])
    x = b.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for block in range(2):
            stride = first_stride if block == 0 else 1
            y = b.node("Relu", [b.conv(x, (channels, width), 3, stride)])
            y = b.conv(y, (width, width), 3, 1, gain=_RESIDUAL_GAIN)
            skip = b.conv(x, (channels, width), 1, stride) if stride > 1 or channels != width else x
            x = b.node("Relu", [b.node("Add", [y, skip])])
            channels = width
    return b.model("resnet18", b.head(x, channels))


def mobilenet_v2(width_multiplier: float = 1.0) -> onnx.ModelProto:
    """MobileNetV2, all but its last convolution so many times as wide, at most once (Sandler et al. 2018)."""
    b = _Builder(np.random.default_rng(0))
    channels = _wide(32, width_multiplier)
    x = b.relu6(b.conv("image", (3, channels), 3, 2))
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, full, blocks, first_stride in stages:
        width = _wide(full, width_multiplier)
        for block in range(blocks):
            stride, inner = first_stride if block == 0 else 1, expansion * channels
            y = b.relu6(b.conv(x, (channels, inner), 1, 1)) if expansion > 1 else x
            y = b.relu6(b.conv(y, (inner, inner), 3, stride, group=inner))
            residual = stride == 1 and channels == width
            y = b.conv(y, (inner, width), 1, 1, gain=_RESIDUAL_GAIN if residual else 1.0)
            x = b.node("Add", [x, y]) if residual else y
            channels = width
    x = b.relu6(b.conv(x, (channels, 1280), 1, 1))
    return b.model("mobilenet_v2", b.head(x, 1280))


def _wide(channels: int, multiplier: float) -> int:
    """Return a number of channels that is a multiple of eight, as the paper's authors have it."""
    return max(8, int(channels * multiplier + 4) // 8 * 8)


STRUCTURES: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
}


def pictures(count: int) -> NDArray[np.float32]:
    """Smooth random pictures, float32[count, 3, 224, 224], of mean 0 and standard deviation about 1."""
    rng = np.random.default_rng(1)
    coarse = rng.standard_normal((count, 3, 28, 28)).astype(np.float32)
    fine = 0.3 * rng.standard_normal((count, *INPUT[1:]))
    return np.asarray(coarse.repeat(8, axis=2).repeat(8, axis=3) + fine, np.float32)
