"""What a measurement has to say of the machine it was taken on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, and the state it was in.

    Attributes:
        cpu: As the system names it: ``AMD EPYC 7B13``.
        arch: ``x86_64``.
        cores: That this process may use.
        memory_mib: Installed; None where the system does not tell.
        system: Kernel and its version: ``Linux 6.1.0``.
        python: Version of the interpreter.
        governor: Of the clock, of all cores: ``performance``; None where the system does not tell, as
            in virtual machines.
        load_average: Of the last minute; None where the system does not tell.
    """

    cpu: str
    arch: str
    cores: int
    memory_mib: int | None
    system: str
    python: str
    governor: str | None
    load_average: float | None

    @property
    def concerns(self) -> list[str]:
        """What may disturb a measurement on this machine, in plain sentences; empty where nothing is seen."""
        found = []
        if self.load_average is not None and self.load_average > 0.5 * self.cores:
            found.append(
                f"the load average was {self.load_average:.1f} on {self.cores} cores: other work was running"
            )
        if self.governor not in (None, "performance"):
            found.append(
                f"the clock's governor is {self.governor!r}, not 'performance': speed depends on load"
            )
        return found


def this_machine(root: Path = Path("/")) -> Machine:
    """Return this machine and its state now.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    governors = {
        _text(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    }
    return Machine(
        cpu=_cpu(root),
        arch=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=memory_mib(root).get("MemTotal"),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        governor=", ".join(sorted(filter(None, governors))) or None,
        load_average=_load_average(root),
    )


def _cpu(root: Path) -> str:
    # ARM boards name themselves in the device tree, not in cpuinfo.
    board = _text(root / "proc/device-tree/model").strip("\0 \n")
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip() if not board else f"{board}, {value.strip()}"
    return board or "unknown"


def memory_mib(root: Path) -> dict[str, int]:
    """Return ``MemTotal`` and ``MemAvailable`` in MiB, as far as the system tells them."""
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] in ("MemTotal:", "MemAvailable:") and words[1].isdigit():
            found[words[0][:-1]] = int(words[1]) // 1024
    return found


def _load_average(root: Path) -> float | None:
    words = _text(root / "proc/loadavg").split()
    return float(words[0]) if words else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not there, or not for us
        return ""
