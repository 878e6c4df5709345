"""``edgec finish``: build on this device what only it can build."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._text import columns, printable, size

if TYPE_CHECKING:
    from edgec.runtime import SelfTestResult
    from edgec.runtime.finishing import FinishResult

_EVERY_S = 5.0
_STATES = {
    "built": "built, tested and kept",
    "kept": "there already: tested, nothing was built",
    "not-needed": "nothing to finish: the artifact runs as it is",
}


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where engines are kept; ~/.cache/edgec/engines by default. Give load() the same.",
)
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="Build for this core of the DLA.")
@click.option("--force", is_flag=True, help="Build again even if an engine that fits is there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path, cache_dir: Path | None, dla: int | None, force: bool, quiet: bool, as_json: bool
) -> None:
    """Build an artifact's engine on this device, test it with the golden vectors, and keep it.

    Needed once per artifact on a Jetson, and again after an update of JetPack: an engine of TensorRT is
    bound to the GPU and to the versions that it was built with. Artifacts for other engines need no
    finishing, and the command says so. Nothing is kept of a build that fails or is interrupted.

    \b
    edgec finish digits-jetson-orin-nano-jp6.edgec
    edgec finish digits-jetson-agx-orin-jp7.edgec --dla 0 --cache-dir /var/lib/app/engines
    """
    from edgec.runtime.finishing import DlaCoreError, finish

    try:
        result = finish(
            artifact,
            cache_dir=cache_dir,
            dla=dla,
            force=force,
            progress=None if quiet else _Progress(),
        )
    except DlaCoreError as e:
        raise click.BadParameter(str(e), param_hint="--dla") from e
    if as_json:
        click.echo(json.dumps(_facts(artifact, result), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(columns(_rows(artifact, result), "")))
        for note in result.notes:
            click.echo(f"note: {printable(note)}")


class _Progress:
    """Prints each step with the time since the start, and how far it is now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._next = clock, clock(), 0.0
        self._step = ""
        self._lock = Lock()  # TensorRT calls from threads of its own

    def __call__(self, step: str, done: int, total: int) -> None:
        with self._lock:
            now = self._clock()
            if step == self._step and now < self._next:
                return
            far = f": {done} of {total}" if total and done else ""
            self._step, self._next = step, now + _EVERY_S
            click.echo(f"{now - self._start:7.1f} s  {printable(step)}{far}", err=True)


def _rows(path: Path, result: FinishResult) -> list[tuple[str, ...]]:
    rows = [("file", str(path)), ("engine", _STATES[result.state])]
    if result.state == "not-needed":
        return [*rows, ("runs on", result.engine)]
    where = f"DLA core {result.dla}" if result.dla is not None else "GPU"
    return [
        *rows,
        ("runs on", f"{result.engine} {result.engine_version}, {where} of {result.device}"),
        ("kept in", str(result.plan)),
        ("size", f"{size(result.size_bytes)}, and {size(result.memory_bytes)} of memory to run"),
        ("golden", _told(result.self_test)),
        ("took", f"{result.seconds:.1f} s"),
    ]


def _told(test: SelfTestResult | None) -> str:
    worst = None if test is None else test.worst
    if test is None or worst is None:
        return "no golden vectors: nothing was compared"
    return (
        f"{test.vectors} vectors within tolerance, closest {worst.output}: max abs error "
        f"{worst.max_abs_error:.3g} of {worst.tolerance:.3g}"
    )


def _facts(path: Path, result: FinishResult) -> dict[str, Any]:
    return {
        "path": str(path),
        "state": result.state,
        "engine": result.engine,
        "engine_version": result.engine_version,
        "device": result.device,
        "dla": result.dla,
        "plan": None if result.plan is None else str(result.plan),
        "size_bytes": result.size_bytes,
        "memory_bytes": result.memory_bytes,
        "seconds": round(result.seconds, 3),
        "self_test": None if result.self_test is None else _test_facts(result.self_test),
        "notes": list(result.notes),
    }


def _test_facts(test: SelfTestResult) -> dict[str, Any]:
    return {
        "passed": test.passed,
        "vectors": test.vectors,
        "outputs": [
            {
                "vector": output.vector,
                "output": output.output,
                # JSON has no infinity, which stands for another dtype or shape.
                "max_abs_error": output.max_abs_error if isfinite(output.max_abs_error) else None,
                "tolerance": output.tolerance,
                "passed": output.passed,
            }
            for output in test.outputs
        ],
    }
