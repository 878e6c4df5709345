"""What can be done for a target on this machine, and what is missing for the rest."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from shutil import which

from edgec.errors import ConversionError
from edgec.errors.extras import import_advice
from edgec.runtime.installation import EngineState, find_package
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
    buildable, backend = _buildable(engine, missing)
    proven_on = _runner(target, engine, backend, engines, missing) if buildable else None
    measured = proven_on == backend and target.measured_on(host_arch(), host_features())
    if buildable:
        missing += _toolchain(engine)
    if buildable and not measured:
        missing.append(f"to measure it: {target.stand_in.rule}")
    return Readiness(
        target=target.name,
        precisions=tuple(p for p in engine.precisions if p in buildable),
        judge=_judge(backend),
        proven_on=proven_on,
        measured=measured,
        missing=tuple(missing),
    )


def _buildable(engine: Engine, missing: list[str]) -> tuple[tuple[str, ...], str]:
    """Return what the engine's converter builds, and the backend that runs it; note what is missing."""
    if sys.version_info < (3, 11):
        missing.append("to build for it: Python 3.11 or later")
        return (), engine.name
    try:
        from edgec.compiler.converters import get_converter

        converter = get_converter(engine.name)
    except ModuleNotFoundError as e:
        missing.append(f"to build for it: {e.name!r}: run  pip install 'edgec[compiler]'")
    except ImportError as e:  # installed, and does not load
        advice = import_advice(e, "reinstall it:  pip install --force-reinstall 'edgec[compiler]'")
        missing.append(f"to build for it: {e.name or 'a package'} does not load ({e}): {advice}")
    except ConversionError as e:
        missing.append(f"to build for it: {e}")
    else:
        # Another package's converter may make a payload for a backend of another name.
        return converter.precisions, getattr(converter, "backend", engine.name)
    return (), engine.name


def _toolchain(engine: Engine) -> list[str]:
    """Return what is missing of the vendor's own compiler for an NPU."""
    if engine.device == "ethos-u" and find_package("ethos-u-vela") is None:
        return ["to build for it: Arm's compiler Vela: run  pip install 'edgec[ethos-u]'"]
    if engine.device == "edgetpu" and which("edgetpu_compiler") is None:
        return [
            "to map it to the Edge TPU: edgetpu_compiler, from Google's apt repository; without it, "
            "an artifact holds the int8 file that it takes"
        ]
    return []


def _judge(backend: str) -> str | None:
    try:
        from edgec.compiler.engines import find_judge

        return backend if find_judge(backend) is not None else None
    except ImportError:  # not installed, or it does not load, which is said of its packages
        return None


def _runner(
    target: Target, engine: Engine, backend: str, engines: Mapping[str, EngineState], missing: list[str]
) -> str | None:
    """Return the backend that runs the target's artifacts here; note what is missing for its own."""
    places = [(backend, engine.device)]
    if target.fallback is not None:
        places.append((target.fallback.name, target.fallback.device))
    for name, device in places:
        state = engines.get(name)
        if state is not None and state.works and device in state.devices:
            return name
        missing.append(f"to run it here: {_why_not(name, device, state)}")
    return None


def _why_not(name: str, device: str, state: EngineState | None) -> str:
    if state is None:
        return f"there is no backend {name!r}"
    if not state.works:
        return f"{name}: {state.problem}"
    return f"{name} has no {device} on this machine, only {', '.join(state.devices) or 'nothing'}"
