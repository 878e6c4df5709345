"""``edgec rebuild``: the same build with today's tools, and what that changes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._home import default_home
from edgec.cli._text import columns, size
from edgec.cli.compile import parse_share, progress_lines

if TYPE_CHECKING:
    from edgec.compiler import Rebuilt
    from edgec.compiler.difference import AccuracyDifference, Difference, LatencyDifference


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--source", "-s", type=click.Path(path_type=Path), help="The model, where it is no more.")
@click.option("--calibration", "-c", metavar="DATA", help="The representative samples, likewise.")
@click.option(
    "--evaluation",
    "-e",
    metavar="DATA",
    help="The labelled samples, likewise; of an artifact that was built without, to compare on.",
)
@click.option(
    "--metric", "-m", help="What to score, for an artifact that was built without labelled samples."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("rebuilt"),
    show_default=True,
    help="Directory for the new artifact.",
)
@click.option("--compare", is_flag=True, help="Say what changed in numerics, size and speed.")
@click.option(
    "--max-slowdown",
    callback=parse_share,
    default="5%",
    show_default=True,
    help="With --compare: share by which it may be slower; none for any.",
)
@click.option("--workers", type=click.IntRange(0), help="Processes that make candidates, as of compile.")
@click.option("--lock", is_flag=True, help="Only print the packages it was built with, as pip takes them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def command(
    artifact: Path,
    source: Path | None,
    calibration: str | None,
    evaluation: str | None,
    metric: str | None,
    output: Path,
    compare: bool,
    max_slowdown: float | None,
    workers: int | None,
    lock: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build ARTIFACT again: the same model, data, target and options, with today's tools.

    Target, options and pipeline are in the artifact. Model and data are taken from where they were, or from
    where you say, and refused where they are not the same.

    \b
    edgec rebuild digits.edgec --compare
    edgec rebuild digits.edgec --source digits.onnx --calibration calibration.npz -o new --json
    edgec rebuild digits.edgec --lock > constraints.txt

    Exit status: 0 built (with --compare: and the same or better, within budget and noise), 1 not built, or
    significantly worse, 2 wrong usage.
    """
    if lock:
        _print_lock(artifact, as_json)
        return
    import logging

    from edgec.compiler import rebuild

    logging.getLogger("edgec.runtime").addHandler(logging.NullHandler())  # the report says it, once
    found = rebuild(
        artifact,
        output,
        source=source,
        calibration=calibration,
        evaluation=evaluation,
        metric=metric,
        compare=compare,
        max_slowdown=math.inf if max_slowdown is None else max_slowdown,
        workers=workers,
        home=default_home(),
        progress=progress_lines(quiet),
        command=["edgec", *sys.argv[1:]],
    )
    if as_json:
        click.echo(json.dumps(_shape(found), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_lines(found)))
    if found.difference is not None and found.difference.worse:
        sys.exit(1)


def _print_lock(path: Path, as_json: bool) -> None:
    from edgec.artifact import Artifact
    from edgec.compiler.lock import read_lock

    with Artifact.open(path) as artifact:
        lock = read_lock(artifact.manifest)
    if as_json:
        shape = {"python": lock.python, "arch": lock.arch, "packages": dict(lock.packages)}
        click.echo(json.dumps(shape, indent=2))
        return
    click.echo(f"# Python {lock.python} on {lock.arch}")
    click.echo("\n".join(f"{name}=={version}" for name, version in lock.packages.items()))


def _shape(found: Rebuilt) -> dict[str, Any]:
    return {
        "original": str(found.original),
        "artifact": str(found.artifact),
        "same_content": found.same_content,
        "content_digests": list(found.content_digests),
        "recipes": list(found.recipes),
        "tools": {name: {"then": t, "now": n} for name, (t, n) in found.changed_tools.items()},
        "target_changes": list(found.target_changes),
        "difference": None if found.difference is None else _difference_shape(found.difference),
    }


def _difference_shape(found: Difference) -> dict[str, Any]:
    return {
        "inputs": found.inputs,
        "outputs": [
            {
                "name": o.name,
                "max_abs_error": _finite(o.max_abs_error),
                "snr_db": _finite(o.snr_db),
                "agreement": o.agreement,
                "identical": o.max_abs_error == 0,
            }
            for o in found.outputs
        ],
        "accuracy": None if found.accuracy is None else _accuracy_shape(found.accuracy),
        "size_bytes": list(found.size_bytes),
        "precision": list(found.precision),
        "latency": None if found.latency is None else _latency_shape(found.latency),
        "not_compared": list(found.not_compared),
        "worse": list(found.worse),
    }


def _accuracy_shape(found: AccuracyDifference) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "before": _finite(found.before.value),
        "after": _finite(found.after.value),
        "difference": _finite(found.paired.difference),
        "bounds": [_finite(found.paired.lower_bound), _finite(found.paired.upper_bound)],
        "agreement": found.paired.agreement,
        "samples": found.paired.n,
        "max_drop": found.paired.max_drop,
        "verdict": found.paired.verdict,
    }


def _latency_shape(found: LatencyDifference) -> dict[str, Any]:
    return {
        "call": found.call,
        "threads": found.threads,
        "rounds": found.before.n,
        "before_ms": found.before.p50_ms,
        "after_ms": found.after.p50_ms,
        "ratio": found.ratio.ratio,
        "ci95": [found.ratio.lower, found.ratio.upper],
        "significant": found.significant,
        "load_average": found.load_average,
    }


def _lines(found: Rebuilt) -> list[str]:
    content = "the same" if found.same_content else "differs"
    before, after = found.recipes
    rows = [
        ("original", str(found.original)),
        ("rebuilt", str(found.artifact)),
        ("content", f"{content}, {found.content_digests[1]}"),
        ("recipe", before if before == after else f"{before} then, {after} now"),
        *_tool_rows(found),
    ]
    if found.target_changes:
        changes = ", ".join(found.target_changes)
        rows.append(("target", f"today's description differs in {changes}; the artifact's own was used"))
    if found.difference is None:
        return columns(rows, "")
    return columns([*rows, *_difference_rows(found.difference)], "")


def _tool_rows(found: Rebuilt) -> Iterator[tuple[str, str]]:
    if not found.changed_tools:
        yield "tools", "the same"
    for number, (name, (then, now)) in enumerate(found.changed_tools.items()):
        yield "" if number else "tools", f"{name} {then or 'not there'} then, {now or 'not there'} now"


def _difference_rows(found: Difference) -> Iterator[tuple[str, str]]:
    for number, o in enumerate(found.outputs):
        agreement = "" if o.agreement is None else f", agreement {o.agreement:.1%}"
        snr = "identical" if o.max_abs_error == 0 else f"SNR {o.snr_db:.1f} dB"
        said = f"{o.name} {snr}, max abs error {o.max_abs_error:.3g}{agreement}"
        yield "" if number else "outputs", said
    yield "", f"on {found.inputs}"
    if found.accuracy is not None:
        yield "accuracy", _accuracy_line(found.accuracy)
    before, after = found.size_bytes
    yield "size", f"{size(before)} then, {size(after)} now ({after / before - 1:+.1%})"
    if found.precision[0] != found.precision[1]:
        yield "precision", f"{found.precision[0]} then, {found.precision[1]} now"
    if found.latency is not None:
        yield "latency", _latency_line(found.latency)
    for sentence in found.not_compared:
        yield "note", sentence
    for number, sentence in enumerate(found.worse):
        yield "" if number else "worse", sentence
    if not found.worse:
        yield "verdict", "the same or better, within budget and noise"


def _accuracy_line(found: AccuracyDifference) -> str:
    p = found.paired
    return (
        f"{found.metric} {found.before.value:.4g} then, {found.after.value:.4g} now, difference "
        f"{p.difference:+.2%} (bounds {p.lower_bound:+.2%} and {p.upper_bound:+.2%}, one-sided 95 %) on "
        f"{p.n} samples: {p.verdict} at {p.max_drop:.2%}"
    )


def _latency_line(found: LatencyDifference) -> str:
    ratio = found.ratio
    verdict = "significant" if found.significant else "within noise"
    busy = "" if found.load_average is None else f", load {found.load_average:.1f}"
    return (
        f"{found.before.p50_ms:.3g} ms then, {found.after.p50_ms:.3g} ms now: {ratio.ratio:.3f}x, 95 % "
        f"interval {ratio.lower:.3f} to {ratio.upper:.3f}, {verdict} ({found.before.n} rounds, "
        f"{found.threads} thread{'s' if found.threads > 1 else ''}{busy})"
    )


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
