"""Manifests: what an artifact contains, for whom it is, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgec.artifact._pipeline import Pipeline
from edgec.artifact._tensor import TensorSpec

FORMAT_VERSION = 1
STATISTICS = ("mean", "std", "min", "max")
ACTIVATIONS = ("none", "softmax", "sigmoid")
PRECISIONS = (
    "fp32", "fp16", "bf16", "int8", "int16x8", "int8-dynamic", "int8-weights", "int4-weights", "mixed"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One engine's way to run the model.

    Attributes:
        name: Name of the backend: ``onnxruntime``.
        version: Version line of the engine, as a PEP 440 specifier: ``>=1.23,<2``.
        device: Where every node is promised to run, as the engine names it: ``CPU``.
        precision: Promised effective precision, one of `PRECISIONS`.
        files: Names of the members it loads, the entry first: ``("model.onnx", "weights.bin")``.
    """

    name: str
    version: str
    device: str
    precision: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of an artifact, other than the manifest.

    Attributes:
        sha256: Digest of its bytes, in lower-case hex.
        size: In bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What the artifact was held to when it was made; None where nothing was asked.

    Attributes:
        max_drop: Largest accuracy loss against fp32 that was allowed, as a fraction: 0.01.
        latency_ms: Largest median latency of one inference.
        memory_mib: Largest peak memory.
        size_bytes: Largest artifact.
    """

    max_drop: float | None = None
    latency_ms: float | None = None
    memory_mib: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Where the confidence of a model is that has no pipeline to say so.

    Attributes:
        output: Name of the output with one score per class: ``[batch, classes]``.
        activation: What makes its values scores, one of `ACTIVATIONS`.
    """

    output: str
    activation: str = "none"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is worth watching on a device, where an application asks for that.

    Attributes:
        inputs: Of each input, which of `STATISTICS` of one call's values: ``{"image": ("mean", "std")}``.
        scores: Where the confidence is; None where the pipeline says so, or there is none.
    """

    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scores: Scores | None = None


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What may leave the device.

    Attributes:
        inputs_stay: Whether inputs of the model must never be sent to a server; the runtime then asks none,
            whatever the application says.
    """

    inputs_stay: bool = False


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The first thing a device reads of an artifact.

    Attributes:
        model: Name of the model, chosen by its author.
        model_version: Version of the model, chosen by its author.
        target: Name of the target it was compiled for.
        engine: How the target runs it.
        inputs: What ``Session.run`` takes, in the model's order.
        outputs: What ``Session.run`` gives, in the model's order.
        members: Every member but the manifest, by name.
        fallback: What may run it where `engine` cannot; None where nothing may.
        pipeline: Pre- and post-processing; None where the model takes and gives bare tensors.
        recipe: How the device finishes the build (TensorRT); empty where nothing is to be done.
        budgets: What it was held to.
        reference: For each float output, quantiles of its values over the calibration data, by
            name of the output: ``{"scores": {"0.01": ..., "0.5": ..., "0.99": ...}}``.
        input_reference: Of the statistics of inputs that `observe` names, quantiles over the calibration
            data, one value per sample: ``{"image": {"mean": {"0.25": ..., "0.5": ..., "0.75": ...}}}``.
        golden: Tolerances of the golden vectors, by name of the output:
            ``{"scores": {"max_abs_error": 1e-5}}``; empty where there are none.
        observe: What is worth watching on a device.
        privacy: What may leave the device.
        provenance: Tool versions, digests of the source model and data, options.
        requires: Features a reader must know; a reader refuses what it does not.
    """

    model: str
    model_version: str
    target: str
    engine: EngineSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    members: Mapping[str, Member] = field(default_factory=dict)
    fallback: EngineSpec | None = None
    pipeline: Pipeline | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    budgets: Budgets = Budgets()
    reference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    input_reference: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    golden: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    observe: Observation = Observation()
    privacy: Privacy = Privacy()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()


def source_digest(manifest: Manifest) -> str:
    """Return the digest of the model file that an artifact was compiled from; empty where it does not say.

    Artifacts of one model for several targets, in whatever precision, have the same.
    """
    source = manifest.provenance.get("source")
    digest = source.get("sha256") if isinstance(source, Mapping) else None
    return digest if isinstance(digest, str) and len(digest) in (64, 71) else ""
