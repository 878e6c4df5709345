"""Reports of a build, for people: one HTML file, and a summary for the terminal."""

from edgec.compiler.report._html import render_html
from edgec.compiler.report._schema import (
    Accuracy,
    ArtifactInfo,
    Build,
    CandidateInfo,
    DataInfo,
    DataSource,
    EstimateInfo,
    FlipInfo,
    Latency,
    LayerInfo,
    MachineInfo,
    ModelInfo,
    OutputParity,
    Parity,
    SkippedTarget,
    Status,
    TensorInfo,
)
from edgec.compiler.report._text import render_text

__all__ = [
    "Accuracy",
    "ArtifactInfo",
    "Build",
    "CandidateInfo",
    "DataInfo",
    "DataSource",
    "EstimateInfo",
    "FlipInfo",
    "Latency",
    "LayerInfo",
    "MachineInfo",
    "ModelInfo",
    "OutputParity",
    "Parity",
    "SkippedTarget",
    "Status",
    "TensorInfo",
    "render_html",
    "render_text",
]
