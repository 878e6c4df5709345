"""Pre- and post-processing of a model, as its pipeline declares it.

One module per family of steps; each says what its steps do, and plans them for the specs of a model.
"""

from edgec.runtime.pipeline._plan import Context
from edgec.runtime.pipeline._processor import Processor, check_pipeline, split_batch, stack_batch
from edgec.runtime.pipeline._tensor import normalize_constants

__all__ = ["Context", "Processor", "check_pipeline", "normalize_constants", "split_batch", "stack_batch"]
