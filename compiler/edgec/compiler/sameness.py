"""Whether a candidate computes what the source does, so that it has the source's score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgec.compiler.accuracy import (
    ENOUGH_OF_THE_SAME,
    SAME_SNR_DB,
    Baseline,
    ProcessedProgram,
    compare_unlabelled,
    kept_source,
    output_kinds,
)
from edgec.compiler.likeness import LikenessTally
from edgec.compiler.options import CompileOptions
from edgec.compiler.tournament import Gate
from edgec.compiler.variants import Variant
from edgec.errors import DataError
from edgec.evaluation import PairedDifference, Predictor, evaluate, paired, predict_sample, spread

Arrays = Mapping[str, NDArray[Any]]
_FEWEST_COMPARED = 300
_ERROR = 0.05  # probability with which a bound may be wrong


class Runnable(Predictor, Protocol):
    """What can be scored, and gives its outputs for inputs; an `edgec.runtime.Session` is one."""

    def run(self, inputs: Arrays, /) -> Arrays:
        """Return the outputs for one set of inputs."""
        ...


def judge_same(
    session: Runnable,
    variant: Variant,
    baseline: Baseline,
    options: CompileOptions,
    kept: Path | None = None,
) -> tuple[Gate, float] | None:
    """Give a candidate the source's own score where it computes the same, to float32's own precision.

    It does where on samples spread over the data every output is within 80 dB of the source's, and every
    prediction is the source's own. They are 300 or more: so many that at most `options.max_drop` of all
    samples can differ where none of them does. The difference that is given is that of these samples.

    Returns:
        The verdict, and the SNR of the worst output in dB; None where it differs, or where the data is so
        little that scoring it takes no longer.
    """
    n, count = len(baseline.data), _enough(options.max_drop)
    if count is None or n < 2 * count:  # of each compared sample, the source runs too
        return None
    few = compare_unlabelled(session.run, variant, ENOUGH_OF_THE_SAME, kept)
    if min(found.snr_db for found in few) < SAME_SNR_DB:
        return None
    max_drop = options.max_drop
    try:
        if not _predicts_the_same(session, baseline):
            return None
        snr_db, difference = _compared(session, variant, baseline, count, max_drop, kept)
    except DataError:  # so few samples may hold one class only, or none at all
        return None
    differs = max_drop is not None and (difference.verdict != "pass" or difference.lower_bound < -max_drop)
    if snr_db < SAME_SNR_DB or difference.agreement < 1.0 or differs:
        return None
    score = baseline.score
    reason = (
        f"{baseline.metric.name} {score.value:.4g}, the source's own: on {count} of {n} samples every output "
        f"is within {SAME_SNR_DB:g} dB of the source's, and predictions are the same; the others were not "
        f"compared: at most {_most_that_differ(count):.2%} of them differ (one-sided 95 % bound)"
    )
    given = None if max_drop is None else difference
    return Gate(verdict="pass", reason=reason, score=score, difference=given), snr_db


def _enough(max_drop: float | None) -> int | None:
    """Return how many samples without a difference show that at most so many differ; None where none do."""
    if max_drop is None or max_drop >= 1:
        return _FEWEST_COMPARED
    if max_drop <= 0:
        return None
    return max(_FEWEST_COMPARED, math.ceil(math.log(_ERROR) / math.log1p(-max_drop)))


def _most_that_differ(count: int) -> float:
    """Return the one-sided upper bound of a share of which `count` samples showed nothing.

    That of Clopper and Pearson (1934).
    """
    return 1 - float(_ERROR ** (1 / count))


def _predicts_the_same(session: Predictor, baseline: Baseline) -> bool:
    """Return whether a few predictions are the source's by the session's own pre- and post-processing."""
    chosen = spread(len(baseline.data), ENOUGH_OF_THE_SAME)
    source = [baseline.evaluation.predictions[i] for i in chosen]
    found = evaluate(session, baseline.data, baseline.metric, limit=ENOUGH_OF_THE_SAME)
    return paired(baseline.metric, source, found.predictions, found.labels).agreement == 1.0


def _compared(
    session: Runnable,
    variant: Variant,
    baseline: Baseline,
    count: int,
    max_drop: float | None,
    kept: Path | None,
) -> tuple[float, PairedDifference]:
    """Return the SNR of the worst output in dB, and the difference of scores, on samples from first to last.

    The bounds of the difference leave room for every sample that may differ beside those that were seen.
    """
    n, metric, whole = len(baseline.data), baseline.metric, baseline.evaluation
    chosen = [i * (n - 1) // (count - 1) for i in range(count)]
    tallies = {s.name: LikenessTally(s.name, kind) for s, kind in output_kinds(variant)}
    with kept_source(variant, kept) as program:

        def run(inputs: Arrays) -> Arrays:
            expected, actual = program.run(inputs), session.run(inputs)
            for name, tally in tallies.items():
                tally.add(expected[name], actual[name])
            return actual

        candidate, wanted = ProcessedProgram(variant.processor, run), set(chosen)
        predictions = [
            metric.compact(predict_sample(candidate.predict, sample.data))
            for i, sample in enumerate(baseline.data)
            if i in wanted
        ]
    found = paired(
        metric,
        [whole.predictions[i] for i in chosen],
        predictions,
        [whole.labels[i] for i in chosen],
        max_drop=0.01 if max_drop is None else max_drop,
    )
    room = _most_that_differ(count)
    found = replace(
        found, lower_bound=min(found.lower_bound, -room), upper_bound=max(found.upper_bound, room)
    )
    return min(tally.result.snr_db for tally in tallies.values()), found
