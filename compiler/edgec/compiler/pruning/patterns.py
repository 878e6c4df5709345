"""Which weights of a layer are to be zero: two of every four, or the least important of all."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.pruning.linear import Linear
from edgec.errors import CompileError

TWO_OF_FOUR = "2:4"
UNSTRUCTURED = "unstructured"
_BLOCK, _ZEROS = 4, 2
# A sparse kernel wins over a dense one only in large layers: NVIDIA says from 256 channels on, and that a
# kernel of 3 x 3 counts as nine times the channels (github.com/NVIDIA/TensorRT, issues 3849 and 4065).
_COLUMNS, _ROWS = 256, 64
# What is smaller has little to compress, and much to lose: first and depthwise convolutions.
_WEIGHTS, _INPUTS = 1024, 16
_TEXT = re.compile(rf"{UNSTRUCTURED}:(?P<share>\d*\.?\d+)(?P<percent>%?)")


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A pattern of zeros.

    Attributes:
        kind: ``2:4``: of every four input channels in a row, two have weight zero, for every output channel
            and place of the kernel. ``unstructured``: zeros may be anywhere.
        share: Of the weights of a layer that become zero; 0.5 for ``2:4``.
        least_inputs: Of a layer that is to be ``2:4``: channels times kernel.
        least_outputs: Channels.
    """

    kind: str
    share: float
    least_inputs: int = _COLUMNS
    least_outputs: int = _ROWS

    def __str__(self) -> str:
        return self.kind if self.kind == TWO_OF_FOUR else f"{self.kind}:{self.share:g}"

    @property
    def label(self) -> str:
        """What it is called in names of forms: ``2:4 sparse``, ``80 % sparse``."""
        return f"{self.kind if self.kind == TWO_OF_FOUR else f'{100 * self.share:.3g} %'} sparse"

    @property
    def wants(self) -> str:
        """What a layer must be, in words."""
        if self.kind == TWO_OF_FOUR:
            return (
                "Conv of one group, Gemm or MatMul, with input channels in multiples of 4, at least "
                f"{self.least_inputs} inputs (channels times kernel) and {self.least_outputs} output channels"
            )
        return f"Conv, ConvTranspose, Gemm or MatMul with at least {_WEIGHTS} weights and {_INPUTS} inputs"

    def fits(self, layer: Linear) -> bool:
        """Return whether the layer can have the pattern, and whether that could pay."""
        groups, rows, columns = layer.matrix().shape
        if self.kind == TWO_OF_FOUR:
            return (
                groups == 1
                and layer.node.op_type != "ConvTranspose"
                and (columns // self.spread(layer)) % _BLOCK == 0
                and columns >= self.least_inputs
                and rows >= self.least_outputs
            )
        return columns >= _INPUTS and layer.weight.size >= _WEIGHTS

    def spread(self, layer: Linear) -> int:
        """Return how many columns of a layer's matrix belong to one channel: the size of its kernel."""
        return int(np.prod(layer.kernel, dtype=np.int64))

    def mask(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which weights become zero: those of the lowest scores.

        Args:
            scores: ``[rows, columns]``; for ``2:4`` neighbouring columns are neighbouring channels.
        """
        if self.kind == TWO_OF_FOUR:
            blocks = scores.reshape(scores.shape[0], -1, _BLOCK)
            rank = np.argsort(np.argsort(blocks, axis=2, kind="stable"), axis=2, kind="stable")
            return np.asarray((rank < _ZEROS).reshape(scores.shape))
        count = round(self.share * scores.size)
        mask = np.zeros(scores.size, np.bool_)
        mask[np.argsort(scores, axis=None, kind="stable")[:count]] = True
        return mask.reshape(scores.shape)


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that a text names: ``2:4``, ``unstructured:0.8`` or ``unstructured:80%``.

    Raises:
        CompileError: It names none.
    """
    if text == TWO_OF_FOUR:
        return Pattern(kind=TWO_OF_FOUR, share=_ZEROS / _BLOCK)
    match = _TEXT.fullmatch(text)
    share = float(match["share"]) / (100 if match["percent"] else 1) if match is not None else 0.0
    if not 0 < share < 1:
        raise CompileError(
            f"{text[:60]!r} is no way to prune: expected auto, a share between 0 and 1, 2:4, or "
            "unstructured:SHARE such as unstructured:0.5"
        )
    return Pattern(kind=UNSTRUCTURED, share=share)


def is_two_of_four(weights: NDArray[np.generic], axis: int) -> bool:
    """Return whether of every four weights in a row along an axis at least two are zero."""
    moved = np.moveaxis(weights != 0, axis, -1)
    if moved.shape[-1] % _BLOCK:
        return False
    return bool((moved.reshape(-1, _BLOCK).sum(axis=1) <= _BLOCK - _ZEROS).all())
