"""The forms that a source model can be compiled in: as it is, or with its pre-processing in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgec.artifact import Pipeline, TensorSpec
from edgec.compiler.extensions import apply_pass, registered_passes
from edgec.compiler.likeness import Likeness
from edgec.compiler.model import SourceModel, real_inputs, tensor_specs
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import (
    Reference,
    check_parity,
    float_reference,
    parity_sentence,
    quantized_reference,
)
from edgec.compiler.passes.fold_constant_dequantize import fold_constant_dequantize, is_quantized
from edgec.compiler.passes.fold_preprocessing import fold_preprocessing
from edgec.compiler.passes.simplify import simplify
from edgec.compiler.passes.unquantize import unquantize
from edgec.compiler.pruning.patterns import Pattern
from edgec.compiler.samples import Samples
from edgec.errors import PassError, UnsupportedModelError
from edgec.runtime.pipeline import Processor

# Samples that parity runs on: each costs nine runs of the source without optimizations.
PARITY_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of the source.

    Attributes:
        name: ``plain``, or ``folded`` where pre-processing is in the graph; ``plain, 30 % pruned`` and the
            like where channels are gone, ``plain, 2:4 sparse`` where weights are zero.
        reference: What its author wrote, but for the folded head; defines what is right. A path where the
            weights are too large for one protobuf message.
        model: The same, simplified: what is converted.
        pipeline: What is left to do outside the graph.
        inputs: What it takes.
        outputs: What it gives.
        samples: Where its inputs come from.
        notes: What was done to it, in plain sentences.
        weights_from: Directory of the external data of a model above 2 GB; None otherwise.
        original: What accuracy is held against, where this form is not the source itself but computes
            something else: a pruned one, or one in float of what its author quantized. None otherwise.
        sparsity: The pattern of zeros in its weights, where it was given one; None otherwise.
        rounds_like: The Q/DQ graph whose rounding this form does in float; None for all others.
        itself: How near a quantized source comes to itself, by the number of samples; shared by its forms.
    """

    name: str
    reference: onnx.ModelProto | Path
    model: onnx.ModelProto
    pipeline: Pipeline | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Samples
    notes: tuple[str, ...] = ()
    weights_from: Path | None = None
    original: onnx.ModelProto | None = None
    sparsity: Pattern | None = None
    rounds_like: onnx.ModelProto | None = None
    itself: dict[int, Sequence[Likeness]] = field(default_factory=dict, repr=False, compare=False)
    _references: dict[str, Reference] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A processor may hold what cannot be pickled; it is made again where it is needed.
        return {name: value for name, value in self.__dict__.items() if name != "processor"}

    @property
    def runnable(self) -> onnx.ModelProto | Path:
        """What ONNX Runtime can be given: the model, or where it lies if its weights are not in it."""
        return self.model if self.weights_from is None else self.reference

    @property
    def source(self) -> onnx.ModelProto | Path:
        """What ONNX Runtime can be given to learn what the source computes, from the same inputs."""
        return self.runnable if self.original is None else self.original

    @property
    def quantized(self) -> bool:
        """Whether its author quantized it already."""
        return self.weights_from is None and is_quantized(self.model)

    @cached_property
    def source_is_quantized(self) -> bool:
        """Whether `source` is: its outputs then depend on how an engine rounds, and chaotically if deep."""
        source = self.source
        return not isinstance(source, Path) and is_quantized(source)

    @cached_property
    def processor(self) -> Processor:
        """What turns samples into inputs and outputs into predictions."""
        return make_processor(self.pipeline, self.inputs, self.outputs)

    @cached_property
    def parity_inputs(self) -> list[Mapping[str, NDArray[Any]]]:
        """The inputs that parity and golden vectors use."""
        return list(self.samples.spread_inputs(self.processor, self.inputs, PARITY_SAMPLES))

    def spread_inputs(self, n: int) -> list[Mapping[str, NDArray[Any]]]:
        """Return up to `n` inputs of those to calibrate with, spread over the data."""
        return self.samples.spread_inputs(self.processor, self.inputs, n)

    def judged_inputs(self, n: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield up to `n` inputs of those to judge candidates on, spread over the data."""
        return self.samples.judged_inputs(self.processor, self.inputs, n)

    def float_reference(self, precision: str) -> Reference:
        """Return the reference with the noise floor of `precision`; made once.

        Of a form that rounds as its author does it is the author's Q/DQ graph, with the noise of rounding.
        """
        if precision not in self._references:
            if self.rounds_like is not None:
                what = "the source as its author quantized it,"
                made = quantized_reference(self.rounds_like, self.parity_inputs, what, precision)
            else:
                made = float_reference(self.reference, self.parity_inputs, precision)
            self._references[precision] = made
        return self._references[precision]


def make_processor(
    pipeline: Pipeline | None, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Processor:
    """Return the processor of a pipeline whose files are where its author has them."""
    return Processor(pipeline, inputs, outputs, pipeline.read_source if pipeline is not None else None)


def plain_variant(source: SourceModel, pipeline: Pipeline | None, samples: Samples) -> Variant:
    """Return the source as it is, simplified where that changes nothing, and rewritten by registered passes.

    Raises:
        PassError: A registered pass fails, or changes what the model computes.
    """
    variant = Variant(
        name="plain",
        reference=source.path if source.large else source.proto,
        model=source.proto,
        pipeline=pipeline,
        inputs=source.inputs,
        outputs=source.outputs,
        samples=samples,
        weights_from=source.path.parent if source.large else None,
        notes=() if source.origin is None else (source.origin.sentence,),
    )
    return _rewritten(_simplified(variant, source))


def folded_variant(plain: Variant) -> Variant | None:
    """Return the source with its pre-processing in the graph; None where nothing can be folded.

    Raises:
        PassError: The folded graph does not compute what pre-processing and source do.
    """
    if plain.pipeline is None or isinstance(plain.reference, Path):
        return None
    reference = fold_preprocessing(plain.reference, plain.pipeline)
    model = fold_preprocessing(plain.model, plain.pipeline)
    if reference is None or model is None:
        return None
    variant = Variant(
        name="folded",
        reference=reference[0],
        model=model[0],
        pipeline=reference[1],
        inputs=tensor_specs(real_inputs(reference[0])),
        outputs=plain.outputs,
        samples=plain.samples,
        notes=plain.notes,
    )
    _check_fold(plain, variant)
    return variant


def unquantized_variants(variant: Variant) -> tuple[Variant, ...]:
    """Return the forms in float of a source that its author quantized; none of any other.

    One rounds activations where the author does, so that it computes what the source does in engines whose
    int8 differs; the other does not, which is faster, and differs by the noise of that rounding.
    """
    if not variant.quantized:
        return ()
    forms = []
    for rounding, name, note in (
        (True, "author's rounding", "computed in float, and rounded where its author rounds"),
        (False, "without rounding", "computed in float, without the rounding of activations by its author"),
    ):
        model = unquantize(variant.model, rounding=rounding)
        if model is not None:
            form = replace(
                variant,
                name=f"{variant.name}, {name}",
                reference=model,
                model=model,
                original=variant.model,
                rounds_like=variant.model if rounding else None,
                notes=(*variant.notes, note),
                _references={},
            )
            forms.append(form)
    return tuple(forms)


def _check_fold(plain: Variant, folded: Variant) -> None:
    expected = plain.float_reference("fp32")
    with ReferenceProgram(folded.reference) as program:
        outputs = [program.run(sample) for sample in folded.parity_inputs]
    pending = iter(outputs)
    parity = check_parity(lambda _: next(pending), expected)
    if not parity.passed:
        raise PassError(
            f"folding the pre-processing changes what the model computes: {parity_sentence(parity)}"
        )


def _simplified(variant: Variant, source: SourceModel) -> Variant:
    if source.large:
        return _noted(variant, "not simplified: its weights are too large for the simplifier")
    try:
        simpler = fold_constant_dequantize(simplify(variant.model))
    except PassError as e:
        return _noted(variant, f"not simplified: {e}")
    expected = variant.float_reference("fp32")
    try:
        with ReferenceProgram(simpler) as program:
            parity = check_parity(program.run, expected)
    except UnsupportedModelError as e:
        return _noted(variant, f"not simplified: the simplifier breaks it: {e}")
    if not parity.passed:
        return _noted(
            variant, f"not simplified: the simplifier changes what it computes: {parity_sentence(parity)}"
        )
    before, after = len(variant.model.graph.node), len(simpler.graph.node)
    note = f"simplified from {before} to {after} nodes, with the same outputs"
    return _noted(variant, note, simpler)


def _rewritten(variant: Variant) -> Variant:
    """Return a variant after the passes that other packages register; what they break is an error."""
    for name, rewrite in registered_passes():
        if variant.weights_from is not None:
            variant = _noted(variant, f"pass {name!r} was not applied: the model's weights are too large")
            continue
        changed = apply_pass(name, rewrite, variant.model)
        if changed is None:
            continue
        try:
            with ReferenceProgram(changed) as program:
                parity = check_parity(program.run, variant.float_reference("fp32"))
        except UnsupportedModelError as e:
            raise PassError(f"pass {name!r} breaks the model: {e}; fix or uninstall its package") from e
        if not parity.passed:
            raise PassError(
                f"pass {name!r} changes what the model computes: {parity_sentence(parity)}; fix or uninstall "
                "its package"
            )
        before, after = len(variant.model.graph.node), len(changed.graph.node)
        variant = _noted(
            variant, f"pass {name!r}: from {before} to {after} nodes, with the same outputs", changed
        )
    return variant


def _noted(variant: Variant, note: str, model: onnx.ModelProto | None = None) -> Variant:
    return replace(variant, model=model if model is not None else variant.model, notes=(*variant.notes, note))
