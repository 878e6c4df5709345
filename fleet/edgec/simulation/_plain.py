"""Settings of simulations and agents as JSON has them, on their way to worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgec.device_agent import AgentConfig, UpdateSettings, make_config
from edgec.simulation._settings import Poison, SimulationSettings


def config_to_plain(config: AgentConfig) -> dict[str, Any]:
    """Return an agent's settings as `make_config` reads them."""
    plain: dict[str, Any] = _without_none(asdict(config))
    return {**plain, "telemetry": config.telemetry.to_dict()}


def config_from_plain(plain: Mapping[str, Any]) -> AgentConfig:
    """Return what `config_to_plain` gave.

    Raises:
        AgentError: It is something else.
    """
    return make_config(plain)


def settings_to_plain(settings: SimulationSettings) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return asdict(settings)


def settings_from_plain(plain: Mapping[str, Any]) -> SimulationSettings:
    """Return what `settings_to_plain` gave."""
    values = dict(plain)
    values["updates"] = UpdateSettings(**values["updates"])
    if values["poison"] is not None:
        values["poison"] = Poison(**values["poison"])
    return SimulationSettings(**values)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return str(value) if isinstance(value, Path) else value
