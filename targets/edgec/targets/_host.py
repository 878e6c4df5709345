"""What the machine that runs this is, in the words that targets use."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

# Windows and macOS have other names for the same machines.
_ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}


def host_arch() -> str:
    """Return the machine of this host's CPU as Linux names it: ``x86_64``, ``aarch64``."""
    machine = platform.machine().lower()
    return _ARCHES.get(machine, machine)


@lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    """Return the features of this host's CPU, as ``/proc/cpuinfo`` names them; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return cpu_features(lines)


def cpu_features(cpuinfo: list[str]) -> frozenset[str]:
    """Return the features that every CPU in the lines of a ``/proc/cpuinfo`` has."""
    found = [
        frozenset(words.split())
        for key, _, words in (line.partition(":") for line in cpuinfo)
        if key.strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*found) if found else frozenset()
