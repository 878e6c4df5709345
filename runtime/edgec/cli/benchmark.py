"""``edgec benchmark``: latency, throughput, load time and memory of an artifact."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import click

# Read before the clock starts, so that reading is not measured; enough to be unlike each other.
_MOST_SAMPLES = 256


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--duration-s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="How long to measure, in seconds, after the warm-up.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of one inference.")
@click.option(
    "--data",
    metavar="DATA",
    help="Measure the whole pipeline on these samples; see `edgec run --input`. Without, bare tensors.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the engine may keep what it compiled, for the next start.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 100),
    help="Divide the time among so many fresh processes; a comparison needs at least 5. Default: 1, or as "
    "many as the baseline has.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="BASELINE",
    help="Compare with what `edgec benchmark --repeats 10 --json` wrote earlier; exit status 1 if slower.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path,
    duration_s: float,
    threads: int | None,
    data: str | None,
    cache_dir: Path | None,
    repeats: int | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Measure an artifact through the session that production uses: one caller, warmed up.

    Load time, first inference and peak memory are those of fresh processes. The run is called
    unstable where its typical latency drifted; then its figures are not worth comparing.

    \b
    edgec benchmark digits.edgec
    edgec benchmark digits.edgec --data images/ --threads 1 --duration-s 20
    edgec benchmark digits.edgec --repeats 10 --json > before.json
    edgec benchmark digits.edgec --against before.json
    """
    from edgec.cli._benchmark_text import comparison_lines, result_lines
    from edgec.runtime.benchmark import benchmark
    from edgec.runtime.comparison import LEAST_RUNS, compare_with_baseline, read_baseline

    baseline = None if against is None else read_baseline(against)
    if baseline is not None:
        repeats = repeats or len(baseline.runs_p50_ms)
        if repeats < LEAST_RUNS:
            raise click.BadParameter(
                f"a comparison needs at least {LEAST_RUNS} runs, got {repeats}", param_hint="--repeats"
            )
    samples = None if data is None else _read_samples(artifact, data)
    result = benchmark(
        artifact,
        samples=samples,
        duration_s=duration_s,
        threads=threads,
        cache_dir=cache_dir,
        repeats=repeats or 1,
    )
    shape, lines = result.to_dict(), result_lines(result)
    slower = False
    if baseline is not None:
        comparison, changes = compare_with_baseline(result, baseline)
        slower = comparison.verdict == "slower"
        shape["against"] = {"baseline": baseline.path, **comparison.to_dict(), "changes": changes}
        lines += comparison_lines(comparison, changes)
    click.echo(json.dumps(shape, indent=2, allow_nan=False) if as_json else "\n".join(lines))
    if slower:
        sys.exit(1)


def _read_samples(artifact: Path, data: str) -> list[object]:
    from edgec.artifact import Artifact
    from edgec.evaluation import open_dataset

    with Artifact.open(artifact) as opened:
        manifest = opened.manifest
    dataset = open_dataset(data, inputs=manifest.inputs, pipeline=manifest.pipeline)
    return [sample.data for sample in islice(dataset, _MOST_SAMPLES)]
