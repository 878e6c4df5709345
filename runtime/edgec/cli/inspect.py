"""``edgec inspect``: all that an artifact says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._text import columns, printable, size

if TYPE_CHECKING:
    from edgec.artifact import Artifact, EngineSpec, Manifest, Observation, Pipeline, TensorSpec

# Most items of a list of words that people are shown on its line, and the longest word; --json has all.
_ITEMS = 8
_WORD = 30


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all of it.")
def command(artifact: Path, as_json: bool) -> None:
    """Show all that an artifact, or a chain, says of itself; its payload is neither checked nor run.

    \b
    edgec inspect build/digits-cpu-x86_64.edgec
    edgec inspect build/digits-cpu-x86_64.edgec --json
    """
    from edgec.artifact import Artifact
    from edgec.cli._chains import inspect_chain, is_chain

    if is_chain(artifact):
        inspect_chain(artifact, as_json)
        return
    with Artifact.open(artifact) as opened:
        click.echo(json.dumps(_shape(opened), indent=2) if as_json else "\n".join(_lines(opened)))


def _shape(artifact: Artifact) -> dict[str, Any]:
    """Return the public shape of ``edgec inspect --json``, see docs/artifact.md."""
    return {
        "path": str(artifact.path),
        "size_bytes": artifact.size_bytes,
        "content_digest": artifact.content_digest,
        "manifest": json.loads(artifact.read("manifest.json")),
        "members": [
            {"name": name, "offset": artifact.offset(name), "size": member.size, "sha256": member.sha256}
            for name in artifact.names()
            for member in [artifact.manifest.members[name]]
        ],
        "golden_vectors": len(artifact.golden()),
        "report": artifact.report,
    }


def _lines(artifact: Artifact) -> Iterator[str]:
    manifest = artifact.manifest
    yield printable(f"{manifest.model} {manifest.model_version} for {manifest.target}")
    yield from columns(_summary(artifact))
    yield from _section("inputs", [row for spec in manifest.inputs for row in _input(spec, manifest)])
    yield from _section("outputs", [row for spec in manifest.outputs for row in _output(spec, manifest)])
    if manifest.pipeline:
        yield from _pipeline(manifest.pipeline)
    yield from _section("members", _members(artifact))
    yield from _section("recipe", list(_tree(manifest.recipe)))
    yield from _section("provenance", list(_tree(manifest.provenance)))
    yield from _section("report", list(_tree(artifact.report or {})))
    yield ""
    yield "edgec verify checks digests and golden vectors."


def _section(title: str, rows: list[tuple[object, ...]]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        yield from columns(rows)


def _summary(artifact: Artifact) -> list[tuple[object, ...]]:
    manifest = artifact.manifest
    budgets = manifest.budgets
    held_to = {
        "accuracy loss": budgets.max_drop and f"{budgets.max_drop:.2%}",
        "latency": budgets.latency_ms and f"{budgets.latency_ms:g} ms",
        "memory": budgets.memory_mib and f"{budgets.memory_mib:g} MiB",
        "size": budgets.size_bytes and size(budgets.size_bytes),
    }
    asked = ", ".join(f"{what} {limit}" for what, limit in held_to.items() if limit)
    return [
        ("file", f"{artifact.path}, {size(artifact.size_bytes)}"),
        ("content", artifact.content_digest),
        ("engine", _engine(manifest.engine)),
        ("fallback", _engine(manifest.fallback) if manifest.fallback else "none"),
        ("held to", asked or "nothing"),
        ("golden", f"{len(artifact.golden()) or 'no'} vectors"),
        *([("watched", watched)] if (watched := _watched(manifest.observe)) else []),
        *([("requires", ", ".join(manifest.requires))] if manifest.requires else []),
    ]


def _watched(observe: Observation) -> str:
    parts = [f"{', '.join(chosen)} of {name}" for name, chosen in observe.inputs.items()]
    if observe.scores is not None:
        parts.append(f"confidence in {observe.scores.output} ({observe.scores.activation})")
    return "; ".join(parts)


def _engine(engine: EngineSpec) -> str:
    version = f" {engine.version}" if engine.version else ""
    return f"{engine.name}{version}, {engine.precision} on {engine.device}, from {', '.join(engine.files)}"


def _tensor(spec: TensorSpec) -> tuple[object, ...]:
    shape = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
    quantization = spec.quantization
    if quantization is None:
        return spec.name, shape, spec.layout or ""
    scales = ", ".join(f"{scale:.4g}" for scale in quantization.scale[:_ITEMS])
    more = "" if len(quantization.scale) <= _ITEMS else ", ..."
    axis = "" if quantization.axis is None else f" along axis {quantization.axis}"
    points = sorted(set(quantization.zero_point))
    zero = str(points[0]) if len(points) == 1 else f"{points[0]} to {points[-1]}"
    return spec.name, shape, spec.layout or "", f"scale {scales}{more}{axis}, zero point {zero}"


def _input(spec: TensorSpec, manifest: Manifest) -> Iterator[tuple[object, ...]]:
    yield _tensor(spec)
    for statistic, quantiles in manifest.input_reference.get(spec.name, {}).items():
        yield "", f"{statistic} usually {_quantiles(quantiles)}"


def _output(spec: TensorSpec, manifest: Manifest) -> Iterator[tuple[object, ...]]:
    yield _tensor(spec)
    limits = manifest.golden.get(spec.name, {})
    if limits:
        yield (
            "",
            "golden vectors within " + ", ".join(f"{limit:.3g} ({what})" for what, limit in limits.items()),
        )
    if quantiles := manifest.reference.get(spec.name, {}):
        yield "", f"usually {_quantiles(quantiles)}"


def _quantiles(quantiles: Mapping[str, float]) -> str:
    ranked = sorted(quantiles.items(), key=lambda item: float(item[0]))
    return ", ".join(f"{value:.3g} ({float(q):.3g})" for q, value in ranked)


def _pipeline(pipeline: Pipeline) -> Iterator[str]:
    for stage, steps in (("preprocess", pipeline.preprocess), ("postprocess", pipeline.postprocess)):
        yield from _section(stage, [_step(step.to_dict()) for step in steps])
    labels = pipeline.labels
    if labels:
        more = f", ... ({len(labels)} in all)" if len(labels) > _ITEMS else ""
        yield from _section("labels", [(", ".join(labels[:_ITEMS]) + more,)])


def _step(step: Mapping[str, Any]) -> tuple[object, ...]:
    return step["step"], ", ".join(f"{key} {_short(value)}" for key, value in step.items() if key != "step")


def _members(artifact: Artifact) -> list[tuple[object, ...]]:
    return [
        (name, size(member.size), f"at {artifact.offset(name)}", f"sha256 {member.sha256}")
        for name in artifact.names()
        for member in [artifact.manifest.members[name]]
    ]


def _tree(value: Mapping[str, Any], indent: str = "") -> Iterator[tuple[object, ...]]:
    """Yield rows of key and value; what is nested stands below its key, items of a list numbered from 1."""
    for key, item in value.items():
        nested = _nested(item)
        if nested:
            yield (f"{indent}{key}",)
            yield from _tree(nested, f"{indent}  ")
        else:
            yield f"{indent}{key}", _short(item)


def _nested(item: object) -> dict[str, Any]:
    """Return what takes more than one line by key; nothing where one is enough."""
    if isinstance(item, dict):
        return item
    if isinstance(item, list) and any(isinstance(i, dict | list) or len(str(i)) > _WORD for i in item):
        return {str(number): i for number, i in enumerate(item, 1)}
    return {}


def _short(value: object) -> str:
    if isinstance(value, list):
        more = f", ... ({len(value)} in all)" if len(value) > _ITEMS else ""
        return (", ".join(map(_short, value[:_ITEMS])) + more) or "none"
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
