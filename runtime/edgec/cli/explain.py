"""``edgec explain``: why an artifact is what it is, and where its int8 loses accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._home import default_home
from edgec.cli._text import columns, printable
from edgec.cli.compile import progress_lines

if TYPE_CHECKING:
    from edgec.compiler.explain import Flip, LayerError
    from edgec.compiler.explanation import Explanation, Scores

_REPAIR = "repair of "
_FLIPS = 10  # that people are shown; --json has all that are known


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--source",
    "-s",
    type=click.Path(path_type=Path),
    help="The ONNX model that it was made from: measures every layer anew.",
)
@click.option("--calibration", "-c", metavar="DATA", help="Representative samples; needs --source.")
@click.option("--evaluation", "-e", metavar="DATA", help="Labelled samples; needs --source and --metric.")
@click.option("--metric", "-m", help="What to score: top1, top5, map50, auc, spearman or mse.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all of it.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def command(
    artifact: Path,
    source: Path | None,
    calibration: str | None,
    evaluation: str | None,
    metric: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say why an artifact is what it is: what was decided, what int8 costs in each layer, what repair did.

    \b
    edgec explain build/digits-cpu-x86_64.edgec
    edgec explain build/digits-cpu-x86_64.edgec --source digits.onnx \\
        --calibration calibration.npz --evaluation evaluation.npz --metric top1
    """
    from edgec.compiler.explanation import explain_artifact, explain_with_source

    if source is None:
        if calibration or evaluation or metric:
            raise click.UsageError("--calibration, --evaluation and --metric need --source")
        found = explain_artifact(artifact)
    else:
        found = explain_with_source(
            artifact,
            source,
            calibration=calibration,
            evaluation=evaluation,
            metric=metric,
            home=default_home(),
            progress=progress_lines(quiet),
        )
    if as_json:
        click.echo(json.dumps(_shape(artifact, found), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_lines(found)))


def _shape(path: Path, found: Explanation) -> dict[str, Any]:
    """Return the public shape of ``edgec explain --json``, see docs/explain.md."""
    from dataclasses import asdict

    manifest = found.manifest
    return {
        "path": str(path),
        "model": manifest.model,
        "model_version": manifest.model_version,
        "target": manifest.target,
        "engine": manifest.engine.name,
        "precision": manifest.engine.precision,
        "recipe": None if found.recipe is None else {"name": found.recipe.name, **asdict(found.recipe)},
        "decisions": list(found.decisions),
        "candidates": [{k: c.get(k) for k in ("name", "status", "reason")} for c in found.candidates],
        "layers_of": found.layers_of or None,
        "layers": [asdict(layer) for layer in found.layers],
        "scores": None if found.scores is None else _score_shape(found.scores),
        "flips": [asdict(flip) for flip in _flips(found)],
        "notes": list(found.notes),
    }


def _score_shape(scores: Scores) -> dict[str, Any]:
    return {
        "metric": scores.metric,
        "fp32": scores.fp32,
        "int8": scores.int8,
        "samples": scores.samples,
        "flipped": scores.flipped,
    }


def _flips(found: Explanation) -> tuple[Flip, ...]:
    return found.scores.flips if found.scores is not None else found.flips


def _lines(found: Explanation) -> Iterator[str]:
    manifest = found.manifest
    made = found.recipe.name if found.recipe is not None else manifest.engine.precision
    yield printable(
        f"{manifest.model} {manifest.model_version} for {manifest.target}: {made} on {manifest.engine.name}"
    )
    yield from _section("note", [(note,) for note in found.notes])
    yield from _section("decided", [(d,) for d in found.decisions if not d.startswith(_REPAIR)])
    yield from _section(
        "candidates", [tuple(c.get(k) or "" for k in ("name", "status", "reason")) for c in found.candidates]
    )
    yield from _section("repair", [(d,) for d in found.decisions if d.startswith(_REPAIR)])
    if found.recipe is not None and found.recipe.exclude:
        yield from _section("kept in float", [(name,) for name in found.recipe.exclude])
    yield from _layers(found)
    yield from _scores(found.scores)
    yield from _section(
        "turned by int8",
        [(f.name, f"label {f.label}", f"{f.before} -> {f.after}") for f in _flips(found)[:_FLIPS]],
    )


def _section(title: str, rows: list[tuple[Any, ...]]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        yield from columns(rows)


def _layers(found: Explanation) -> Iterator[str]:
    if not found.layers:
        yield ""
        yield "no layers were measured: give --source, and --calibration with real samples"
        return
    yield ""
    yield printable(f"layers of {found.layers_of}; SNR against fp32 in dB")
    scored = any(layer.isolated_score is not None for layer in found.layers)
    head = ["layer", "operator", "precision", "local", "accumulated", "alone"]
    yield from columns(
        [(*head, "score alone") if scored else tuple(head), *(_row(e, scored) for e in found.layers)]
    )


def _row(error: LayerError, scored: bool) -> tuple[str, ...]:
    alone = _db(error.isolated_snr_db) if error.isolated else "-"
    row = (
        error.name,
        error.op,
        error.precision,
        _db(error.local_snr_db),
        _db(error.accumulated_snr_db),
        alone,
    )
    return (*row, "-" if error.isolated_score is None else f"{error.isolated_score:.4g}") if scored else row


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _scores(scores: Scores | None) -> Iterator[str]:
    if scores is not None:
        yield ""
        yield (
            f"{scores.metric} {scores.int8:.4g} in int8, {scores.fp32:.4g} in fp32; int8 changes what is "
            f"predicted for {scores.flipped} of {scores.samples} samples"
        )
