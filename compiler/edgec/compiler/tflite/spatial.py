"""Windows that slide over images: explicit padding, and when TFLite's own SAME is exactly that.

ONNX pads each side by a number of its own. TFLite has VALID, and SAME, which puts the odd pixel at the end:
where ONNX's pads differ, a PAD before a VALID operator does what ONNX asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgec.compiler.tflite.flatbuffer import B, S
from edgec.compiler.tflite.graph import Node
from edgec.compiler.tflite.layout import channels_last
from edgec.compiler.tflite.lowering import Lowering
from edgec.compiler.tflite.registry import Refused

SAME, VALID = 0, 1


@dataclass(frozen=True)
class Window:
    """A window over [height, width].

    Attributes:
        kernel: Its size.
        strides: Its steps.
        dilations: Distances between its points.
        begins: Padding before, per axis; never negative.
        ends: Padding after, as much as the output really needs.
        sizes: Of the input.
        output: Of the output.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begins: tuple[int, int]
    ends: tuple[int, int]
    sizes: tuple[int, int]
    output: tuple[int, int]

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels that the window spans."""
        first, second = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        return first, second

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any((*self.begins, *self.ends))

    @property
    def is_same(self) -> bool:
        """Whether TFLite's SAME pads exactly so."""
        for size, out, extent, stride, begin in zip(
            self.sizes, self.output, self.extent, self.strides, self.begins, strict=True
        ):
            total = max((out - 1) * stride + extent - size, 0)
            if out != -(-size // stride) or begin != total // 2:
                return False
        return True


def read_window(lowering: Lowering, node: Node, kernel: Sequence[int]) -> Window:
    """Return the window of a Conv or pool over a value of three or four axes; 1-D counts as height one.

    Raises:
        Refused: There are more axes, or a pad is negative.
    """
    sizes, output = lowering.shape(node.inputs[0])[2:], lowering.shape(node.outputs[0])[2:]
    count = len(sizes)
    if count not in (1, 2):
        raise Refused(f"it works on {count} spatial axes", "1-D and 2-D are supported")
    strides = node.ints("strides", (1,) * count)
    dilations = node.ints("dilations", (1,) * count)
    begins = _begins(node, sizes, output, kernel, strides, dilations)
    if any(b < 0 for b in begins) or any(p < 0 for p in node.ints("pads", ())):
        raise Refused("it has negative pads", "crop with Slice instead")
    for size, out, stride, begin in zip(sizes, output, strides, begins, strict=True):
        # Shape inference counts this window, and ONNX Runtime leaves it out.
        if (out - 1) * stride >= size + begin:
            raise Refused("its last window lies beyond the input", "export it with ceil_mode=0")
    # The end padding the output needs: ceil_mode asks for more than `pads`, a stride may leave some over.
    ends = [
        max((o - 1) * s + (k - 1) * d + 1 - i - b, 0)
        for o, s, k, d, i, b in zip(output, strides, kernel, dilations, sizes, begins, strict=True)
    ]
    return Window(
        kernel=_two(kernel, 1),
        strides=_two(strides, 1),
        dilations=_two(dilations, 1),
        begins=_two(begins, 0),
        ends=_two(ends, 0),
        sizes=_two(sizes, 1),
        output=_two(output, 1),
    )


def _two(values: Sequence[int], first: int) -> tuple[int, int]:
    return (first, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _begins(
    node: Node,
    sizes: Sequence[int],
    output: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return list(node.ints("pads", (0,) * (2 * len(sizes)))[: len(sizes)])
    if auto == "VALID":
        return [0] * len(sizes)
    result = []
    for i, o, k, s, d in zip(sizes, output, kernel, strides, dilations, strict=True):
        total = max((o - 1) * s + (k - 1) * d + 1 - i, 0)
        result.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return result


def padded_image(
    lowering: Lowering, name: str, window: Window, *, lowest: bool = False, same: bool = True
) -> tuple[int, int]:
    """Return an image as [n, h, w, c], padded where it must be, and the padding option of what follows.

    Args:
        lowering: Where to write.
        name: Of the value of three or four axes.
        window: What slides over it.
        lowest: Whether to pad with the lowest number there is rather than with zero.
        same: Whether SAME may stand for pads that are equal to it.
    """
    image = lowering.take(name, channels_last(lowering.rank(name)))
    if not window.padded:
        return image, VALID
    if same and window.is_same:
        return image, SAME
    return pad_image(lowering, image, window.begins, window.ends, name, lowest=lowest), VALID


def pad_image(
    lowering: Lowering,
    image: int,
    begins: Sequence[int],
    ends: Sequence[int],
    name: str,
    *,
    lowest: bool = False,
) -> int:
    """Return an image of four axes with pixels added around it."""
    tensor = lowering.file.tensors[image]
    pads = [[0, 0], [begins[0], ends[0]], [begins[1], ends[1]], [0, 0]]
    shape = [d + sum(p) for d, p in zip(tensor.shape, pads, strict=True)]
    made = lowering.file.add_tensor(f"{name}/padded", shape, tensor.dtype, tensor.quant)
    amounts = lowering.int32(pads, f"{name}/pads")
    # The zero point of a range that starts at zero is the lowest integer, and PAD pads with the zero point.
    if not lowest or (tensor.quant is not None and tensor.quant.zero_point == np.iinfo(tensor.dtype).min):
        lowering.emit(B.PAD, [image, amounts], [made], S.PadOptionsT())
        return made
    if tensor.quant is not None:
        value = np.array(np.iinfo(tensor.dtype).min, tensor.dtype)
    else:
        value = np.array(np.finfo(np.float32).min, np.float32)  # not infinity: XNNPACK and NPUs refuse it
    constant = lowering.file.add_constant(f"{name}/lowest", value.reshape(1), tensor.quant)
    lowering.emit(B.PADV2, [image, amounts, constant], [made], S.PadV2OptionsT())
    return made
