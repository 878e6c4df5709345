"""``edgec benchmark``: latency, throughput, load time and memory of an artifact."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgec.runtime.benchmark import BenchmarkResult

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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path,
    duration_s: float,
    threads: int | None,
    data: str | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure an artifact through the session that production uses: one caller, warmed up.

    Load time, first inference and peak memory are those of fresh processes. The run is called
    unstable where its typical latency drifted; then its figures are not worth comparing.

    \b
    edgec benchmark digits.edgec
    edgec benchmark digits.edgec --data images/ --threads 1 --duration-s 20
    """
    from edgec.runtime.benchmark import benchmark

    samples = None if data is None else _read_samples(artifact, data)
    result = benchmark(artifact, samples=samples, duration_s=duration_s, threads=threads, cache_dir=cache_dir)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_lines(result)))


def _read_samples(artifact: Path, data: str) -> list[object]:
    from edgec.artifact import Artifact
    from edgec.evaluation import open_dataset

    with Artifact.open(artifact) as opened:
        manifest = opened.manifest
    dataset = open_dataset(data, inputs=manifest.inputs, pipeline=manifest.pipeline)
    return [sample.data for sample in islice(dataset, _MOST_SAMPLES)]


def _lines(result: BenchmarkResult) -> list[str]:
    latency, cold = result.latency, result.cold_start
    facts = [
        ("engine", f"{result.engine} {result.engine_version}{_fallback(result)}"),
        ("precision", _precision(result)),
        ("placement", ", ".join(f"{count} nodes on {place}" for place, count in result.placement.items())),
        ("measured", _what(result)),
        ("latency", f"p50 {latency.p50_ms:.3f}   p90 {latency.p90_ms:.3f}   p99 {latency.p99_ms:.3f} ms"),
        ("throughput", f"{result.throughput_per_s:.0f} per second, one call after the other"),
        ("load", f"{cold.load_ms:.0f} ms, of which {cold.engine_import_ms:.0f} ms import the engine"),
        ("first inference", f"{cold.first_inference_ms:.1f} ms"),
        ("peak memory", _memory(result)),
        ("verdict", _verdict(result)),
        ("machine", f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}"),
        ("state", _state(result)),
    ]
    lines = [f"{result.model}: {result.artifact}"]
    lines += [f"  {label:<16}{fact}" for label, fact in facts]
    return lines + [f"  note: {concern}" for concern in result.machine.concerns]


def _fallback(result: BenchmarkResult) -> str:
    return ", the declared fallback" if result.state == "fallback" else ""


def _precision(result: BenchmarkResult) -> str:
    if not result.precisions:
        return f"{result.promised_precision} promised; the engine does not tell"
    layers = ", ".join(f"{name}: {count}" for name, count in sorted(result.precisions.items()))
    return f"{result.precision} measured (layers in {layers}), {result.promised_precision} promised"


def _what(result: BenchmarkResult) -> str:
    inputs = {
        "data": "the samples given, pre- and post-processing included",
        "golden": "the inputs of the golden vectors, bare tensors",
        "synthetic": "synthetic inputs (normal floats, integers 0 and 1), bare tensors",
    }
    threads = "as many as the engine takes" if result.threads is None else str(result.threads)
    return f"{result.latency.n} calls of {result.call} on {inputs[result.inputs]}; threads: {threads}"


def _memory(result: BenchmarkResult) -> str:
    cold = result.cold_start
    if cold.peak_memory_mib is None or cold.memory_before_mib is None:
        return "unknown: this system does not tell"
    return f"{cold.peak_memory_mib:.0f} MiB, of which {cold.memory_before_mib:.0f} MiB before loading"


def _verdict(result: BenchmarkResult) -> str:
    latency = result.latency
    return (
        f"{result.verdict} (the typical latency drifted by {latency.drift_cv:.1%}; "
        f"coefficient of variation of all calls {latency.cv:.0%})"
    )


def _state(result: BenchmarkResult) -> str:
    machine = result.machine
    governor = machine.governor or "unknown (the system does not tell)"
    load = "unknown" if machine.load_average is None else f"{machine.load_average:.2f}"
    after = "unknown" if result.load_average_after is None else f"{result.load_average_after:.2f}"
    return f"governor {governor}, load average {load} before and {after} after"
