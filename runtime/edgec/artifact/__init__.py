"""The contract between compiler and device: what an artifact is, how it is read and written."""

from edgec.artifact._manifest import FORMAT_VERSION, PRECISIONS, Budgets, EngineSpec, Manifest, Member
from edgec.artifact._pipeline import Pipeline, read_pipeline
from edgec.artifact._tensor import Quantization, TensorSpec

__all__ = [
    "FORMAT_VERSION",
    "PRECISIONS",
    "Budgets",
    "EngineSpec",
    "Manifest",
    "Member",
    "Pipeline",
    "Quantization",
    "TensorSpec",
    "read_pipeline",
]
