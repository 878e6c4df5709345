"""``edgec targets``: the classes of device that models can be compiled for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgec.targets import Engine, Limits, QuantizationScheme, Resolution, StandIn, Target


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(name: str | None, as_json: bool) -> None:
    """List the targets and their aliases, or show everything about one.

    NAME is the name of a target, an alias, or the path of a .toml file of your own, which is checked
    this way before it is compiled for.

    \b
    edgec targets
    edgec targets jetson
    edgec targets ./camera.toml
    edgec targets rpi5 --json
    """
    from edgec.targets import resolve_target

    if name is None:
        _list(as_json)
        return
    resolution = resolve_target(name)
    if as_json:
        shape = {"asked": name, "note": resolution.note, "target": resolution.target.to_dict()}
        click.echo(json.dumps(shape, indent=2))
    else:
        click.echo("\n".join(_detail(resolution)))


def _list(as_json: bool) -> None:
    from edgec.targets import alias_names, load_target, target_names

    targets = [load_target(name) for name in target_names()]
    aliases = alias_names()
    if as_json:
        shape = {"targets": [target.to_dict() for target in targets], "aliases": aliases}
        click.echo(json.dumps(shape, indent=2))
        return
    rows: list[Sequence[str]] = [("TARGET", "ENGINE", "PRECISIONS", "MEMORY", "")]
    rows += [_row(target) for target in sorted(targets, key=lambda t: (t.family, t.name))]
    click.echo("\n".join(_columns(rows)))
    click.echo("\nAliases (the documented defaults; 'cpu' is the CPU of this host):")
    named = {name: [alias for alias, of in aliases.items() if of == name] for name in aliases.values()}
    click.echo("\n".join(_columns([(f"  {name}", ", ".join(named[name])) for name in sorted(named)])))
    click.echo("\nedgec targets NAME shows one; --target also takes the path of a .toml file of your own.")


def _row(target: Target) -> tuple[str, ...]:
    engine = target.engines[0]
    place = "" if engine.device == "CPU" else f" {engine.device}"
    return (
        target.name,
        f"{engine.name}{place}",
        " ".join(engine.precisions),
        _size(target.memory_mib),
        target.title,
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows with their columns aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _size(mib: int) -> str:
    return f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"


def _detail(resolution: Resolution) -> list[str]:
    target = resolution.target
    lines = [] if resolution.note is None else [resolution.note, ""]
    lines += [f"{target.name}: {target.title}", ""]
    facts = [
        ("toolchain", target.family),
        ("CPU", " ".join((target.arch, *target.simd))),
        ("memory", f"{_size(target.memory_mib)} for the model at run time"),
        ("storage", f"{_size(target.storage_mib)} for the artifact"),
        *[("engine", line) for engine in target.engines for line in _engine(engine)],
        *([] if target.fallback is None else [("fallback", line) for line in _engine(target.fallback)]),
        *[("int8", line) for line in _quantization(target.quantization)],
        *[("limits", line) for line in _limits(target.limits)],
        *[("accelerator", f"{key}: {value}") for key, value in target.accelerator],
        ("measured on", _stand_in(target.stand_in)),
        ("ranking", " > ".join(target.stand_in.ranking)),
        ("ranking", target.stand_in.rule),
        *[("sources", f"{key}: {where}") for key, where in target.sources],
    ]
    return lines + _columns(_wrapped(facts))


def _wrapped(facts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the facts as rows of at most 100 characters, a label only where it changes."""
    import textwrap

    rows: list[tuple[str, str]] = []
    last = ""
    for label, fact in facts:
        # Neither addresses nor names with hyphens are broken.
        lines = textwrap.wrap(
            fact, width=86, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in lines:
            rows.append(("" if label == last else label, line))
            last = label
    return rows


def _engine(engine: Engine) -> list[str]:
    lines = [f"{engine.name} {engine.version} on {engine.device}: {', '.join(engine.precisions)}"]
    lines += [f"{precision} is storage only: computed in fp32" for precision in engine.storage_only]
    lines += [f"{precision} needs {' or '.join(features)}" for precision, features in engine.needs]
    return lines


def _quantization(scheme: QuantizationScheme | None) -> list[str]:
    if scheme is None:
        return ["none: this target has no int8"]
    kind = {True: "symmetric", False: "asymmetric"}
    grain = "one scale per output channel" if scheme.per_channel else "one scale per tensor"
    lines = [
        f"activations {scheme.activation_dtype} {kind[scheme.activation_symmetric]}",
        f"weights {scheme.weight_dtype} {kind[scheme.weight_symmetric]}, {grain}",
        f"bias {scheme.bias_dtype}, inputs and outputs {scheme.io_dtype}",
    ]
    if scheme.full_integer:
        lines.append("every operator must be quantized")
    if scheme.residual_one_input:
        when = "only" if scheme.weight_qdq else "where that spares a zero point"
        lines.append(f"a residual Add has one dequantized input {when}")
    if scheme.weight_qdq:
        lines.append("weights stay float32 behind an explicit Q and DQ")
    if scheme.weight_zero_point:
        lines.append("weights that their author quantized keep their zero point")
    if scheme.saturates_without:
        lines.append(f"can saturate on CPUs without {' or '.join(scheme.saturates_without)}")
    return lines


def _limits(limits: Limits) -> list[str]:
    numbers = {
        "ONNX opset from": limits.min_opset,
        "ONNX opset up to": limits.max_opset,
        "ONNX IR version up to": limits.max_ir_version,
        "axes of a tensor up to": limits.max_rank,
        "batch up to": limits.max_batch,
    }
    lines = [f"{what} {number}" for what, number in numbers.items() if number is not None]
    if limits.static_shapes:
        lines.append("every dimension must be fixed")
    if limits.allowed_operators:
        lines.append(f"operators: {' '.join(limits.allowed_operators)}")
    lines += _refused(limits.refused_operators) + _refused(limits.refused_dtypes)
    for limit in limits.attributes:
        bounds = [
            *([] if limit.minimum is None else [f"from {limit.minimum}"]),
            *([] if limit.maximum is None else [f"up to {limit.maximum}"]),
            *([] if not limit.allowed else [" or ".join(str(value) for value in limit.allowed)]),
        ]
        lines.append(f"{limit.operator}.{limit.attribute} {' '.join(bounds)}: {limit.reason}")
    return lines or ["none"]


def _refused(reasons: Iterable[tuple[str, str]]) -> list[str]:
    named: dict[str, list[str]] = {}
    for name, reason in reasons:
        named.setdefault(reason, []).append(name)
    return [f"no {', '.join(names)}: {reason}" for reason, names in named.items()]


def _stand_in(rule: StandIn) -> str:
    if rule.arch is None:
        return "no host: see the rule below"
    having = f" with {' '.join(rule.features)}" if rule.features else ""
    lacking = f" without {' '.join(rule.without)}" if rule.without else ""
    return f"{rule.arch}{having}{lacking}"
