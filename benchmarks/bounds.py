"""Do the one-sided 95 % bounds of `edgec.evaluation.paired` lie below the truth in 95 % of cases?

    python benchmarks/bounds.py [--repeats 300] [--output benchmarks/results/bounds.json]    (5 minutes)

For each metric and size of data set, a population of samples with a known truth is drawn from
repeatedly, a model and a slightly worse one are compared on each draw, and it is counted how often the
bound lies below the true difference. 0.95 is right, more is cautious, less is a bound that promises too
much. For map50 the truth is that of data sets of the same size, which is what its bound promises.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.evaluation import PairedDifference, get_metric, paired

ROOT = Path(__file__).resolve().parent.parent
SIZES = (50, 200, 1000)
CLASSES = 12

Predictions = list[Mapping[str, Any]]
Draw = tuple[Predictions, Predictions, list[Any]]
"""Predictions of a model, of a worse one, and labels."""


@dataclass(frozen=True)
class Row:
    """How often the bound was right.

    Attributes:
        metric: Its name.
        n: Samples in a data set.
        truth: The true difference.
        coverage: Share of data sets whose bound lay at or below it.
        mean_bound: Of those data sets.
    """

    metric: str
    n: int
    truth: float
    coverage: float
    mean_bound: float


def classes(rng: np.random.Generator, n: int) -> Draw:
    """One sample in a hundred is lost, one in two hundred gained."""
    outcome = rng.choice(3, n, p=[0.985, 0.01, 0.005])
    first: Predictions = [{"classes": np.array([int(o == 2)])} for o in outcome]
    second: Predictions = [{"classes": np.array([int(o == 1)])} for o in outcome]
    return first, second, [0] * n


def graded(rng: np.random.Generator, n: int) -> Draw:
    """Numbers to predict; the first model's squared error is 0.36, the second's 0.40."""
    truth = rng.normal(size=n)
    first = truth + 0.6 * rng.normal(size=n)
    second = first + 0.2 * rng.normal(size=n)
    return _scores(first), _scores(second), list(truth)


def anomalies(rng: np.random.Generator, n: int) -> Draw:
    """A quarter of the samples are anomalous."""
    first, second, truth = graded(rng, n)
    return first, second, [int(t > 0.67) for t in truth]


def _scores(values: NDArray[np.float64]) -> Predictions:
    return [{"anomaly_score": float(v)} for v in values]


def boxes(rng: np.random.Generator, n: int) -> Draw:
    """Images with boxes of classes from common to rare; the second model misses a few more."""
    share = 1 / np.arange(1, CLASSES + 1)
    share /= share.sum()
    first: Predictions = []
    second: Predictions = []
    labels = []
    for _ in range(n):
        found = rng.choice(CLASSES, rng.poisson(4), p=share)
        truth = np.array(
            [[100 * j, 0, 100 * j + 50, 50, c] for j, c in enumerate(found)], np.float64
        ).reshape(-1, 5)
        alarms = rng.choice(CLASSES, rng.poisson(3), p=share)
        false = np.array([[5000 + 100 * j, 0, 5050 + 100 * j, 50, c] for j, c in enumerate(alarms)]).reshape(
            -1, 5
        )
        seen = truth[rng.random(len(truth)) < 0.7]
        rows = np.concatenate([seen, false])
        confidence = np.concatenate([rng.beta(4, 2, len(seen)), rng.beta(2, 4, len(false))])
        first.append(_detections(rows, confidence))
        kept = rng.random(len(rows)) < 0.99
        moved = np.clip(confidence + 0.1 * rng.normal(size=len(rows)), 0, 1)
        second.append(_detections(rows[kept], moved[kept]))
        labels.append(truth)
    return first, second, labels


def _detections(rows: Any, confidence: Any) -> Mapping[str, Any]:
    return {"boxes": rows[:, :4], "scores": confidence, "classes": rows[:, 4].astype(np.int64)}


KINDS: dict[str, Callable[[np.random.Generator, int], Draw]] = {
    "top1": classes,
    "auc": anomalies,
    "spearman": graded,
    "mse": graded,
    "map50": boxes,
}


def measure(metric: str, n: int, repeats: int) -> Row:
    """Count how often the bound is right on `repeats` data sets of `n` samples."""
    rng = np.random.default_rng(n)
    draw = KINDS[metric]
    found: list[PairedDifference] = []
    while len(found) < repeats:
        a, b, labels = draw(rng, n)
        if metric != "auc" or 0 < sum(labels) < n:
            found.append(paired(metric, a, b, labels))
    truth = _truth(metric, n, found)
    bounds = np.array([f.lower_bound for f in found])
    return Row(metric, n, truth, float((bounds <= truth).mean()), float(bounds.mean()))


def _truth(metric: str, n: int, found: list[PairedDifference]) -> float:
    if metric == "top1":
        return 0.005 - 0.01
    if metric == "mse":
        return (0.36 - 0.40) / 0.36
    if metric == "map50":
        return float(np.mean([f.difference for f in found]))
    a, b, labels = KINDS[metric](np.random.default_rng(12345), 400_000)
    first, second = (get_metric(metric).score(p, labels).value for p in (a, b))
    return second - first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/bounds.json")
    options = parser.parse_args()
    rows = []
    for metric in KINDS:
        for n in SIZES:
            rows.append(measure(metric, n, options.repeats))
            row = rows[-1]
            print(
                f"{metric:9} n={n:5}  truth {row.truth:+.4f}  mean bound {row.mean_bound:+.4f}  "
                f"at or below the truth in {row.coverage:.1%}",
                flush=True,
            )
    content = {
        "what": "coverage of one-sided 95 % bounds of paired differences",
        "repeats": options.repeats,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "rows": [asdict(row) for row in rows],
    }
    options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
