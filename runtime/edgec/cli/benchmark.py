"""``edgec benchmark``: latency, throughput, load time and memory of an artifact."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import click

from edgec.cli import _options
from edgec.errors import MissingExtraError

# Read before the clock starts, so that reading is not measured; enough to be unlike each other.
_MOST_SAMPLES = 256
_PLOTS = (".html", ".svg", ".png")


def _check_plot(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in _PLOTS:
        raise click.BadParameter(f"expected a name that ends in {', '.join(_PLOTS)}, got {value.name!r}")
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"the directory {value.parent} does not exist; make it first")
    if value is not None and value.suffix.lower() == ".png" and find_spec("matplotlib") is None:
        raise MissingExtraError("a plot as .png (.svg and .html need nothing)", "matplotlib", "plots")
    return value


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--duration-s",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="How long to measure, in seconds, after the warm-up.",
)
@_options.threads
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
@_options.delegate
@_options.isolate
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
@click.option(
    "--profile", "profiled", is_flag=True, help="Also say what each layer takes, where the engine tells."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_check_plot,
    help="Write a histogram and a time line of the latency, or the plot of a sweep: .html, .svg or .png.",
)
@click.option(
    "--sweep",
    "axes",
    metavar="AXES",
    help="Measure every combination of these: threads, batch, engine, separated by commas.",
)
@click.option(
    "--also",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="ARTIFACT",
    help="The same model built for another engine, for --sweep engine; repeatable.",
)
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "multi-stream", "server", "offline"]),
    help="Let MLPerf's LoadGen measure, in this scenario. Not an MLPerf result.",
)
@click.option(
    "--target-latency-ms",
    type=click.FloatRange(0, min_open=True),
    help="What 99 % of the queries of --scenario server must stay under.",
)
@click.option(
    "--target-qps",
    type=click.FloatRange(0, min_open=True),
    help="Queries per second of --scenario server. Default: half of what one caller gets.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Calls at once in --scenario server and offline.",
)
@click.option(
    "--loadgen-logs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to leave LoadGen's own logs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path,
    duration_s: float,
    threads: int | None,
    data: str | None,
    cache_dir: Path | None,
    delegate: Path | None,
    isolate: bool,
    repeats: int | None,
    against: Path | None,
    profiled: bool,
    plot: Path | None,
    axes: str | None,
    also: tuple[Path, ...],
    scenario: str | None,
    target_latency_ms: float | None,
    target_qps: float | None,
    concurrency: int,
    loadgen_logs: Path | None,
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
    edgec benchmark digits.edgec --scenario server --target-latency-ms 10
    edgec benchmark page.chain.toml --data pages/
    """
    from edgec.cli import _chains

    if _chains.is_chain(artifact):
        special = (repeats, against, plot, axes, scenario, target_latency_ms, target_qps, loadgen_logs)
        if profiled or also or isolate or concurrency != 1 or any(option is not None for option in special):
            raise click.UsageError(
                "a chain takes --duration-s, --threads, --data, --cache-dir and --delegate only"
            )
        _chains.benchmark(artifact, data, duration_s, threads, cache_dir, delegate, as_json)
        return
    if scenario is not None:
        if (scenario == "server") != (target_latency_ms is not None):
            raise click.UsageError("--scenario server needs --target-latency-ms, and no other one takes it")
        if repeats is not None or against is not None or profiled or plot or axes or also:
            raise click.UsageError(
                "--repeats, --against, --profile, --plot and --sweep are not for --scenario"
            )
        samples = None if data is None else _read_samples(artifact, data)
        _run_scenario(
            artifact,
            scenario,
            as_json,
            samples=samples,
            duration_s=duration_s,
            threads=threads,
            cache_dir=cache_dir,
            delegate=delegate,
            isolate=isolate,
            target_latency_ms=target_latency_ms,
            target_qps=target_qps,
            concurrency=concurrency,
            log_dir=loadgen_logs,
        )
        return
    if target_latency_ms or target_qps or concurrency != 1 or loadgen_logs:
        raise click.UsageError(
            "--target-latency-ms, --target-qps, --concurrency and --loadgen-logs are for --scenario only"
        )
    if axes is not None and not also and "engine" in axes.split(","):
        raise click.UsageError(
            "--sweep engine needs the same model built for another engine: --also ARTIFACT"
        )
    if also and not axes:
        raise click.UsageError("--also is for --sweep engine only")
    if axes is not None:
        if repeats is not None or against is not None or profiled or data is not None:
            raise click.UsageError("--repeats, --against, --profile and --data are not for --sweep")
        _run_sweep(
            [artifact, *also],
            axes,
            as_json,
            plot,
            duration_s=duration_s,
            threads=threads,
            cache_dir=cache_dir,
            delegate=delegate,
            isolate=isolate,
        )
        return
    if profiled and isolate:
        raise click.UsageError("--profile asks the engine in this process: leave --isolate out")
    from edgec.cli._benchmark_text import comparison_lines, profile_lines, result_lines
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
        delegate=delegate,
        isolate=isolate,
        repeats=repeats or 1,
    )
    shape, lines = result.to_dict(), result_lines(result)
    if plot is not None:
        from edgec.runtime.plots import write_plots

        write_plots(plot, result)
    if profiled:
        from edgec.runtime.profiling import profile

        layers = profile(artifact, threads=threads, cache_dir=cache_dir, delegate=delegate)
        shape["profile"] = layers.to_dict()
        lines += profile_lines(layers)
    slower = False
    if baseline is not None:
        comparison, changes = compare_with_baseline(result, baseline)
        slower = comparison.verdict == "slower"
        shape["against"] = {"baseline": baseline.path, **comparison.to_dict(), "changes": changes}
        lines += comparison_lines(comparison, changes)
    click.echo(json.dumps(shape, indent=2, allow_nan=False) if as_json else "\n".join(lines))
    if slower:
        sys.exit(1)


def _run_sweep(artifacts: list[Path], axes: str, as_json: bool, plot: Path | None, **options: Any) -> None:
    from edgec.cli._benchmark_text import sweep_lines
    from edgec.runtime.sweep import sweep

    try:
        result = sweep(artifacts, [axis.strip() for axis in axes.split(",")], **options)
    except ValueError as e:
        raise click.UsageError(f"--sweep: {e}") from e
    if plot is not None:
        from edgec.runtime.plots import write_plots

        write_plots(plot, result)
    shape = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    click.echo(shape if as_json else "\n".join(sweep_lines(result)))


def _run_scenario(artifact: Path, scenario: str, as_json: bool, **options: Any) -> None:
    from edgec.cli._benchmark_text import scenario_lines
    from edgec.runtime.scenarios import run_scenario

    try:
        result = run_scenario(artifact, scenario, **options)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    shape = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    click.echo(shape if as_json else "\n".join(scenario_lines(result)))


def _read_samples(artifact: Path, data: str) -> list[object]:
    from edgec.artifact import Artifact
    from edgec.evaluation import open_dataset

    with Artifact.open(artifact) as opened:
        manifest = opened.manifest
    dataset = open_dataset(data, inputs=manifest.inputs, pipeline=manifest.pipeline)
    return [sample.data for sample in islice(dataset, _MOST_SAMPLES)]
