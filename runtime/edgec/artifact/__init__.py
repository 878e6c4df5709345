"""The contract between compiler and device: what an artifact is, how it is read and written."""

from edgec.artifact._artifact import Artifact
from edgec.artifact._files import atomic_write, sync_directory
from edgec.artifact._golden import GoldenVector, encode_golden
from edgec.artifact._layout import GOLDEN
from edgec.artifact._locks import hold
from edgec.artifact._manifest import (
    ACTIVATIONS,
    FORMAT_VERSION,
    PRECISIONS,
    STATISTICS,
    Budgets,
    EngineSpec,
    Manifest,
    Member,
    Observation,
    Privacy,
    Scores,
    source_digest,
)
from edgec.artifact._manifest_json import content_digest, manifest_from_json, manifest_to_json
from edgec.artifact._pack import pack
from edgec.artifact._pipeline import Pipeline, read_pipeline
from edgec.artifact._tensor import Quantization, TensorSpec

__all__ = [
    "ACTIVATIONS",
    "FORMAT_VERSION",
    "GOLDEN",
    "PRECISIONS",
    "STATISTICS",
    "Artifact",
    "Budgets",
    "EngineSpec",
    "GoldenVector",
    "Manifest",
    "Member",
    "Observation",
    "Pipeline",
    "Privacy",
    "Quantization",
    "Scores",
    "TensorSpec",
    "atomic_write",
    "content_digest",
    "encode_golden",
    "hold",
    "manifest_from_json",
    "manifest_to_json",
    "pack",
    "read_pipeline",
    "source_digest",
    "sync_directory",
]
