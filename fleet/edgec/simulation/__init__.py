"""Simulated devices: real agents, whose hardware and calls are drawn; a demonstration, load for a fleet."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgec.simulation._behaviour import HEALTHY, POISONED, POISONS, Behaviour, BehaviourError
    from edgec.simulation._demo import DemoOptions, run_demo
    from edgec.simulation._device import DeviceNews, SimulatedDevice
    from edgec.simulation._enrolling import enrol_devices
    from edgec.simulation._load import LoadOptions, run_load
    from edgec.simulation._releases import LABELS, MODEL, make_release
    from edgec.simulation._serve import Access, OwnServer
    from edgec.simulation._settings import QUICK, TELEMETRY, Poison, SimulationError, SimulationSettings
    from edgec.simulation._simulation import Counts, Simulation
    from edgec.simulation._story import Chapter, Story
    from edgec.simulation._swarm import Swarm

__all__ = [
    "HEALTHY",
    "LABELS",
    "MODEL",
    "POISONED",
    "POISONS",
    "QUICK",
    "TELEMETRY",
    "Access",
    "Behaviour",
    "BehaviourError",
    "Chapter",
    "Counts",
    "DemoOptions",
    "DeviceNews",
    "LoadOptions",
    "OwnServer",
    "Poison",
    "SimulatedDevice",
    "Simulation",
    "SimulationError",
    "SimulationSettings",
    "Story",
    "Swarm",
    "enrol_devices",
    "make_release",
    "run_demo",
    "run_load",
]

# Imported when asked for: the command line names poisons without the extras that agents need.
_LATER = {
    "HEALTHY": "_behaviour",
    "LABELS": "_releases",
    "MODEL": "_releases",
    "POISONED": "_behaviour",
    "POISONS": "_behaviour",
    "QUICK": "_settings",
    "TELEMETRY": "_settings",
    "Access": "_serve",
    "Behaviour": "_behaviour",
    "BehaviourError": "_behaviour",
    "Chapter": "_story",
    "Counts": "_simulation",
    "DemoOptions": "_demo",
    "DeviceNews": "_device",
    "LoadOptions": "_load",
    "OwnServer": "_serve",
    "Poison": "_settings",
    "SimulatedDevice": "_device",
    "Simulation": "_simulation",
    "SimulationError": "_settings",
    "SimulationSettings": "_settings",
    "Story": "_story",
    "Swarm": "_swarm",
    "enrol_devices": "_enrolling",
    "make_release": "_releases",
    "run_demo": "_demo",
    "run_load": "_load",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
