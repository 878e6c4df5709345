"""What can be done for a target on this machine, and what is missing for the rest."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from edgec.errors import ConversionError
from edgec.runtime.installation import EngineState
from edgec.targets import Engine, Target, host_arch, host_features


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What can be done for a target on this machine.

    Attributes:
        target: Name of the target.
        precisions: That can be built here; empty where nothing can.
        judge: Engine that refuses here what the target's refuses, in `edgec check`; None where only the
            target's written rules do.
        proven_on: Engine that runs its artifacts here: its own, or its fallback; None where none does.
        measured: Whether latencies of this machine stand in for the target's.
        missing: What is missing for the rest, in sentences.
    """

    target: str
    precisions: tuple[str, ...]
    judge: str | None
    proven_on: str | None
    measured: bool
    missing: tuple[str, ...]


def readiness(target: Target, engines: Mapping[str, EngineState]) -> Readiness:
    """Return what can be done for a target here.

    Args:
        target: The target.
        engines: What is known of the engines of this machine, by name.
    """
    engine = target.engines[0]
    missing: list[str] = []
    buildable = _buildable(engine, missing)
    proven_on = _runner(target, engine, engines, missing) if buildable else None
    measured = proven_on == engine.name and target.measured_on(host_arch(), host_features())
    if buildable and not measured:
        missing.append(f"to measure it: {target.stand_in.rule}")
    return Readiness(
        target=target.name,
        precisions=tuple(p for p in engine.precisions if p in buildable),
        judge=_judge(engine),
        proven_on=proven_on,
        measured=measured,
        missing=tuple(missing),
    )


def _buildable(engine: Engine, missing: list[str]) -> tuple[str, ...]:
    """Return the precisions that the engine's converter builds; note what is missing for it."""
    if sys.version_info < (3, 11):
        missing.append("to build for it: Python 3.11 or later")
        return ()
    try:
        from edgec.compiler.converters import get_converter

        return get_converter(engine.name).precisions
    except ModuleNotFoundError as e:
        missing.append(f"to build for it: {e.name!r}: run  pip install 'edgec[compiler]'")
    except ConversionError as e:
        missing.append(f"to build for it: {e}")
    return ()


def _judge(engine: Engine) -> str | None:
    try:
        from edgec.compiler.engines import find_judge

        return engine.name if find_judge(engine.name) is not None else None
    except ModuleNotFoundError:
        return None


def _runner(
    target: Target, engine: Engine, engines: Mapping[str, EngineState], missing: list[str]
) -> str | None:
    """Return the engine that runs the target's artifacts here; note what is missing for its own."""
    for candidate in (engine, target.fallback):
        state = engines.get(candidate.name) if candidate is not None else None
        if candidate is None:
            continue
        if state is not None and state.works and candidate.device in state.devices:
            return candidate.name
        missing.append(f"to run it here: {_why_not(candidate, state)}")
    return None


def _why_not(engine: Engine, state: EngineState | None) -> str:
    if state is None:
        return f"there is no backend {engine.name!r}"
    if not state.works:
        return f"{engine.name}: {state.problem}"
    return (
        f"{engine.name} has no {engine.device} on this machine, only {', '.join(state.devices) or 'nothing'}"
    )
