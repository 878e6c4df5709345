"""The accuracy gate: does a candidate lose more than the budget against the source in fp32?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.compiler.kept_outputs import KeptProgram
from edgec.compiler.likeness import (
    ENOUGH_AGREEMENT,
    ENOUGH_SNR_DB,
    Kind,
    Likeness,
    LikenessTally,
    kind_of,
)
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity import misrounded
from edgec.compiler.tournament import Gate
from edgec.compiler.variants import Variant
from edgec.errors import DataError
from edgec.evaluation import (
    Dataset,
    Evaluation,
    Metric,
    Predictor,
    Score,
    evaluate,
    paired,
)
from edgec.runtime.pipeline import Processor

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
# The fewest however slow the model: enough to show agreement with one difference among them. Each is half of
# the one before, so that spread samples are among those of the one before: outputs of the source are kept.
_JUDGED = (888, 444, 222)
_FEWEST_JUDGED = _JUDGED[-1]
_JUDGE_S, _JUDGE_BOTH_S = 10.0, 20.0  # for all samples of one candidate; with the source's own runs
_FOR_FIGURES = 16  # where nothing depends on them
# As near as float32 comes to itself: so many samples then show what more would.
SAME_SNR_DB, ENOUGH_OF_THE_SAME = 80.0, 32
# By which sums of int8 products in float32 are off, in quantization steps of what they are rounded to.
_FLOAT_ROUNDING_STEPS = 2.0**-16
_AS_NEAR_DB = 1.0  # by which two signal-to-noise ratios of the same noise may differ


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The source in fp32 on the evaluation data.

    Attributes:
        metric: What is scored.
        data: The data.
        evaluation: Of the source.
    """

    metric: Metric
    data: Dataset
    evaluation: Evaluation

    @property
    def score(self) -> Score:
        """Of the source."""
        return self.evaluation.score


def source_program(variant: Variant) -> ReferenceProgram:
    """Return what candidates are judged against, as fast as it can run and compute what its author wrote.

    What its author quantized runs as it is written: integer kernels round differently, or saturate.
    """
    return ReferenceProgram(variant.source, optimize=not variant.source_is_quantized, threads=0)


def kept_source(variant: Variant, kept: Path | None) -> KeptProgram:
    """Return the same, whose outputs are kept in a directory for all forms of the source; None for no."""
    return KeptProgram(partial(source_program, variant), _kept_in(kept, variant, "source"))


def _kept_in(kept: Path | None, variant: Variant, what: str) -> Path | None:
    # All forms of a variant are held against the same source.
    return None if kept is None else kept / f"{what}, {variant.name.partition(', ')[0]}"


def measure_baseline(variant: Variant, data: Dataset, metric: Metric) -> Baseline:
    """Score the source in ONNX Runtime fp32, through its own pre- and post-processing."""
    with source_program(variant) as program:
        found = evaluate(ProcessedProgram(variant.processor, program.run), data, metric)
    return Baseline(metric=metric, data=data, evaluation=found)


def score_graph(graph: onnx.ModelProto, variant: Variant, baseline: Baseline) -> Evaluation:
    """Score a graph that takes what a variant takes, in ONNX Runtime."""
    with ReferenceProgram(graph, optimize=True, threads=0) as program:
        return evaluate(ProcessedProgram(variant.processor, program.run), baseline.data, baseline.metric)


def judge_labelled(session: Predictor, baseline: Baseline, options: CompileOptions) -> Gate:
    """Score a candidate and hold it against the source by the paired difference on the same samples."""
    found = evaluate(session, baseline.data, baseline.metric)
    score = found.score
    if options.max_drop is None:
        return Gate(verdict="pass", reason="the accuracy gate is off (--max-drop none)", score=score)
    source = baseline.evaluation
    difference = paired(
        baseline.metric, source.predictions, found.predictions, found.labels, max_drop=options.max_drop
    )
    figures = (
        f"{baseline.metric.name} {score.value:.4g} against {baseline.score.value:.4g} in fp32 "
        f"on {difference.n} samples, "
        f"lower bound of the difference {difference.lower_bound:+.2%} (allowed {-options.max_drop:+.2%})"
    )
    if difference.verdict != "inconclusive":
        return Gate(verdict=difference.verdict, reason=figures, score=score, difference=difference)
    short = difference.difference < -options.max_drop
    if difference.agreement >= max(ENOUGH_AGREEMENT, 1 - options.max_drop) and not short:
        reason = (
            f"{figures}: too few samples to prove, "
            f"accepted because {difference.agreement:.1%} of predictions agree"
        )
        return Gate(verdict="pass", reason=reason, score=score, difference=difference)
    needed = (
        f"about {difference.needed_n} samples would decide"
        if difference.needed_n
        else "no number of samples would decide"
    )
    if options.accept_inconclusive:
        return Gate(
            verdict="pass",
            reason=f"{figures}: inconclusive, accepted by --accept-inconclusive; {needed}",
            score=score,
            difference=difference,
        )
    return Gate(
        verdict="inconclusive",
        reason=f"{figures}: inconclusive; {needed}, or give --accept-inconclusive",
        score=score,
        difference=difference,
        short=short,
    )


def judge_graph(
    graph: onnx.ModelProto, variant: Variant, baseline: Baseline | None, options: CompileOptions
) -> Gate:
    """Judge a graph that takes what a variant takes, in ONNX Runtime."""
    with ReferenceProgram(graph, optimize=True, threads=0) as program:
        if baseline is not None:
            return judge_labelled(ProcessedProgram(variant.processor, program.run), baseline, options)
        return judge_unlabelled(program.run, variant, options)


def judge_unlabelled(run: Run, variant: Variant, options: CompileOptions, kept: Path | None = None) -> Gate:
    """Hold a candidate's outputs against the source's where there are no labels.

    It is judged on samples that ranges were not taken from, as many as there are and time allows, up to
    888. What is asked of each output is in `edgec.compiler.likeness`.

    Args:
        run: The candidate.
        variant: What it was made from.
        options: How to compile.
        kept: Directory where the source's outputs are kept from one candidate to the next.
    """
    limit = None if options.max_drop is not None else _FOR_FIGURES
    found = compare_unlabelled(run, variant, limit, kept)
    figures = f"no labels; {_on_what(variant, found)}: {', '.join(map(str, found))}"
    gate = Gate(
        verdict="pass",
        reason=figures,
        snr_db=min(f.snr_db for f in found),
        agreement=min((f.agreement for f in found if f.agreement is not None), default=None),
        judged=found[0].samples,
    )
    if options.max_drop is None:
        return replace(gate, reason=f"{figures}; the accuracy gate is off (--max-drop none)")
    verdicts = {f.verdict for f in found}
    if verdicts == {"pass"}:
        return gate
    if variant.source_is_quantized and (itself := _no_nearer_to_itself(found, variant, kept)) is not None:
        return replace(gate, reason=f"{figures}; {itself}")
    if "fail" in verdicts:
        asked = _asked([f for f in found if f.verdict == "fail"])
        return replace(gate, verdict="fail", short=True, reason=f"{figures}; {asked} is asked for")
    undecided = [f for f in found if f.verdict == "inconclusive"]
    short = any(f.short for f in undecided)
    what = "too few samples to show that this is enough"
    if short:
        what = f"less than the {_asked(undecided)} asked for, on too few samples to be sure"
    needed = max((f.needed or 0 for f in undecided), default=0)
    remedy = f"about {needed} would do" if needed and not short else "more would tell"
    if options.accept_inconclusive:
        reason = f"{figures}: {what}, accepted by --accept-inconclusive; {remedy}"
        return replace(gate, short=short, reason=reason)
    remedy += ": give --evaluation with more (they need no labels), or --accept-inconclusive"
    return replace(gate, verdict="inconclusive", short=short, reason=f"{figures}: {what}; {remedy}")


def compare_unlabelled(
    run: Run, variant: Variant, limit: int | None = None, kept: Path | None = None
) -> list[Likeness]:
    """Compare every output of a candidate with the source's, on the samples to judge on.

    Args:
        run: The candidate.
        variant: What it was made from.
        limit: Largest number of samples; None for as many as time allows.
        kept: Directory where the source's outputs are kept from one candidate to the next.

    Raises:
        DataError: The data is empty.
    """
    tallies = {s.name: LikenessTally(s.name, kind) for s, kind in output_kinds(variant)}

    def add(sample: Arrays) -> None:
        expected, actual = program.run(sample), run(sample)
        for name, tally in tallies.items():
            tally.add(expected[name], actual[name])

    with kept_source(variant, kept) as program:
        first = next(variant.judged_inputs(1), None)
        if first is None:
            raise DataError("the data holds no samples to judge on: give at least one")
        add(first)  # warms both up
        tallies = {s.name: LikenessTally(s.name, kind) for s, kind in output_kinds(variant)}
        if limit is None:
            begun = time.monotonic()
            run(first)
            limit = _judged_in_time(
                time.monotonic() - begun, program.took_s, len(variant.samples.judged or ())
            )
        add(first)
        # The first of any number of spread samples is the first of all.
        for count, sample in enumerate(islice(variant.judged_inputs(limit), 1, None), 2):
            add(sample)
            if count == ENOUGH_OF_THE_SAME and all(
                tally.result.snr_db >= SAME_SNR_DB for tally in tallies.values()
            ):
                break
    return [tally.result for tally in tallies.values()]


def _judged_in_time(candidate_s: float, source_s: float, available: int) -> int:
    """Return how many samples to judge on.

    Args:
        candidate_s: What a candidate takes for one, in seconds.
        source_s: What its source takes; it counts although outputs may be kept, for one candidate is first.
        available: How many samples there are; 0 for made-up ones.
    """
    for count in _JUDGED:
        judged = min(count, available or count)
        if judged * candidate_s <= _JUDGE_S and judged * (candidate_s + source_s) <= _JUDGE_BOTH_S:
            return count
    return _FEWEST_JUDGED


def _no_nearer_to_itself(found: Sequence[Likeness], variant: Variant, kept: Path | None) -> str | None:
    """Return the sentence that a quantized source is as far from itself as a candidate; None if it is not.

    One activation that is rounded the other way changes what the next layer rounds: after fifty layers the
    outputs of two exact runs, which only add up in another order, differ by all the noise of quantization.
    """
    assert isinstance(variant.source, onnx.ModelProto)
    count = min(found[0].samples, _FEWEST_JUDGED)
    if count not in variant.itself:
        noisy = partial(_misrounded_source, variant)
        with KeptProgram(noisy, _kept_in(kept, variant, "misrounded")) as program:
            variant.itself[count] = compare_unlabelled(program.run, variant, count, kept)
    itself = variant.itself[count]
    pairs = list(zip(found, itself, strict=True))
    if any(f.verdict != "pass" and f.snr_db < i.snr_db - _AS_NEAR_DB for f, i in pairs):
        return None
    worst = ", ".join(f"{i.name} {i.snr_db:.1f} dB" for f, i in pairs if f.verdict != "pass")
    return (
        "accepted because the source, as its author quantized it, comes no nearer to itself where rounding "
        f"errors of float32 fall differently: {worst}"
    )


def _misrounded_source(variant: Variant) -> ReferenceProgram:
    assert isinstance(variant.source, onnx.ModelProto)
    return ReferenceProgram(misrounded(variant.source, 0, _FLOAT_ROUNDING_STEPS), threads=0)


def output_kinds(variant: Variant) -> list[tuple[TensorSpec, Kind]]:
    # The source says what an output is, and not what became of its last operators.
    model = variant.model if variant.original is None else variant.original
    return [(s, kind_of(s, model, variant.inputs, variant.pipeline)) for s in variant.outputs]


def _on_what(variant: Variant, found: Sequence[Likeness]) -> str:
    samples = variant.samples
    whose = "made-up samples" if samples.data is None else "samples"
    seen = "" if samples.separate else " that it was calibrated with"
    return f"on {found[0].samples} {whose}{seen} against the source in fp32"


def _asked(found: Sequence[Likeness]) -> str:
    """Return what is asked of outputs, in words."""
    kinds = {f.kind for f in found}
    wanted = [f"agreement of {ENOUGH_AGREEMENT:.0%}"] if kinds - {"values"} else []
    wanted += [f"{ENOUGH_SNR_DB:g} dB"] if kinds - {"classes"} else []
    return " or ".join(wanted)


class ProcessedProgram:
    """A program, through the pre- and post-processing of the source."""

    def __init__(self, processor: Processor, run: Run) -> None:
        self._processor, self._run = processor, run

    def predict(self, sample: Any) -> Mapping[str, Any]:
        """Return what it predicts for a sample, as ``Session.predict``."""
        inputs, context = self._processor.preprocess(sample)
        return self._processor.postprocess(self._run(inputs), context)
