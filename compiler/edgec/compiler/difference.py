"""What changed between two builds of one model: numerics, accuracy, size and speed, with significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.artifact import Artifact
from edgec.errors import BackendUnavailableError, DataError
from edgec.evaluation import (
    Dataset,
    Evaluation,
    OutputComparison,
    OutputTally,
    PairedDifference,
    Score,
    evaluate,
    get_metric,
    paired,
    synthetic_inputs,
)
from edgec.runtime import Session, load
from edgec.runtime.benchmark import this_machine
from edgec.runtime.measurement import LatencySamples, MedianRatio, measure_interleaved, median_ratio
from edgec.runtime.pipeline import Processor

Arrays = Mapping[str, NDArray[Any]]
_SAMPLES = 64
_MIN_ROUNDS = 50
_ENOUGH_AGREEMENT = 0.99
_ENOUGH_SNR_DB = 20.0
_USUAL_DROP = 0.01
# Two sessions of one artifact differ by more than the interval says, by where their memory happens to lie:
# of 24 comparisons of an artifact with its own copy, 7 intervals left out 1, by up to 0.6 %.
_ALIKE = 0.03


@dataclass(frozen=True, kw_only=True)
class AccuracyDifference:
    """Two builds on the same labelled samples.

    Attributes:
        metric: What was scored.
        before: Score of the first.
        after: Score of the second.
        paired: The second minus the first.
    """

    metric: str
    before: Score
    after: Score
    paired: PairedDifference


@dataclass(frozen=True, kw_only=True)
class LatencyDifference:
    """Two builds timed side by side on this machine.

    Attributes:
        call: ``run``, or ``predict`` where they prepare samples in different places.
        threads: Of one inference.
        before: Latencies of the first.
        after: Latencies of the second.
        ratio: Of the second's median to the first's.
        load_average: Of the machine when measuring began; None where the system does not tell.
    """

    call: str
    threads: int
    before: LatencySamples
    after: LatencySamples
    ratio: MedianRatio
    load_average: float | None

    @property
    def significant(self) -> bool:
        """Whether the whole 95 % interval is more than 3 % away from 1."""
        return self.ratio.lower > 1 + _ALIKE or self.ratio.upper < 1 - _ALIKE


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changed from one build to another.

    Attributes:
        inputs: What outputs were compared on, in words.
        outputs: The second's, with the first's as reference.
        accuracy: None without labels.
        size_bytes: Of both files.
        precision: Effective precision of both.
        latency: None where it could not be measured.
        not_compared: What could not be compared and why, in sentences.
        worse: What got significantly worse, beyond the budget, in sentences; empty where nothing did.
    """

    inputs: str
    outputs: tuple[OutputComparison, ...]
    accuracy: AccuracyDifference | None
    size_bytes: tuple[int, int]
    precision: tuple[str, str]
    latency: LatencyDifference | None
    not_compared: tuple[str, ...]
    worse: tuple[str, ...]


def compare_builds(
    before: Path,
    after: Path,
    *,
    data: Dataset | None = None,
    labelled: Dataset | None = None,
    metric: str | None = None,
    threads: int = 1,
    duration_s: float = 2.0,
    max_slowdown: float = 0.05,
    seed: int = 0,
) -> Difference:
    """Compare two artifacts of one model for one target.

    Args:
        before: The first.
        after: The second.
        data: Samples to compare outputs on, at most 64; None for golden vectors.
        labelled: Samples to compare accuracy on; needs `metric`.
        metric: What to score.
        threads: Threads of one inference.
        duration_s: To measure latencies for, in seconds, for both together.
        max_slowdown: Share by which the second may be slower.
        seed: Of the order of calls, and of synthetic inputs where there is nothing else.

    Raises:
        DataError: The two give different outputs, or the data does not fit.
        InferenceError: One cannot be run at all.
    """
    with ExitStack() as stack:
        pair = [_Build(path, stack, threads) for path in (before, after)]
        max_drop = pair[0].session.manifest.budgets.max_drop
        inputs, description = _inputs(pair, data if data is not None else labelled, seed)
        outputs = _compare_outputs(pair, inputs)
        accuracy = None
        if labelled is not None and metric is not None:
            accuracy = _compare_accuracy(pair, labelled, metric, max_drop)
        reason = _not_timed(pair)
        latency = None
        if reason is None:
            latency = _compare_latency(pair, data or labelled, inputs, threads, duration_s, seed)
        return Difference(
            inputs=description,
            outputs=outputs,
            accuracy=accuracy,
            size_bytes=(before.stat().st_size, after.stat().st_size),
            precision=(pair[0].session.precision, pair[1].session.precision),
            latency=latency,
            not_compared=() if reason is None else (reason,),
            worse=_worse(outputs, accuracy, latency, max_drop, max_slowdown),
        )


class _Build:
    """An artifact, ready to run."""

    def __init__(self, path: Path, stack: ExitStack, threads: int) -> None:
        self.path = path
        try:
            self.session: Session = stack.enter_context(load(path, threads=threads))
        except BackendUnavailableError as e:
            raise BackendUnavailableError(
                f"{path} cannot be run here, so nothing can be compared: {e}"
            ) from e
        with Artifact.open(path) as artifact:
            self.processor = Processor(
                self.session.manifest.pipeline, self.session.inputs, self.session.outputs, artifact.read
            )
            self.golden: list[Arrays] = [vector.inputs for vector in artifact.golden()]

    def prepare(self, sample: Any) -> Arrays:
        return self.processor.preprocess(sample)[0]


def _inputs(
    pair: Sequence[_Build], data: Dataset | None, seed: int
) -> tuple[list[tuple[Arrays, Arrays]], str]:
    """Return inputs of both builds for the same samples, and what they are in words."""
    first, second = pair
    if data is not None:
        samples = [sample.data for sample in data.select(min(_SAMPLES, len(data)))]
        return [(first.prepare(s), second.prepare(s)) for s in samples], f"{len(samples)} of {data.source}"
    if first.session.inputs != second.session.inputs:
        raise DataError(
            "one build has its pre-processing in the graph, the other has not: give --calibration or "
            "--evaluation to compare them"
        )
    if first.golden:
        return [(g, g) for g in first.golden], f"{len(first.golden)} golden vectors"
    made = synthetic_inputs(first.session.inputs, 8, seed)
    return [(m, m) for m in made], f"8 synthetic inputs, seed {seed}"


def _compare_outputs(
    pair: Sequence[_Build], inputs: Sequence[tuple[Arrays, Arrays]]
) -> tuple[OutputComparison, ...]:
    names, others = ([spec.name for spec in build.session.outputs] for build in pair)
    if set(names) != set(others):
        raise DataError(f"the outputs differ: {', '.join(names)} before, {', '.join(others)} now")
    tallies = [OutputTally(name) for name in names]
    for mine, theirs in inputs:
        reference, actual = pair[0].session.run(dict(mine)), pair[1].session.run(dict(theirs))
        for name, tally in zip(names, tallies, strict=True):
            tally.add(reference[name], actual[name])
    return tuple(tally.result for tally in tallies)


def _compare_accuracy(
    pair: Sequence[_Build], data: Dataset, metric: str, max_drop: float | None
) -> AccuracyDifference:
    chosen = get_metric(metric)
    before, after = (_score(build, data, metric) for build in pair)
    return AccuracyDifference(
        metric=metric,
        before=before.score,
        after=after.score,
        paired=paired(
            chosen,
            before.predictions,
            after.predictions,
            before.labels,
            max_drop=_USUAL_DROP if max_drop is None else max_drop,
        ),
    )


def _score(build: _Build, data: Dataset, metric: str) -> Evaluation:
    return evaluate(build.session, data, metric)


def _not_timed(pair: Sequence[_Build]) -> str | None:
    """Return why latencies cannot be compared here; None where they can."""
    for build in pair:
        if build.session.state != "ready":
            engine = build.session.manifest.engine
            return (
                f"latency was not compared: {engine.name} on {engine.device} cannot run on this machine, and "
                f"{build.session.engine}, which stands in for it, says nothing of its speed"
            )
    return None


def _compare_latency(
    pair: Sequence[_Build],
    data: Dataset | None,
    inputs: Sequence[tuple[Arrays, Arrays]],
    threads: int,
    duration_s: float,
    seed: int,
) -> LatencyDifference:
    before, after = pair
    call = "run" if before.session.inputs == after.session.inputs or data is None else "predict"
    if call == "predict":
        assert data is not None
        sample = next(islice(iter(data), 1)).data
        calls = {name: partial(b.session.predict, sample) for name, b in zip("ba", pair, strict=True)}
    else:
        calls = {
            name: partial(b.session.run, dict(feed))
            for name, b, feed in zip("ba", pair, inputs[0], strict=True)
        }
    load_average = this_machine().load_average
    found = measure_interleaved(calls, duration_s=duration_s, min_rounds=_MIN_ROUNDS, seed=seed)
    return LatencyDifference(
        call=call,
        threads=threads,
        before=found["b"],
        after=found["a"],
        ratio=median_ratio(found["a"], found["b"]),
        load_average=load_average,
    )


def _worse(
    outputs: Sequence[OutputComparison],
    accuracy: AccuracyDifference | None,
    latency: LatencyDifference | None,
    max_drop: float | None,
    max_slowdown: float,
) -> tuple[str, ...]:
    """Return what got significantly worse than the budgets allow."""
    found = []
    if accuracy is not None and max_drop is not None and accuracy.paired.verdict == "fail":
        found.append(
            f"{accuracy.metric} fell by {-accuracy.paired.difference:.2%}, at least "
            f"{-accuracy.paired.upper_bound:.2%}: {max_drop:.2%} is allowed"
        )
    if accuracy is None and max_drop is not None:
        found += [_unlike(output) for output in outputs if not _alike(output)]
    if latency is not None and latency.ratio.lower > 1 + max_slowdown:
        found.append(
            f"it takes {latency.ratio.ratio:.2f}x the time, at least {latency.ratio.lower:.2f}x: "
            f"{1 + max_slowdown:.2f}x is allowed"
        )
    return tuple(found)


def _alike(output: OutputComparison) -> bool:
    agrees = output.agreement is not None and output.agreement >= _ENOUGH_AGREEMENT
    return agrees or output.snr_db >= _ENOUGH_SNR_DB


def _unlike(output: OutputComparison) -> str:
    agreement = "" if output.agreement is None else f" and agreement {output.agreement:.1%}"
    return (
        f"output {output.name} has SNR {output.snr_db:.1f} dB{agreement} to the first build: "
        f"{_ENOUGH_SNR_DB:g} dB or {_ENOUGH_AGREEMENT:.0%} is asked for where there are no labels"
    )
