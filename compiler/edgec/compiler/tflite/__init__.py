"""TFLite files straight from ONNX and a calibration table: no TensorFlow, no intermediate model."""

from edgec.compiler.tflite.modes import Mode
from edgec.compiler.tflite.writer import (
    TfliteModel,
    TfliteTensor,
    Unsupported,
    UnsupportedOperatorsError,
    unsupported,
    write_tflite,
)

__all__ = [
    "Mode",
    "TfliteModel",
    "TfliteTensor",
    "Unsupported",
    "UnsupportedOperatorsError",
    "unsupported",
    "write_tflite",
]
