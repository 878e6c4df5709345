"""Candidates: each is made, packed as an artifact, loaded as a device would load it, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.artifact import Budgets, Manifest, TensorSpec, pack
from edgec.compiler.accuracy import (
    Baseline,
    judge_labelled,
    judge_unlabelled,
    kept_source,
)
from edgec.compiler.autocast import kept_in_fp32, sensitive_layers
from edgec.compiler.calibration import CalibrationTable, calibrate
from edgec.compiler.converters import Casting, Converted, Converter, Prepared, Quantities, get_converter
from edgec.compiler.drift import CLIPPED_SAMPLES, clipping_sentence
from edgec.compiler.dynamic import quantize_dynamic
from edgec.compiler.equalization import equalize_channels, shift_biases
from edgec.compiler.explain import mean_shifts
from edgec.compiler.fake_quantization import ROUNDED, fake_quantized
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity import (
    Parity,
    Reference,
    Run,
    check_parity,
    dynamic_reference,
    first_divergence,
    parity_sentence,
    quantized_reference,
)
from edgec.compiler.passes.normalize_qdq import normalize_qdq
from edgec.compiler.passes.smooth_quant import normalizes_products, smooth_activations
from edgec.compiler.passes.split_biases import split_biases
from edgec.compiler.quantization import quantize_static
from edgec.compiler.recipes import Recipe
from edgec.compiler.residuals import with_floors
from edgec.compiler.sameness import judge_same
from edgec.compiler.steadying import Steadied, steadied
from edgec.compiler.tournament import Contender, Gate
from edgec.compiler.variants import Variant
from edgec.compiler.weight_only import BITS, compressed_reference
from edgec.errors import ConversionError, EdgecError, NoGainError, OutputError
from edgec.evaluation import OutputTally
from edgec.runtime import Session, load
from edgec.targets import Engine, QuantizationScheme, Target

Arrays = Mapping[str, NDArray[Any]]

# Of the calibration data, for means and ranges of channels.
_STATISTICS_SAMPLES = 32
_STEADYING_SAMPLES = 16
# Of the data that is judged on: to say how near outputs come where labels decide.
_SNR_SAMPLES = 16
# What converters that quantize by themselves do to layers, to learn what it shifts.
# Precisions whose activations are integers, by ranges that calibration saw.
INTEGERS = ("int8", "int16x8")
_FULL_INTEGER = QuantizationScheme(
    activation_dtype="int8",
    activation_symmetric=False,
    weight_dtype="int8",
    weight_symmetric=True,
    per_channel=True,
    bias_dtype="int32",
    io_dtype="int8",
)
# Of transformers: half of the difficulty of activations goes to the weights, as its inventors do it.
_SMOOTH = 0.5


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is to be made.

    Attributes:
        engine: Of the target.
        recipe: How the model is made ready; its precision is one of the engine's.
        variant: Name of the form of the source: ``plain``, ``folded``, or a pruned or sparse form of one.
    """

    engine: Engine
    recipe: Recipe
    variant: str

    @property
    def name(self) -> str:
        """Unique in a tournament: ``openvino int8``, or ``openvino int8, 30 % pruned``."""
        _, comma, pruned = self.variant.partition(", ")
        return f"{self.engine.name} {self.recipe.name}{comma}{pruned}"

    @property
    def precision(self) -> str:
        """What it promises."""
        return self.recipe.precision


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a session says of itself.

    Attributes:
        engine_version: Version of the engine that ran.
        precision: Effective precision.
        placement: Nodes per device.
        state: ``ready`` or ``fallback``.
    """

    engine_version: str
    precision: str
    placement: Mapping[str, int]
    state: str


@dataclass(frozen=True, kw_only=True)
class Made:
    """A candidate that was made; fit for pickling.

    Attributes:
        candidate: What was asked for.
        path: The artifact, without golden vectors and report.
        converted: Its payload.
        facts: What its session said.
        reference: What it is held against.
    """

    candidate: Candidate
    path: Path
    converted: Converted
    facts: Facts
    reference: Reference


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A candidate's figures, and what was made of it.

    Attributes:
        contender: Its figures; why it is out, where it is.
        made: None where it could not be made.
        notes: What the calibration data says, in plain sentences.
    """

    contender: Contender
    made: Made | None = None
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Shared:
    """What candidates share, each made once in a process.

    Attributes:
        variants: Forms of the source, by name.
        baseline: Of accuracy; None without labels.
        options: How to compile.
        scratch: Directory for what is made on the way; candidates get directories of their own in it.
        kept: Directory where outputs of the source are kept, for all processes; None to compute them anew.
    """

    variants: Mapping[str, Variant]
    baseline: Baseline | None
    options: CompileOptions
    scratch: Path
    kept: Path | None = None
    _tables: dict[tuple[str, bool, float | None], CalibrationTable] = field(default_factory=dict)
    _bases: dict[tuple[str, bool, float | None], onnx.ModelProto] = field(default_factory=dict)
    _quantized: dict[tuple[str, QuantizationScheme, Recipe], tuple[onnx.ModelProto, Reference]] = field(
        default_factory=dict
    )
    _steadied: dict[str, Steadied] = field(default_factory=dict)
    _clipping: dict[str, str | None] = field(default_factory=dict)
    _rounded: dict[tuple[str, Recipe], tuple[onnx.ModelProto, Quantities, Reference]] = field(
        default_factory=dict
    )
    _count: int = 0

    def known_table(self, variant: str) -> CalibrationTable | None:
        """Return the ranges of a variant's tensors, where somebody asked for them."""
        known = (
            table for (name, equalized, _), table in self._tables.items() if name == variant and not equalized
        )
        return next(known, None)

    def table(
        self, variant: Variant, *, equalized: bool = False, smooth: float | None = None
    ) -> CalibrationTable:
        """Return the ranges of a variant's tensors over the calibration data."""
        key = (variant.name, equalized, smooth)
        if key not in self._tables:
            samples = variant.samples.inputs(variant.processor, variant.inputs)
            base = self.base(variant, equalized=equalized, smooth=smooth)
            table = calibrate(base, samples)
            self._tables[key] = with_floors(base, table, variant.spread_inputs(_STATISTICS_SAMPLES))
            if base is variant.model:
                self._clipping[variant.name] = self._clipped(variant, self._tables[key])
        return self._tables[key]

    def notes(self, variant: str) -> tuple[str, ...]:
        """Return what calibrating a variant showed of the data, in plain sentences."""
        table, clipping = self.known_table(variant), self._clipping.get(variant)
        warnings = table.warnings if table is not None else ()
        return warnings if clipping is None else (*warnings, clipping)

    def _clipped(self, variant: Variant, table: CalibrationTable) -> str | None:
        if variant.samples.calibration is None or variant.samples.evaluation is None:
            return None  # two parts of one data set are alike
        inputs = variant.judged_inputs(CLIPPED_SAMPLES)
        return clipping_sentence(variant.model, table, inputs, variant.weights_from)

    def base(
        self, variant: Variant, *, equalized: bool = False, smooth: float | None = None
    ) -> onnx.ModelProto:
        """Return what is quantized, in fp32."""
        key = (variant.name, equalized, smooth)
        if key not in self._bases:
            model = split_biases(variant.model)
            if equalized:
                model, _ = equalize_channels(model, variant.spread_inputs(_STATISTICS_SAMPLES))
            if smooth is not None:
                model, _ = smooth_activations(model, variant.spread_inputs(_STATISTICS_SAMPLES), smooth)
            self._bases[key] = model
        return self._bases[key]

    def graph(
        self,
        variant: Variant,
        scheme: QuantizationScheme,
        recipe: Recipe,
        *,
        base: onnx.ModelProto | None = None,
    ) -> onnx.ModelProto:
        """Return the Q/DQ graph of a variant under a scheme; made anew.

        Args:
            variant: A form of the source.
            scheme: The target's.
            recipe: In int8.
            base: What is quantized, where it is not what the recipe makes of the variant: the same but for
                biases.
        """
        if variant.quantized:
            return normalize_qdq(variant.model, scheme)[0]
        if base is None:
            base = self.base(variant, equalized=recipe.equalize, smooth=recipe.smooth)
        table = self.table(variant, equalized=recipe.equalize, smooth=recipe.smooth)
        quantize = partial(
            quantize_static,
            table=table,
            scheme=scheme,
            method=recipe.method,
            exclude=recipe.exclude,
            narrow_weights=recipe.narrow_weights,
            pass_on=recipe.passes_on,
        )
        made = quantize(base)
        if recipe.correct_bias:
            made = quantize(_corrected(base, made, variant))
        return made

    def quantized(
        self, variant: Variant, scheme: QuantizationScheme, recipe: Recipe
    ) -> tuple[onnx.ModelProto, Reference]:
        """Return the Q/DQ graph of a variant under a scheme, and what artifacts of it are held against."""
        key = (variant.name, scheme, recipe)
        if key not in self._quantized:
            model = self.graph(variant, scheme, recipe)
            self._quantized[key] = model, quantized_reference(model, variant.parity_inputs)
        return self._quantized[key]

    def rounded(self, variant: Variant, recipe: Recipe) -> tuple[onnx.ModelProto, Quantities, Reference]:
        """Return what a converter that quantizes by itself is given, and what is right."""
        key = (variant.name, recipe)
        if key not in self._rounded:
            base = self.base(variant, equalized=recipe.equalize, smooth=recipe.smooth)
            table = self.table(variant, equalized=recipe.equalize, smooth=recipe.smooth)
            quantities = Quantities(
                table=table,
                method=recipe.method,
                exclude=recipe.exclude,
                activation_bits=16 if recipe.precision == "int16x8" else 8,
                products_only=not recipe.passes_on,
            )
            if recipe.correct_bias:
                made = quantize_static(
                    base,
                    table=table,
                    scheme=_FULL_INTEGER,
                    method=recipe.method,
                    exclude=recipe.exclude,
                    pass_on=recipe.passes_on,
                )
                base = _corrected(base, made, variant)
            made = fake_quantized(base, quantities)
            reference = quantized_reference(made, variant.parity_inputs, ROUNDED)
            self._rounded[key] = base, quantities, reference
        return self._rounded[key]

    def steadied(self, variant: Variant) -> Steadied:
        """Return a transformer made ready for kernels that quantize activations row by row."""
        if variant.name not in self._steadied:
            self._steadied[variant.name] = steadied(variant.model, variant.spread_inputs(_STEADYING_SAMPLES))
        return self._steadied[variant.name]

    def forget(self, recipe: Recipe) -> None:
        """Free what was made by a recipe that nobody needs any more."""
        for rounded in [k for k in self._rounded if k[1] == recipe]:
            del self._rounded[rounded]
        for key in [k for k in self._quantized if k[2] == recipe]:
            del self._quantized[key]

    def directory(self) -> Path:
        """Return a new, empty directory."""
        self._count += 1
        path = self.scratch / str(self._count)
        path.mkdir()
        return path


def quantizes(converter: Converter) -> bool:
    """Return whether a converter takes the float model and its ranges, not a Q/DQ graph."""
    return bool(getattr(converter, "quantizes", False))


def mixed_with(converter: Converter) -> str:
    """Return what the arithmetic beside int8 is in a converter's mixed precision: fp32, fp16 or bf16."""
    return str(getattr(converter, "mixes", "fp32"))


def _corrected(base: onnx.ModelProto, made: onnx.ModelProto, variant: Variant) -> onnx.ModelProto:
    """Return a model whose biases make up for what its quantized form shifts on average."""
    shifts = mean_shifts(base, made, variant.spread_inputs(_STATISTICS_SAMPLES))
    return shift_biases(base, shifts)[0]


def usual_recipe(variant: Variant, precision: str, *, saturates: bool = False) -> Recipe:
    """Return how a variant is made ready for a precision before anything is known of what that costs.

    Args:
        variant: That is compiled.
        precision: One of ``edgec.artifact.PRECISIONS``.
        saturates: Whether sums of products of full-range integers saturate on the CPU it is built for.
    """
    narrow = saturates and precision in ("int8", "mixed") and not variant.quantized
    if precision in ("int8", "mixed") and not variant.quantized and normalizes_products(variant.model):
        return Recipe(
            precision=precision, smooth=_SMOOTH, method="minmax", correct_bias=False, narrow_weights=narrow
        )
    if precision == "int16x8":
        return Recipe(precision=precision, method="minmax", correct_bias=False)
    return Recipe(precision=precision, narrow_weights=narrow)


def judge(
    candidate: Candidate,
    target: Target,
    shared: Shared,
    progress: Callable[[str], None],
    *,
    threads: int | None = None,
) -> Outcome:
    """Make a candidate and judge it; what goes wrong is its figure too.

    Args:
        candidate: What is to be made.
        target: What it is for.
        shared: What it has in common with others.
        progress: Told what is going on.
        threads: Of one inference; None for as many as are measured with.

    Raises:
        OutputError: The disk's fault, not the candidate's.
    """
    variant = shared.variants[candidate.variant]
    contender = Contender(
        name=candidate.name,
        engine=candidate.engine.name,
        precision=candidate.precision,
        sparsity=variant.sparsity,
    )
    progress(f"{target.name}: {candidate.name}: converting and checking parity")
    try:
        made, session = _make(candidate, target, shared, threads or shared.options.threads)
        with session:
            contender.parity = check_parity(session.run, made.reference)
            contender.estimate = made.converted.estimate
            contender.size_bytes = sum(f.stat().st_size for f in made.converted.files.values())
            contender.problem = _problem(made, contender.parity, target, shared)
            if contender.problem is None:
                progress(f"{target.name}: {candidate.name}: judging accuracy")
                contender.gate, contender.source_snr_db = _judged(candidate, session, variant, shared)
    except OutputError:
        raise
    except EdgecError as e:
        contender.status = "skipped" if isinstance(e, NoGainError) else "failed"
        contender.problem = str(e)
        return Outcome(contender=contender, notes=shared.notes(candidate.variant))
    return Outcome(contender=contender, made=made, notes=shared.notes(candidate.variant))


def _judged(
    candidate: Candidate, session: Session, variant: Variant, shared: Shared
) -> tuple[Gate, float | None]:
    """Return what the accuracy gate says, and the SNR of the worst output; None where all are identical."""
    baseline, kept = shared.baseline, shared.kept
    if baseline is None:
        gate = judge_unlabelled(session.run, variant, shared.options, kept)
        return gate, _finite(gate.snr_db)
    if candidate.precision == "fp32":
        same = judge_same(session, variant, baseline, shared.options, kept)
        if same is not None:
            return same[0], _finite(same[1])
    return judge_labelled(session, baseline, shared.options), _source_snr_db(session.run, variant, kept)


def manifest_of(
    candidate: Candidate,
    target: Target,
    converted: Converted,
    variant: Variant,
    outputs: tuple[TensorSpec, ...],
) -> Manifest:
    """Return the manifest of a candidate, as far as it is known before the tournament ends."""
    return Manifest(
        model="candidate",
        model_version="0",
        target=target.name,
        engine=converted.engine,
        inputs=variant.inputs,
        outputs=outputs,
        fallback=converted.fallback,
        pipeline=variant.pipeline,
        recipe=converted.recipe,
        budgets=Budgets(),
    )


def members_of(converted: Converted, variant: Variant) -> dict[str, bytes | memoryview | Path]:
    """Return the members of an artifact: the payload, then the files of its pipeline."""
    pipeline = variant.pipeline
    files = {name: pipeline.read_source(name) for name in pipeline.files} if pipeline is not None else {}
    return {**converted.files, **files}


def _make(candidate: Candidate, target: Target, shared: Shared, threads: int) -> tuple[Made, Session]:
    """Convert a candidate, pack it, and load it as a device would."""
    converter = get_converter(candidate.engine.name)
    variant = shared.variants[candidate.variant]
    prepared, reference = _prepare(candidate, target, converter, shared)
    directory = shared.directory()
    payload = directory / "payload"
    payload.mkdir()
    prepared = replace(
        prepared,
        sparsity=variant.sparsity,
        environments=shared.options.environments,
        timeout_s=shared.options.timeout_s,
    )
    converted = converter.convert(prepared, candidate.engine, target, payload)
    path = pack(
        directory / "candidate.edgec",
        manifest_of(candidate, target, converted, variant, variant.outputs),
        members_of(converted, variant),
    )
    session = load(path, threads=threads)
    facts = Facts(
        engine_version=session.engine_version,
        precision=session.precision,
        placement=dict(session.placement),
        state=session.state,
    )
    return Made(
        candidate=candidate, path=path, converted=converted, facts=facts, reference=reference
    ), session


def _prepare(
    candidate: Candidate, target: Target, converter: Converter, shared: Shared
) -> tuple[Prepared, Reference]:
    variant, precision = shared.variants[candidate.variant], candidate.precision
    if precision in INTEGERS and quantizes(converter):
        model, quantities, reference = shared.rounded(variant, candidate.recipe)
        return Prepared(model=model, precision=precision, quantities=quantities), reference
    if precision == "int8":
        assert target.quantization is not None
        model, reference = shared.quantized(variant, target.quantization, candidate.recipe)
    elif precision == "int8-dynamic":
        base, exclude = variant.model, candidate.recipe.exclude
        if quantizes(converter) and normalizes_products(base):
            ready = shared.steadied(variant)
            base, exclude = ready.model, tuple(sorted({*exclude, *ready.fragile}))
        model = quantize_dynamic(base, exclude=exclude)
        reference = dynamic_reference(model, variant.parity_inputs, rounds_alike=not quantizes(converter))
        if quantizes(converter):
            quantities = Quantities(exclude=exclude)
            return Prepared(model=base, precision=precision, quantities=quantities), reference
    elif precision in BITS:
        model = converter.prepare(variant.model, precision, target)
        reference = compressed_reference(variant.model, BITS[precision], variant.parity_inputs)
    elif precision == "mixed":
        model, reference = _mixed(candidate, target, converter, shared)
    elif precision == "fp16" and isinstance(converter, Casting):
        # Where fp16 is a matter of storage, ranges of activations do not matter.
        table = None if precision in candidate.engine.storage_only else shared.table(variant)
        model = converter.to_half(variant.model, target, kept_in_fp32(variant.model, table))
        reference = variant.float_reference(precision)
    else:
        model = converter.prepare(variant.model, precision, target)
        reference = variant.float_reference(precision)
    return Prepared(model=model, precision=precision, weights_from=variant.weights_from), reference


def _mixed(
    candidate: Candidate, target: Target, converter: Converter, shared: Shared
) -> tuple[onnx.ModelProto, Reference]:
    """Return int8 with the rest in what the converter mixes it with, and what it is held against."""
    variant, scheme = shared.variants[candidate.variant], target.quantization
    assert scheme is not None
    recipe, rest = candidate.recipe, mixed_with(converter)
    if rest == "bf16" and candidate.engine.device != "CPU":
        raise ConversionError(f"int8 with bf16 beside it is for CPUs: for {candidate.engine.device} use int8")
    base = shared.base(variant, equalized=recipe.equalize, smooth=recipe.smooth)
    table = shared.table(variant, equalized=recipe.equalize, smooth=recipe.smooth)
    if rest == "fp32":
        layers = sensitive_layers(base, table, recipe.method)
        if not layers:
            raise NoGainError("no layer takes what eight bits cannot hold: mixed would be int8")
        recipe = replace(recipe, exclude=tuple(sorted({*recipe.exclude, *layers})))
    model = shared.graph(variant, scheme, recipe)
    reference = quantized_reference(model, variant.parity_inputs, arithmetic=rest)
    if isinstance(converter, Casting) and rest == "fp16":
        model = converter.to_half(model, target, kept_in_fp32(base, table))
    return model, reference


def _problem(made: Made, parity: Parity, target: Target, shared: Shared) -> str | None:
    """Return why a candidate that was made is out all the same; None where it is not."""
    if not parity.passed:
        return f"{parity_sentence(parity)}{_where(made, target, shared)}"
    promised, facts = made.candidate.precision, made.facts
    expected = {promised}
    if promised in (*INTEGERS, "int8-dynamic", "bf16", *BITS):
        expected.add("mixed")  # some layers stay in float; the placement says which
    if promised == "mixed":
        expected.add("int8")  # where what is beside int8 is none of the layers that do the arithmetic
    if promised in made.candidate.engine.storage_only or shared.variants[made.candidate.variant].quantized:
        # Engines have no integer kernels for some of what authors quantize, uint8 weights for one: such a
        # model runs in float, its report says so, and there is no other form of it to build.
        expected |= {"fp32", "mixed"}
    if facts.state == "fallback" or facts.precision in expected:
        return None
    return f"the engine runs it in {facts.precision}, not in {promised}"


def _where(made: Made, target: Target, shared: Shared) -> str:
    integers = made.candidate.precision in (*INTEGERS, "int8-dynamic")
    rounds = shared.variants[made.candidate.variant].rounds_like is not None
    if rounds or (integers and quantizes(get_converter(made.candidate.engine.name))):
        return ""  # its reference is no graph that it could be made from
    tensor = _diverging_tensor(made, target, shared)
    return f"; first diverging tensor: {tensor!r}" if tensor else "; no inner tensor diverges by itself"


def _source_snr_db(run: Run, variant: Variant, kept: Path | None) -> float | None:
    """Return the SNR of the worst output against the source in fp32; None where all are identical."""
    tallies = {spec.name: OutputTally(spec.name) for spec in variant.outputs}
    with kept_source(variant, kept) as program:
        for sample in variant.judged_inputs(_SNR_SAMPLES):
            expected, actual = program.run(sample), run(sample)
            for name, tally in tallies.items():
                tally.add(expected[name], actual[name])
    return _finite(min(tally.result.snr_db for tally in tallies.values()))


def _finite(snr_db: float | None) -> float | None:
    return snr_db if snr_db is not None and np.isfinite(snr_db) else None


def _diverging_tensor(made: Made, target: Target, shared: Shared) -> str | None:
    """Return the first inner tensor at which an artifact that failed parity leaves its reference.

    The same converter is asked for an artifact that gives its inner tensors too. None where it
    refuses that one, or no inner tensor is off by itself.
    """
    try:
        return first_divergence(made.reference, lambda graph: _run_traced(graph, made, target, shared))
    except EdgecError:
        return None


def _run_traced(graph: onnx.ModelProto, made: Made, target: Target, shared: Shared) -> Run:
    candidate, variant = made.candidate, shared.variants[made.candidate.variant]
    converter = get_converter(candidate.engine.name)
    quantized = candidate.precision in ("int8", "int8-dynamic", "mixed")
    model = graph if quantized else converter.prepare(graph, candidate.precision, target)
    directory = shared.directory()
    prepared = Prepared(model=model, precision=candidate.precision, weights_from=variant.weights_from)
    converted = converter.convert(prepared, candidate.engine, target, directory)
    outputs = _traced_outputs(graph, made.reference.inputs[0])
    path = pack(
        directory / "traced.edgec",
        manifest_of(candidate, target, converted, variant, outputs),
        members_of(converted, variant),
    )
    return load(path, threads=shared.options.threads).run


def _traced_outputs(graph: onnx.ModelProto, sample: Arrays) -> tuple[TensorSpec, ...]:
    with ReferenceProgram(graph) as program:
        values = program.run(sample)
    return tuple(
        TensorSpec(name, a.dtype.name, tuple(f"axis{i}_of_{n}" for i in range(a.ndim)))
        for n, (name, a) in enumerate(values.items())
    )
