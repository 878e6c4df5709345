"""What numbers a file computes with."""

from __future__ import annotations

from enum import Enum


class Mode(str, Enum):
    """What weights and activations are in the file.

    Attributes:
        FLOAT32: Both float32.
        FLOAT16: Weights float16, unpacked by DEQUANTIZE; activations float32.
        INT8: Both int8, biases int32: full integer.
        DYNAMIC: Weights int8, activations float32, quantized anew in each call by hybrid kernels.
        INT16X8: Weights int8, activations int16, biases int64.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    DYNAMIC = "dynamic"
    INT16X8 = "int16x8"

    @property
    def integer(self) -> bool:
        """Whether activations are integers, whose ranges come from calibration."""
        return self in (Mode.INT8, Mode.INT16X8)


ALL = frozenset(Mode)
FLOAT_ONLY = frozenset({Mode.FLOAT32, Mode.FLOAT16, Mode.DYNAMIC})
NOT_INT16 = ALL - {Mode.INT16X8}
