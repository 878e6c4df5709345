"""Pre- and post-processing of a model, as its pipeline declares it.

One module per family of steps; each says what its steps do, and plans them for the specs of a model.
"""

from edgec.runtime.pipeline._image import convert_color, read_image
from edgec.runtime.pipeline._plan import Context
from edgec.runtime.pipeline._preprocess import conform
from edgec.runtime.pipeline._processor import Processor, check_pipeline, split_batch, stack_batch
from edgec.runtime.pipeline._tensor import normalize_constants, to_array
from edgec.runtime.pipeline._work import keep, named

__all__ = [
    "Context",
    "Processor",
    "check_pipeline",
    "conform",
    "convert_color",
    "keep",
    "named",
    "normalize_constants",
    "read_image",
    "split_batch",
    "stack_batch",
    "to_array",
]
