"""A benchmark against an earlier one: did the latency change, or is it chance?

Runs differ from each other by more than the calls of one run suggest: where memory came to lie, what the
clock and the neighbours did. What is compared is therefore one figure per *run*, the median latency of a
fresh process, and never the calls, of which thousands would make any difference significant. The test is
that of Mann and Whitney (1947), exact, with the interval of Hodges and Lehmann (1963): it assumes nothing of
how runs are distributed, and single disturbed ones do not move it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import DataError

if TYPE_CHECKING:
    from edgec.runtime.benchmark import BenchmarkResult

# Four runs on each side show a difference only if every one of them is beyond every other.
LEAST_RUNS = 5
_MOST_RUNS = 100
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """How the latency of some runs compares with that of others.

    Attributes:
        ratio: Of the latency now to the latency before, estimated; below 1 it is faster now.
        lower: Lower end of the confidence interval of `ratio`.
        upper: Upper end.
        p_value: How likely runs that do not differ are to look as different as these.
        confidence: Of the interval.
        runs: How many there are now.
        baseline_runs: How many there were before.
    """

    ratio: float
    lower: float
    upper: float
    p_value: float
    confidence: float
    runs: int
    baseline_runs: int

    @property
    def verdict(self) -> str:
        """``slower``, ``faster``, or ``no difference shown``, at `confidence`."""
        if self.lower > 1:
            return "slower"
        return "faster" if self.upper < 1 else "no difference shown"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON has it."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What `edgec benchmark --json` wrote earlier, as far as a comparison needs it.

    Attributes:
        path: Of the file.
        runs_p50_ms: Median latency of each run, in milliseconds.
        call: ``predict`` or ``run``.
        inputs: ``data``, ``golden`` or ``synthetic``.
        threads: Of one inference; None for the engine's own choice.
        facts: What may differ, and is then said: model, engine and its version, CPU, cores.
    """

    path: str
    runs_p50_ms: tuple[float, ...]
    call: str
    inputs: str
    threads: int | None
    facts: Mapping[str, str]


def compare_runs(
    now_ms: Sequence[float], baseline_ms: Sequence[float], *, confidence: float = 0.95
) -> RunComparison:
    """Compare one figure per run.

    Runs that do not differ are called different at most once in twenty times, at 95 %. How small a
    difference is found depends on how runs vary: ten on each side find 5 % where the standard deviation
    between runs is up to about 2.5 %; what they leave open is the width of the interval.

    Args:
        now_ms: Of each run, above 0.
        baseline_ms: Of each run before.
        confidence: Between 0 and 1.

    Raises:
        ValueError: There are too few runs for that confidence, or one is not above 0.
    """
    now, before = np.asarray(now_ms, np.float64), np.asarray(baseline_ms, np.float64)
    n, m = len(now), len(before)
    if not (np.all(now > 0) and np.all(before > 0) and np.isfinite(now).all() and np.isfinite(before).all()):
        raise ValueError("expected latencies above 0")
    if n * m == 0 or (k := _critical(n, m, (1 - confidence) / 2)) == 0:
        raise ValueError(
            f"{n} runs against {m} cannot show a difference at {confidence:.0%}: "
            f"measure with --repeats {LEAST_RUNS} or more, both times"
        )
    differences = np.sort((np.log(now)[:, None] - np.log(before)[None, :]).ravel())
    greater = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    tail = _at_most(n, m, math.floor(min(greater, n * m - greater)))
    return RunComparison(
        ratio=float(np.exp(np.median(differences))),
        lower=float(np.exp(differences[k - 1])),
        upper=float(np.exp(differences[n * m - k])),
        p_value=min(1.0, 2 * tail),
        confidence=confidence,
        runs=n,
        baseline_runs=m,
    )


def read_baseline(path: str | Path) -> Baseline:
    """Read what ``edgec benchmark --json`` wrote.

    Raises:
        DataError: It cannot be read, is no such file, or has too few runs to compare with.
    """
    shape = _read_json(Path(path))
    try:
        machine = shape["machine"]
        baseline = Baseline(
            path=str(path),
            runs_p50_ms=tuple(float(value) for value in shape["runs_p50_ms"]),
            call=str(shape["call"]),
            inputs=str(shape["inputs"]),
            threads=None if shape["threads"] is None else int(shape["threads"]),
            facts={
                "model": str(shape["model"]),
                "engine": f"{shape['engine']} {shape['engine_version']}",
                "CPU": str(machine["cpu"]),
                "cores": str(machine["cores"]),
                "isolated": str(shape.get("isolated", False)).lower(),
            },
        )
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(
            f"{path} is no result of a benchmark that can be compared with ({type(e).__name__}: {e}): "
            "write one with  edgec benchmark ARTIFACT --repeats 10 --json"
        ) from e
    runs = baseline.runs_p50_ms
    if not LEAST_RUNS <= len(runs) <= _MOST_RUNS or not all(math.isfinite(r) and r > 0 for r in runs):
        raise DataError(
            f"{path} has {len(runs)} runs; a comparison takes {LEAST_RUNS} to {_MOST_RUNS}, all above 0 ms: "
            "measure it again with  --repeats 10"
        )
    return baseline


def compare_with_baseline(
    result: BenchmarkResult, baseline: Baseline, *, confidence: float = 0.95
) -> tuple[RunComparison, list[str]]:
    """Compare a result with an earlier one.

    Returns:
        The comparison, and what else changed between the two, in plain sentences.

    Raises:
        DataError: The two measured different calls.
        ValueError: `result` has too few runs.
    """
    for what, now, before in (
        ("call", result.call, baseline.call),
        ("inputs", result.inputs, baseline.inputs),
        ("threads", result.threads, baseline.threads),
    ):
        if now != before:
            raise DataError(
                f"{baseline.path} measured other {what} ({before}; now {now}): measure both in the same way"
            )
    facts = {
        "model": result.model,
        "engine": f"{result.engine} {result.engine_version}",
        "CPU": result.machine.cpu,
        "cores": str(result.machine.cores),
        "isolated": str(result.isolated).lower(),
    }
    changes = [
        f"{what}: {now} now, {baseline.facts[what]} in the baseline"
        for what, now in facts.items()
        if now != baseline.facts[what]
    ]
    return compare_runs(result.runs_p50_ms, baseline.runs_p50_ms, confidence=confidence), changes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        shape = json.loads(data) if len(data) <= _MOST_BYTES else None
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path} is no JSON: {e}") from e
    if not isinstance(shape, dict):
        raise DataError(f"{path} is no result of a benchmark: expected one JSON object of at most 64 MiB")
    return shape


@cache
def _distribution(n: int, m: int) -> tuple[float, ...]:
    """Return how likely each value 0 ... n*m of Mann and Whitney's U is where nothing differs.

    The counts are the coefficients of the Gaussian binomial of n + m over n.
    """
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for value in range(n * m, m + i - 1, -1):
            counts[value] -= counts[value - m - i]
        for value in range(i, n * m + 1):
            counts[value] += counts[value - i]
    total = math.comb(n + m, n)
    return tuple(count / total for count in counts)


def _at_most(n: int, m: int, u: int) -> float:
    return math.fsum(_distribution(n, m)[: u + 1])


def _critical(n: int, m: int, tail: float) -> int:
    """Return the rank of the difference that is an end of the interval, from 1; 0 where there is none."""
    likely, k = 0.0, 0
    for value in _distribution(n, m)[: n * m // 2 + 1]:
        likely += value
        if likely > tail:
            break
        k += 1
    return k
