"""Simulated devices come into a fleet as real ones do: with a claim, and a key of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from edgec.device_agent import AgentConfig, make_config, read_config
from edgec.device_agent._enrolment import CONFIG
from edgec.device_agent._joining import Trusted, join
from edgec.errors import OutputError
from edgec.simulation._settings import TELEMETRY, SimulationSettings

_TIMEOUT_S = 60.0


def enrol_devices(
    url: str,
    claim: str,
    names: Iterable[str],
    folder: Path,
    *,
    authority: Path | None,
    hardware: str,
    settings: SimulationSettings,
    told: Callable[[int], None] = lambda number: None,
    over: Callable[[], bool] = lambda: False,
) -> list[AgentConfig]:
    """Bring devices into a fleet over its API, one after the other; those that are in it keep what they have.

    Args:
        url: Of the fleet server: ``https://fleet.example:8443``.
        claim: With as many uses as there are new devices.
        names: Their ids.
        folder: Of all devices; each has a directory of its name in it.
        authority: File with the certificate (PEM) that vouches for the server; None for the system's.
        hardware: Class of hardware that devices say they are.
        settings: Of the simulation.
        told: Called with how many are in the fleet.
        over: Asked before each one; where it says so, those before it are all.

    Raises:
        AgentError: The server cannot be reached or believed, or refuses one; it says why.
        OutputError: What a device is given cannot be written.
    """
    trusted = Trusted(authority=None if authority is None else _read(authority))
    configs = []
    for number, name in enumerate(names, 1):
        if over():
            break
        directory = folder / name
        if (directory / CONFIG).exists():
            config = make_config(read_config(directory / CONFIG), base=directory)
        else:
            config = join(
                url,
                claim,
                hardware=[hardware],
                directory=directory,
                state_dir=directory / "state",
                trusted=trusted,
                device=name,
                timeout_s=_TIMEOUT_S,
            ).config
        configs.append(replace(config, updates=settings.updates, telemetry=TELEMETRY))
        told(number)
    return configs


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise OutputError(f"{path} cannot be read: {e.strerror}; it is to hold the server's authority") from e
