"""The accuracy gate: does a candidate lose more than the budget against the source in fp32?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.options import CompileOptions
from edgec.compiler.tournament import Gate
from edgec.compiler.variants import Variant
from edgec.evaluation import (
    Dataset,
    Evaluation,
    Metric,
    OutputComparison,
    OutputTally,
    Predictor,
    Score,
    evaluate,
    paired,
)
from edgec.runtime.pipeline import Processor

Arrays = Mapping[str, NDArray[Any]]
_ENOUGH_AGREEMENT = 0.99
_ENOUGH_SNR_DB = 20.0
_UNLABELLED_SAMPLES = 64


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


def measure_baseline(variant: Variant, data: Dataset, metric: Metric) -> Baseline:
    """Score the source in ONNX Runtime fp32, through its own pre- and post-processing."""
    with ReferenceProgram(variant.runnable, optimize=True, threads=0) as program:
        found = evaluate(_SourcePredictor(variant.processor, program.run), data, metric)
    return Baseline(metric=metric, data=data, evaluation=found)


def score_graph(graph: onnx.ModelProto, variant: Variant, baseline: Baseline) -> Evaluation:
    """Score a graph that takes what a variant takes, in ONNX Runtime."""
    with ReferenceProgram(graph, optimize=True, threads=0) as program:
        return evaluate(_SourcePredictor(variant.processor, program.run), baseline.data, baseline.metric)


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
    if difference.agreement >= _ENOUGH_AGREEMENT:
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
    )


def judge_unlabelled(run: Callable[[Arrays], Arrays], variant: Variant, options: CompileOptions) -> Gate:
    """Hold a candidate's outputs against the source's where there are no labels.

    Every output must agree with the source's in 99 % of its rows, or have an SNR of 20 dB.
    """
    samples = variant.samples.spread_inputs(variant.processor, variant.inputs, _UNLABELLED_SAMPLES)
    tallies = {spec.name: OutputTally(spec.name) for spec in variant.outputs}
    with ReferenceProgram(variant.runnable, optimize=True, threads=0) as program:
        for sample in samples:
            expected, actual = program.run(sample), run(sample)
            for name, tally in tallies.items():
                tally.add(expected[name], actual[name])
    results = [tally.result for tally in tallies.values()]
    against = ", ".join(map(_similarity, results))
    figures = f"no labels; on {len(samples)} samples against the source in fp32: {against}"
    if options.max_drop is None:
        return Gate(verdict="pass", reason=f"{figures}; the accuracy gate is off (--max-drop none)")
    if all(_alike(r) for r in results):
        return Gate(verdict="pass", reason=figures)
    return Gate(
        verdict="fail",
        reason=f"{figures}; agreement of {_ENOUGH_AGREEMENT:.0%} or {_ENOUGH_SNR_DB:g} dB is asked for",
    )


def _alike(result: OutputComparison) -> bool:
    agrees = result.agreement is not None and result.agreement >= _ENOUGH_AGREEMENT
    return agrees or result.snr_db >= _ENOUGH_SNR_DB


def _similarity(result: OutputComparison) -> str:
    agreement = "" if result.agreement is None else f", agreement {result.agreement:.1%}"
    return f"{result.name} SNR {result.snr_db:.1f} dB{agreement}"


class _SourcePredictor:
    """The source, through its own pre- and post-processing."""

    def __init__(self, processor: Processor, run: Callable[[Arrays], Arrays]) -> None:
        self._processor, self._run = processor, run

    def predict(self, sample: Any) -> Mapping[str, Any]:
        inputs, context = self._processor.preprocess(sample)
        return self._processor.postprocess(self._run(inputs), context)
