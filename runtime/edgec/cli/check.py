"""``edgec check``: can a model be compiled, node by node, before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli._home import default_home
from edgec.cli._text import printable
from edgec.cli.compile import parse_shapes, progress_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgec.compiler.check import CheckEntry, CheckReport

_SHOWN_NODES = 8


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="Target, alias, or path of a target's .toml; may be given more than once.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=parse_shapes,
    metavar="NAME=1,3,224,224",
    help="Pin the dimensions of an input; may be given more than once.",
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EDGEC_HOME",
    help="Where environments of converters are (edgec doctor); by default edgec in the cache directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every node's verdict for machines.")
def command(
    model: Path,
    targets: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    home: Path | None,
    as_json: bool,
) -> None:
    """Say whether MODEL can be compiled for the targets, and if not, what to do about it.

    MODEL is an ONNX file; or a TFLite or Keras file, a SavedModel directory or a program of torch.export,
    which are converted in an environment of their own (edgec doctor) and held against their framework first.

    Where a target's converter runs on this machine, it decides; else the documented rules of the target do.
    Exit status: 0 where every target can be compiled for, 1 where one cannot, 2 for wrong usage.

    \b
    edgec check model.onnx --target jetson
    edgec check model.onnx -t cpu -t openvino --shape image=1,3,224,224
    edgec check model.onnx -t npu --json
    """
    from edgec.compiler.check import check_model
    from edgec.compiler.ingest import load_source
    from edgec.targets import resolve_target

    resolved = [resolve_target(target) for target in targets]
    source = load_source(model, shapes, home=home or default_home(), progress=progress_lines(as_json))
    reports = [check_model(source, resolution.target) for resolution in resolved]
    if as_json:
        shape = {
            "model": str(model),
            "origin": None if source.origin is None else source.origin.to_dict(),
            "targets": [report.to_dict() for report in reports],
        }
        click.echo(json.dumps(shape, indent=2))
    else:
        if source.origin is not None:
            click.echo(printable(source.origin.sentence))
        for resolution, report in zip(resolved, reports, strict=True):
            if resolution.note is not None:
                click.echo(printable(resolution.note))
            click.echo("\n".join(_told(model, report)))
    sys.exit(0 if all(report.can_compile for report in reports) else 1)


def _told(model: Path, report: CheckReport) -> Iterator[str]:
    verdict = "can be compiled" if report.can_compile else "cannot be compiled"
    nodes = f"{report.nodes} node{'' if report.nodes == 1 else 's'}"
    says = f"{nodes}, {'say' if report.decided_by == 'rules' else 'says'} {report.judge}"
    yield f"{printable(model.name)} for {report.target}: {verdict} ({says})"
    for note in report.notes:
        yield f"  {printable(note)}"
    for word, entries in (("refused", report.refused), ("warning", report.warnings)):
        yield from _groups(word, entries)


def _groups(word: str, entries: Sequence[CheckEntry]) -> Iterator[str]:
    from edgec.compiler.check import grouped

    for reason, group in grouped(entries).items():
        yield f"  {word}: {printable(reason)}"
        for entry in group[:_SHOWN_NODES]:
            if entry.op:
                yield f"    {printable(_node(entry))}"
        if len(group) > _SHOWN_NODES:
            yield f"    and {len(group) - _SHOWN_NODES} more (--json lists every one)"
        for fix in dict.fromkeys(entry.fix for entry in group if entry.fix):
            yield f"    -> {printable(fix)}"


def _node(entry: CheckEntry) -> str:
    op = f"{entry.domain}.{entry.op}" if entry.domain else entry.op
    attributes = " ".join(f"{name}={_brief(str(value), 40)}" for name, value in entry.attributes.items())
    types = f"{', '.join(entry.inputs) or '()'} -> {', '.join(entry.outputs)}"
    return f"{_brief(entry.node, 60)}: {op} {types}{f'  {attributes}' if attributes else ''}"


def _brief(text: str, length: int) -> str:
    """Return a text with its middle left out where it is longer than `length`."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"
