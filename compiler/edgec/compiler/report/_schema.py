"""The shape of a build: what ``report.json`` holds and both renderings read.

Keys that every build has are required here, so that the type checker finds a compiler that forgets
one. Readers tolerate more: a missing key, or None, is shown as not known.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Status = Literal["winner", "admissible", "refused", "failed", "skipped"]


class TensorInfo(TypedDict):
    """One input or output: ``{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}``."""

    name: str
    dtype: str
    shape: list[int | str]


class ModelInfo(TypedDict):
    """The source model.

    Attributes:
        file: Path as it was given.
        sha256: Of the file, in hex; external data included where there is any; of a directory, of its files.
        size_bytes: Of the file and its external data.
        nodes: Nodes of the graph as it was read.
        parameters: Elements of all initializers.
        opset: Of the default operator set.
        origin: Of a model of another framework: ``framework``, ``file``, ``sha256``, ``tools`` that converted
            it, ``comparison`` with it in words, ``samples``, and figures of its ``outputs``; None for ONNX.
    """

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    nodes: NotRequired[int | None]
    parameters: NotRequired[int | None]
    opset: NotRequired[int | None]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    origin: NotRequired[dict[str, Any] | None]


class DataSource(TypedDict):
    """A data set that was used.

    Attributes:
        description: A sentence or a path.
        source: Where it is, as it was named.
        digest: SHA-256 of the content, in hex.
        samples: How many were used.
    """

    description: str
    source: NotRequired[str | None]
    digest: NotRequired[str | None]
    samples: NotRequired[int | None]


class DataInfo(TypedDict):
    """Data of the build.

    Attributes:
        synthetic: Where inputs were made up, the sentence that says so and from what distribution.
    """

    calibration: NotRequired[DataSource | None]
    evaluation: NotRequired[DataSource | None]
    synthetic: NotRequired[str | None]


class MachineInfo(TypedDict):
    """Where the build ran and was measured.

    Attributes:
        governor: CPU frequency governor; None where the kernel does not tell.
        load_1m: Load average of one minute when measuring began.
    """

    cpu: str
    cores: NotRequired[int | None]
    arch: NotRequired[str | None]
    os: NotRequired[str | None]
    python: NotRequired[str | None]
    governor: NotRequired[str | None]
    load_1m: NotRequired[float | None]
    memory_mib: NotRequired[int | None]


class OutputParity(TypedDict):
    """One output held against its reference.

    Attributes:
        snr_db: Signal-to-noise ratio; None where the outputs are identical (there is no noise).
        cosine: Cosine similarity; None where a side is all zero.
        tolerance: Largest `max_abs_error` that passes.
    """

    name: str
    max_abs_error: float
    snr_db: NotRequired[float | None]
    cosine: NotRequired[float | None]
    tolerance: NotRequired[float | None]


class Parity(TypedDict):
    """An artifact held against its reference; the worst output's figures, then each output's.

    Attributes:
        reference: What it was held against, in words.
    """

    passed: bool
    snr_db: NotRequired[float | None]
    max_abs_error: float
    tolerance: NotRequired[float | None]
    reference: NotRequired[str | None]
    outputs: NotRequired[list[OutputParity]]


class Accuracy(TypedDict):
    """Accuracy on the evaluation data, on the same samples for source and artifact.

    Attributes:
        metric: Name of the metric: ``top1``.
        source: The source model's score.
        artifact: The artifact's score.
        ci95: 95 % confidence interval of `artifact`, low and high.
        n: Samples.
        drop_bound: Largest loss against fp32 that these samples leave possible, at one-sided 95 %
            confidence by the paired difference, in the metric's units; negative for a sure gain.
        verdict: ``pass``, ``fail`` or ``inconclusive``, or other words.
        higher_is_better: True where it is missing.
    """

    metric: str
    source: NotRequired[float | None]
    artifact: float
    ci95: NotRequired[list[float] | tuple[float, float] | None]
    n: NotRequired[int | None]
    drop_bound: NotRequired[float | None]
    verdict: NotRequired[str | None]
    higher_is_better: NotRequired[bool]


class Latency(TypedDict):
    """Time of one inference, in milliseconds.

    Attributes:
        cv: Coefficient of variation, as a fraction.
        n: Inferences measured.
    """

    p50: float
    p90: NotRequired[float | None]
    p99: NotRequired[float | None]
    mean: NotRequired[float | None]
    cv: NotRequired[float | None]
    n: NotRequired[int | None]


class LayerInfo(TypedDict):
    """What a layer loses by int8; a ratio is None where nothing is lost.

    Attributes:
        name: Of its node.
        op: Its operator.
        tensor: What it gives.
        precision: ``int8``, or ``fp32`` where it was left in float.
        accumulated_snr_db: SNR of its output in the quantized graph, with the errors of all before it.
        local_snr_db: SNR of its output where its inputs are exact.
        isolated: Whether it was tried as the only layer in int8.
        isolated_snr_db: SNR of the model's worst output with this layer alone in int8.
        isolated_score: Score of the metric with this layer alone in int8; None where it was not tried.
    """

    name: str
    op: str
    tensor: str
    precision: str
    accumulated_snr_db: float | None
    local_snr_db: float | None
    isolated: bool
    isolated_snr_db: float | None
    isolated_score: float | None


class FlipInfo(TypedDict):
    """A sample that int8 turned: its name, its label, what is predicted in fp32 and in int8."""

    name: str
    label: str
    before: str
    after: str


class EstimateInfo(TypedDict):
    """What a target's own toolchain says of a candidate that was not run on the target.

    Attributes:
        latency_ms: Of one inference.
        source: Who says so, and for what, in words.
        cycles: Of one inference.
        clock_mhz: Of the accelerator.
        macs: Multiply-accumulates of one inference.
        sram_kib: SRAM used; likewise the memories below.
        operators: Of the compiled model.
        cpu_operators: Of those, the ones that are left to the CPU.
        cpu_share: The same as a share, 0 to 1.
    """

    latency_ms: float
    source: str
    cycles: NotRequired[int]
    clock_mhz: NotRequired[float]
    macs: NotRequired[int]
    sram_kib: NotRequired[float]
    dram_kib: NotRequired[float]
    flash_kib: NotRequired[float]
    operators: NotRequired[int]
    cpu_operators: NotRequired[int]
    cpu_share: NotRequired[float]


class CandidateInfo(TypedDict):
    """One candidate of the tournament.

    Attributes:
        name: Unique in its tournament: ``onnxruntime int8``.
        reason: Why it has its status, in words.
        size_bytes: Of its payload: what the engine loads.
        source_snr_db: SNR of its outputs against the source model in fp32, unlike `parity`, whose
            reference may be the candidate's own quantized graph.
        memory_mib: Peak memory of a process that loads it and runs one inference.
        speedup: Median latency of the fp32 candidate over this one's; 2.0 is twice as fast.
        estimate: Of the target's toolchain; missing where that gives none.
        layers: What each layer loses by int8, where that was looked into.
        flips: The first samples whose prediction int8 turned, where that was looked into.
    """

    name: str
    engine: str
    precision: str
    status: Status
    reason: NotRequired[str | None]
    size_bytes: NotRequired[int | None]
    parity: NotRequired[Parity | None]
    accuracy: NotRequired[Accuracy | None]
    latency_ms: NotRequired[Latency | None]
    speedup: NotRequired[float | None]
    source_snr_db: NotRequired[float | None]
    memory_mib: NotRequired[float | None]
    estimate: NotRequired[EstimateInfo]
    layers: NotRequired[list[LayerInfo]]
    flips: NotRequired[list[FlipInfo]]


class ArtifactInfo(TypedDict):
    """What was built for one target.

    Attributes:
        target: Name of the target.
        target_title: What people call it.
        engine_version: Of what ran here.
        device: Where the engine runs it: ``CPU``.
        precision: Promised precision.
        effective_precision: As read back from the engine; None where nothing ran that could tell.
        state: ``ready`` where its own engine ran here, ``fallback`` where the declared fallback did.
        measured_on: A sentence: on what machine and engine the figures were taken.
        estimate: The winner's, of the target's toolchain; missing where that gives none.
        placement: Nodes per device, as read back from the engine.
        candidates: All of the tournament, the winner among them.
        decisions: What was decided and why, in sentences.
        over_budget: By what it misses a budget, in words; missing where it keeps all.
        not_run: What this build could not check, in sentences.
        pipeline: Pre- and post-processing, as in the manifest.
    """

    target: str
    target_title: NotRequired[str | None]
    path: str
    size_bytes: int
    content_digest: str
    engine: str
    engine_version: NotRequired[str | None]
    device: NotRequired[str | None]
    precision: str
    effective_precision: NotRequired[str | None]
    state: NotRequired[str | None]
    parity: Parity | None
    accuracy: Accuracy | None
    latency_ms: Latency | None
    measured_on: NotRequired[str | None]
    estimate: NotRequired[EstimateInfo]
    placement: NotRequired[dict[str, int] | None]
    candidates: list[CandidateInfo]
    decisions: list[str]
    over_budget: NotRequired[str]
    warnings: NotRequired[list[str]]
    not_run: NotRequired[list[str]]
    pipeline: NotRequired[dict[str, object] | None]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class SkippedTarget(TypedDict):
    """A target that was asked for and not built."""

    target: str
    reason: str


class Build(TypedDict):
    """One run of ``edgec compile``.

    Attributes:
        edgec: Version of edgec.
        command: The command line, a word per item.
        options: Options that shaped the build, by name.
        tools: Versions, by name of the tool.
    """

    edgec: str
    model: ModelInfo
    command: NotRequired[list[str]]
    options: NotRequired[dict[str, object]]
    data: NotRequired[DataInfo]
    machine: NotRequired[MachineInfo | None]
    tools: NotRequired[dict[str, str]]
    duration_s: NotRequired[float | None]
    artifacts: list[ArtifactInfo]
    skipped: NotRequired[list[SkippedTarget]]
