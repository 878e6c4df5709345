"""The steps that a pipeline is made of, each a class of checked keys.

To add one: declare its keys in the module of its family, name it below, and say in the module of the
same family in `edgec.runtime.pipeline` what it does. Its part in ``docs/pipeline.md`` comes from its
docstring and keys.
"""

from edgec.artifact.steps._image import Color, Crop, Decode, InputStep, Layout, Resize
from edgec.artifact.steps._output import (
    Dequantize,
    Detection,
    Embedding,
    Nms,
    OutputStep,
    ReconstructionError,
    Sigmoid,
    Softmax,
    Threshold,
    TopK,
)
from edgec.artifact.steps._step import Key, Step
from edgec.artifact.steps._tensor import Dtype, Normalize, Quantize, Reshape
from edgec.artifact.steps._text import Tokenize

PREPROCESS: dict[str, type[Step]] = {
    cls.step: cls
    for cls in (Decode, Resize, Crop, Color, Layout, Dtype, Normalize, Reshape, Quantize, Tokenize)
}
POSTPROCESS: dict[str, type[Step]] = {
    cls.step: cls
    for cls in (
        Dequantize,
        Softmax,
        Sigmoid,
        TopK,
        Threshold,
        Detection,
        Nms,
        Embedding,
        ReconstructionError,
    )
}

__all__ = [
    "POSTPROCESS",
    "PREPROCESS",
    "Color",
    "Crop",
    "Decode",
    "Dequantize",
    "Detection",
    "Dtype",
    "Embedding",
    "InputStep",
    "Key",
    "Layout",
    "Nms",
    "Normalize",
    "OutputStep",
    "Quantize",
    "ReconstructionError",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Softmax",
    "Step",
    "Threshold",
    "Tokenize",
    "TopK",
]
