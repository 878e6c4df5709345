"""``edgec doctor``: what is installed, does it fit together, and what is missing for each target?"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._home import default_home
from edgec.cli._text import columns, size
from edgec.cli.compile import progress_lines

if TYPE_CHECKING:
    from edgec.compiler.environments import EnvironmentState
    from edgec.compiler.readiness import Readiness
    from edgec.runtime.installation import Conflict, EngineState, Requirement

_BROKEN = ("too old", "too new")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--install", metavar="NAME", help="Make this environment, anew if it is there.")
@click.option("--remove", metavar="NAME", help="Remove this environment.")
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EDGEC_HOME",
    help="Where environments of converters are; by default edgec in the cache directory.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    help="For --install.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    targets: tuple[str, ...],
    install: str | None,
    remove: str | None,
    home: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Say what is installed here, whether it fits together, and what each target still needs.

    Nothing is changed, unless you ask for it. With TARGETs, only these are looked at.

    Converters that do not fit beside edgec (TensorFlow, PyTorch, onnx2tf) live in environments of their own,
    which --install makes with pip, each whole or not at all, and --remove removes.

    \b
    edgec doctor
    edgec doctor jetson intel-gpu
    edgec doctor --install tf2onnx
    edgec doctor --json

    Exit status: 0 all is well (what is not installed is no fault), 1 packages do not fit together, an
    environment is broken or was not made, or a target that was named cannot be built for, 2 wrong usage.
    """
    directory = (home or default_home()) / "environments"
    if install is not None or remove is not None:
        if targets or (install is not None and remove is not None):
            raise click.UsageError("give --install, --remove or TARGETs, one of them")
        _change(directory, install, remove, timeout_s, as_json)
        return
    from edgec.compiler.readiness import readiness
    from edgec.runtime.installation import conflicts, engine_states, requirements
    from edgec.targets import load_target, target_names

    chosen = [load_target(name) for name in targets or target_names()]
    needs, clashes, engines = requirements(), conflicts(), engine_states()
    environments = _environments(directory)
    ready = [readiness(target, {e.name: e for e in engines}) for target in chosen]
    if as_json:
        click.echo(json.dumps(_shape(needs, clashes, engines, ready, environments), indent=2))
    else:
        lines = _lines(needs, clashes, engines, ready, environments, detailed=bool(targets))
        click.echo("\n".join(lines))
    missing_base = any(r.extra is None and r.status == "missing" for r in needs)
    unbuilt = bool(targets) and any(not r.precisions for r in ready)
    broken = any(e.status == "broken" for e in environments)
    if clashes or missing_base or unbuilt or broken or any(r.status in _BROKEN for r in needs):
        sys.exit(1)


def _shape(
    needs: Sequence[Requirement],
    clashes: Sequence[Conflict],
    engines: Sequence[EngineState],
    ready: Sequence[Readiness],
    environments: Sequence[EnvironmentState],
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
        "environments": [_environment_shape(e) for e in environments],
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


def _environments(directory: Path) -> list[EnvironmentState]:
    try:
        from edgec.compiler.environments import ENVIRONMENTS, EnvironmentStore
    except ImportError:  # without the compiler there is nothing to convert
        return []
    store = EnvironmentStore(directory)
    return [store.state(environment) for environment in ENVIRONMENTS.values()]


def _change(
    directory: Path, install: str | None, remove: str | None, timeout_s: float, as_json: bool
) -> None:
    from edgec.compiler.environments import ENVIRONMENTS, EnvironmentStore

    name = install if install is not None else remove
    if name not in ENVIRONMENTS:
        known = ", ".join(sorted(ENVIRONMENTS))
        raise click.BadParameter(f"there is no environment {name!r}: there are {known}")
    store, environment = EnvironmentStore(directory), ENVIRONMENTS[name]
    if install is None:
        told = "removed" if store.remove(environment) else "was not installed"
        if not as_json:
            click.echo(f"{name}: {told}")
    else:
        store.install(environment, progress=progress_lines(False), timeout_s=timeout_s)
    state = store.state(environment)
    if as_json:
        click.echo(json.dumps(_environment_shape(state), indent=2))
    elif install is not None:
        click.echo("\n".join(columns([_environment_row(state)], "")))
    if install is not None and state.status != "ready":
        sys.exit(1)


def _environment_shape(state: EnvironmentState) -> dict[str, Any]:
    return {
        "name": state.environment.name,
        "purpose": state.environment.purpose,
        "status": state.status,
        "problem": state.problem,
        "path": str(state.path),
        "python": state.python,
        "packages": state.packages,
        "size_bytes": state.size_bytes,
    }


def _environment_row(state: EnvironmentState) -> tuple[str, ...]:
    environment = state.environment
    if state.status == "ready":
        pins = [r.partition("==")[0] for r in environment.requirements[:2]]
        versions = ", ".join(f"{n} {state.packages[n]}" for n in pins if n in state.packages)
        return environment.name, "ready", f"{versions}, Python {state.python}, {size(state.size_bytes)}"
    fix = f"{environment.purpose}; edgec doctor --install {environment.name}"
    told = fix if state.status == "missing" else f"{state.problem}: {fix}"
    return environment.name, state.status, told


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
    environments: Sequence[EnvironmentState],
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
    lines += ["", "environments of converters", *columns(map(_environment_row, environments))]
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
