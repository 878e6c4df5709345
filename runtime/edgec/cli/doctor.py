"""``edgec doctor``: what is installed, does it fit together, and what is missing for each target?"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._text import columns

if TYPE_CHECKING:
    from edgec.compiler.readiness import Readiness
    from edgec.runtime.installation import Conflict, EngineState, Requirement

_BROKEN = ("too old", "too new")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(targets: tuple[str, ...], as_json: bool) -> None:
    """Say what is installed here, whether it fits together, and what each target still needs.

    Nothing is changed. With TARGETs, only these are looked at.

    \b
    edgec doctor
    edgec doctor jetson intel-gpu
    edgec doctor --json

    Exit status: 0 all is well (what is not installed is no fault), 1 packages do not fit together, or a
    target that was named cannot be built for, 2 wrong usage.
    """
    from edgec.compiler.readiness import readiness
    from edgec.runtime.installation import conflicts, engine_states, requirements
    from edgec.targets import load_target, target_names

    chosen = [load_target(name) for name in targets or target_names()]
    needs, clashes, engines = requirements(), conflicts(), engine_states()
    ready = [readiness(target, {e.name: e for e in engines}) for target in chosen]
    if as_json:
        click.echo(json.dumps(_shape(needs, clashes, engines, ready), indent=2))
    else:
        click.echo("\n".join(_lines(needs, clashes, engines, ready, detailed=bool(targets))))
    missing_base = any(r.extra is None and r.status == "missing" for r in needs)
    unbuilt = bool(targets) and any(not r.precisions for r in ready)
    if clashes or missing_base or unbuilt or any(r.status in _BROKEN for r in needs):
        sys.exit(1)


def _shape(
    needs: Sequence[Requirement],
    clashes: Sequence[Conflict],
    engines: Sequence[EngineState],
    ready: Sequence[Readiness],
) -> dict[str, Any]:
    return {
        "edgec": version("edgec"),
        "python": platform.python_version(),
        "packages": [
            {
                "package": r.package,
                "extra": r.extra,
                "needs": r.line,
                "installed": r.installed,
                "status": r.status,
                "fix": _fix(r),
            }
            for r in needs
        ],
        "conflicts": [{"package": c.package, "needs": c.needs, "installed": c.installed} for c in clashes],
        "engines": [
            {"name": e.name, "works": e.works, "devices": list(e.devices), "problem": e.problem}
            for e in engines
        ],
        "targets": [
            {
                "target": r.target,
                "precisions": list(r.precisions),
                "judge": r.judge,
                "proven_on": r.proven_on,
                "measured": r.measured,
                "missing": list(r.missing),
            }
            for r in ready
        ],
    }


def _fix(requirement: Requirement) -> str | None:
    """Return the command that puts a requirement right; None where nothing is wrong."""
    if requirement.status in ("ok", "not needed"):
        return None
    if requirement.extra is None or requirement.status in _BROKEN:
        return f"pip install '{requirement.package}{requirement.line}'"
    return f"pip install 'edgec[{requirement.extra}]'"


def _lines(
    needs: Sequence[Requirement],
    clashes: Sequence[Conflict],
    engines: Sequence[EngineState],
    ready: Sequence[Readiness],
    *,
    detailed: bool,
) -> list[str]:
    lines = [f"edgec {version('edgec')}, Python {platform.python_version()}", "", "packages"]
    rows = [
        (r.extra or "always", r.package, r.line, r.installed or "-", r.status, _fix(r) or "")
        for r in needs
        if r.applies
    ]
    lines += columns([("extra", "package", "needs", "installed", "", "fix"), *rows])
    lines += [f"  {c.package} needs {c.needs}, {c.installed or 'none'} is installed" for c in clashes]
    lines += ["", "engines"]
    lines += columns([(e.name, ", ".join(e.devices) if e.works else e.problem) for e in engines])
    lines += ["", "targets"]
    heads = ("target", "builds", "checked by", "proven on", "measured here")
    lines += columns([heads, *map(_row, ready)])
    if detailed:
        for r in ready:
            lines += ["", f"missing for {r.target}", *columns([(m,) for m in r.missing or ("nothing",)])]
    else:
        lines += ["", "edgec doctor TARGET says what is missing for one."]
    return lines


def _row(r: Readiness) -> tuple[str, ...]:
    return (
        r.target,
        " ".join(r.precisions) or "no",
        r.judge or "its rules",
        r.proven_on or "no",
        "yes" if r.measured else "no",
    )
