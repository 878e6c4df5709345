"""Models of other frameworks, as ONNX that was held against the framework itself.

A converter may be silently wrong, so none is believed: the source runs in its own framework on made-up
inputs, the ONNX model in ONNX Runtime, and what differs by more than rounding is an error.
"""

from edgec.compiler.ingest._load import load_source
from edgec.compiler.origin import Origin

__all__ = ["Origin", "load_source"]
