"""Patches from one version of an artifact to the next: made by a publisher, applied and judged by a device.

>>> from edgec.delta import apply_delta, make_delta                                     # doctest: +SKIP
>>> made = make_delta("v1.edgec", "v2.edgec", "v1-v2.delta")                            # doctest: +SKIP
>>> apply_delta("v1.edgec", "v1-v2.delta", "new.edgec", length=..., sha256="...")       # doctest: +SKIP
"""

from edgec.delta._apply import apply_delta, header_of
from edgec.delta._chunk_map import ChunkMap
from edgec.delta._format import Header
from edgec.delta._make import DeltaInfo, make_delta

__all__ = [
    "ChunkMap",
    "DeltaInfo",
    "Header",
    "apply_delta",
    "header_of",
    "make_delta",
]
