"""Candidates: each is made, packed as an artifact, loaded as a device would load it, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.artifact import Budgets, Manifest, TensorSpec, pack
from edgec.compiler.calibration import CalibrationTable, calibrate
from edgec.compiler.converters import Converted, Converter, Prepared, get_converter
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import Parity, Reference, Run, check_parity, first_divergence, quantized_reference
from edgec.compiler.quantization import quantize_static
from edgec.compiler.variants import Variant, folded_variant
from edgec.errors import EdgecError
from edgec.evaluation import OutputTally
from edgec.runtime import Session, load
from edgec.targets import Engine, QuantizationScheme, Target

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is to be made.

    Attributes:
        engine: Of the target.
        precision: One of the engine's.
        variant: Form of the source.
    """

    engine: Engine
    precision: str
    variant: Variant

    @property
    def name(self) -> str:
        """Unique in a tournament: ``openvino int8``."""
        return f"{self.engine.name} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A candidate that was made.

    Attributes:
        candidate: What was asked for.
        path: The artifact, without golden vectors and report.
        converted: Its payload.
        session: It, loaded.
        reference: What it is held against.
        parity: How it holds.
        payload_bytes: What the engine loads.
        source_snr_db: SNR against the source in fp32; None where they are identical.
    """

    candidate: Candidate
    path: Path
    converted: Converted
    session: Session
    reference: Reference
    parity: Parity
    payload_bytes: int
    source_snr_db: float | None


@dataclass(kw_only=True)
class Shared:
    """What the candidates of all targets share, each made once.

    Attributes:
        threads: Of one inference.
        scratch: Directory for what is made on the way.
        progress: Told what is going on.
    """

    threads: int
    scratch: Path
    progress: Callable[[str], None]
    _tables: dict[str, CalibrationTable] = field(default_factory=dict)
    _quantized: dict[tuple[str, QuantizationScheme], tuple[onnx.ModelProto, Reference]] = field(
        default_factory=dict
    )
    _folded: dict[str, Variant | None] = field(default_factory=dict)
    _count: int = 0

    def folded(self, plain: Variant) -> Variant | None:
        """Return the source with its pre-processing in the graph; None where nothing can be folded."""
        if plain.name not in self._folded:
            self._folded[plain.name] = folded_variant(plain)
        return self._folded[plain.name]

    def known_table(self, variant: Variant) -> CalibrationTable | None:
        """Return the ranges of a variant's tensors, where somebody asked for them."""
        return self._tables.get(variant.name)

    def table(self, variant: Variant) -> CalibrationTable:
        """Return the ranges of a variant's tensors over the calibration data."""
        if variant.name not in self._tables:
            self.progress("calibrating")
            samples = variant.samples.inputs(variant.processor, variant.inputs)
            self._tables[variant.name] = calibrate(variant.model, samples)
        return self._tables[variant.name]

    def quantized(self, variant: Variant, scheme: QuantizationScheme) -> tuple[onnx.ModelProto, Reference]:
        """Return the Q/DQ graph of a variant under a scheme, and what artifacts of it are held against."""
        key = (variant.name, scheme)
        if key not in self._quantized:
            model = (
                variant.model
                if variant.quantized
                else quantize_static(variant.model, self.table(variant), scheme)
            )
            self._quantized[key] = model, quantized_reference(model, variant.parity_inputs)
        return self._quantized[key]

    def directory(self) -> Path:
        """Return a new, empty directory."""
        self._count += 1
        path = self.scratch / str(self._count)
        path.mkdir()
        return path


def make(candidate: Candidate, target: Target, shared: Shared) -> Made:
    """Convert a candidate, pack it, load it as a device would, and check its parity.

    Raises:
        EdgecError: A step failed.
    """
    converter = get_converter(candidate.engine.name)
    prepared, reference = _prepare(candidate, target, converter, shared)
    directory = shared.directory()
    payload = directory / "payload"
    payload.mkdir()
    converted = converter.convert(prepared, candidate.engine, target, payload)
    variant = candidate.variant
    path = pack(
        directory / "candidate.edgec",
        manifest_of(candidate, target, converted, variant.inputs, variant.outputs),
        members_of(converted, variant),
    )
    session = load(path, threads=shared.threads)
    parity = check_parity(session.run, reference)
    return Made(
        candidate=candidate,
        path=path,
        converted=converted,
        session=session,
        reference=reference,
        parity=parity,
        payload_bytes=sum(f.stat().st_size for f in converted.files.values()),
        source_snr_db=_source_snr_db(session.run, variant),
    )


def diverging_tensor(made: Made, target: Target, shared: Shared) -> str | None:
    """Return the first inner tensor at which an artifact that failed parity leaves its reference.

    The same converter is asked for an artifact that gives its inner tensors too. None where it
    refuses that one, or no inner tensor is off by itself.
    """
    try:
        return first_divergence(made.reference, lambda graph: _run_variant(graph, made, target, shared))
    except EdgecError:
        return None


def manifest_of(
    candidate: Candidate,
    target: Target,
    converted: Converted,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Manifest:
    """Return the manifest of a candidate, as far as it is known before the tournament ends."""
    return Manifest(
        model="candidate",
        model_version="0",
        target=target.name,
        engine=converted.engine,
        inputs=inputs,
        outputs=outputs,
        fallback=converted.fallback,
        pipeline=candidate.variant.pipeline,
        recipe=converted.recipe,
        budgets=Budgets(),
    )


def members_of(converted: Converted, variant: Variant) -> dict[str, bytes | memoryview | Path]:
    """Return the members of an artifact: the payload, then the files of its pipeline."""
    pipeline = variant.pipeline
    files = {name: pipeline.read_source(name) for name in pipeline.files} if pipeline is not None else {}
    return {**converted.files, **files}


def _prepare(
    candidate: Candidate, target: Target, converter: Converter, shared: Shared
) -> tuple[Prepared, Reference]:
    variant, precision = candidate.variant, candidate.precision
    if precision == "int8":
        assert target.quantization is not None
        model, reference = shared.quantized(variant, target.quantization)
    else:
        model = converter.prepare(variant.model, precision, target)
        reference = variant.float_reference(precision)
    return Prepared(model=model, precision=precision, weights_from=variant.weights_from), reference


def _source_snr_db(run: Run, variant: Variant) -> float | None:
    """Return the SNR of the worst output against the source in fp32; None where all are identical."""
    source = variant.float_reference("fp32")
    tallies = {spec.name: OutputTally(spec.name) for spec in variant.outputs}
    for sample, expected in zip(source.inputs, source.outputs, strict=True):
        actual = run(sample)
        for name, tally in tallies.items():
            tally.add(expected[name], actual[name])
    worst = min(tally.result.snr_db for tally in tallies.values())
    return worst if np.isfinite(worst) else None


def _run_variant(graph: onnx.ModelProto, made: Made, target: Target, shared: Shared) -> Run:
    candidate = made.candidate
    converter = get_converter(candidate.engine.name)
    model = graph if candidate.precision == "int8" else converter.prepare(graph, candidate.precision, target)
    directory = shared.directory()
    prepared = Prepared(
        model=model, precision=candidate.precision, weights_from=candidate.variant.weights_from
    )
    converted = converter.convert(prepared, candidate.engine, target, directory)
    outputs = _traced_outputs(graph, made.reference.inputs[0])
    path = pack(
        directory / "traced.edgec",
        manifest_of(candidate, target, converted, candidate.variant.inputs, outputs),
        members_of(converted, candidate.variant),
    )
    return load(path, threads=shared.threads).run


def _traced_outputs(graph: onnx.ModelProto, sample: Arrays) -> tuple[TensorSpec, ...]:
    with ReferenceProgram(graph) as program:
        values = program.run(sample)
    return tuple(
        TensorSpec(name, a.dtype.name, tuple(f"axis{i}_of_{n}" for i in range(a.ndim)))
        for n, (name, a) in enumerate(values.items())
    )
