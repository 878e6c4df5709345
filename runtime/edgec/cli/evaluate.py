"""``edgec evaluate``: the score of an artifact on labelled data."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _options
from edgec.cli._metrics import METRICS
from edgec.cli._models import OpenModel, open_model
from edgec.cli._progress import progress
from edgec.cli._text import columns

if TYPE_CHECKING:
    from edgec.evaluation import Dataset, Evaluation


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="Labelled samples: a .npz by input name with labels, a folder of images, a .jsonl or .csv of text, "
    "or package.module:function.",
)
@click.option(
    "--metric",
    "-m",
    required=True,
    type=click.Choice(METRICS),
    help="What to score.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Labels of a folder of images: a .csv (file,label), a COCO .json, or a folder of YOLO .txt.",
)
@click.option("--limit", type=click.IntRange(1), help="Most samples to use, spread evenly over the data.")
@click.option(
    "--pipeline",
    "-p",
    type=click.Path(path_type=Path),
    help="Pre- and post-processing of an ONNX model; an artifact carries its own.",
)
@_options.threads
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path,
    data: str,
    metric: str,
    labels: Path | None,
    limit: int | None,
    pipeline: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Score an artifact on labelled data, through its whole pipeline, with a 95 % confidence interval.

    ARTIFACT may also be an ONNX model, run in ONNX Runtime fp32 without optimizations, to compare with.

    \b
    edgec evaluate digits.edgec --data evaluation.npz --metric top1
    edgec evaluate detector.edgec --data photos/ --labels instances.json --metric map50
    edgec evaluate digits.onnx --pipeline pipeline.toml --data evaluation.npz --metric top1 --json
    """
    from edgec.evaluation import open_dataset

    with open_model(artifact, pipeline, threads) as model:
        dataset = open_dataset(
            data, inputs=model.inputs, pipeline=model.pipeline, labels=labels, need_labels=True
        )
        start = time.perf_counter()
        found = _evaluate(model, dataset, metric, limit)
        seconds = time.perf_counter() - start
        if as_json:
            shape = _shape(model, dataset, metric, found, seconds)
            click.echo(json.dumps(shape, indent=2, allow_nan=False))
        else:
            click.echo("\n".join(_lines(model, dataset, metric, found, seconds)))


def _evaluate(model: OpenModel, dataset: Dataset, metric: str, limit: int | None) -> Evaluation:
    from edgec.evaluation import evaluate

    total = len(dataset) if limit is None else min(limit, len(dataset))
    with progress("evaluating", total) as advance:
        return evaluate(model, dataset, metric, limit=limit, progress=lambda _done, _total: advance())


def _shape(
    model: OpenModel, dataset: Dataset, metric: str, found: Evaluation, seconds: float
) -> dict[str, Any]:
    score = found.score
    return {
        "artifact": model.facts(),
        "metric": metric,
        "value": _finite(score.value),
        "ci95": [_finite(bound) for bound in score.ci95],
        "samples": score.n,
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "data": {
            "source": dataset.source,
            "sha256": dataset.digest,
            "samples": len(dataset),
            "notes": list(dataset.notes),
        },
        "seconds": seconds,
    }


def _lines(model: OpenModel, dataset: Dataset, metric: str, found: Evaluation, seconds: float) -> list[str]:
    score = found.score
    better = "higher is better" if score.higher_is_better else "lower is better"
    taken = f"{score.n} of {len(dataset)} samples" if score.n < len(dataset) else f"{score.n} samples"
    low, high = score.ci95
    rows = [
        (metric, f"{score.value:.4g}, 95 % interval {low:.4g} .. {high:.4g} ({score.unit}, {better})"),
        ("data", f"{dataset.source}, {taken} in {seconds:.2f} s"),
        *[("", note) for note in dataset.notes],
        ("ran", str(model)),
    ]
    return columns(rows, "")


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
