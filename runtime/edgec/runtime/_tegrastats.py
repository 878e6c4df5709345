"""What NVIDIA's ``tegrastats`` says of a Jetson: a line of it, read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Timer

_LONGEST_LINE = 4096
_WAIT_S = 2.0
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
_SWAP = re.compile(r"\bSWAP (\d+)/(\d+)MB")
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (\d+)%")
_CPU = re.compile(r"\b(?:CPU|cpu) \[([^\]]{0,1024})\]")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
# A sensor that is off says -256.
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(\d+(?:\.\d+)?)C\b")
_RAIL = re.compile(r"\b((?:VDD|VIN|POM)_[A-Z0-9_]+) (\d+)(?:mW)?/(\d+)(?:mW)?")


@dataclass(frozen=True, kw_only=True)
class TegraStats:
    """One line of ``tegrastats``; what it does not have is empty or None.

    Attributes:
        ram_used_mib: Of the memory that processor and GPU share.
        ram_total_mib: Of it.
        swap_used_mib: Of swap.
        gpu_percent: How busy the GPU is.
        cpu_percent: How busy each core is; None for one that is off.
        temperatures_c: By sensor: ``{"cpu": 62.8, "tj": 62.8}``.
        power_mw: Now, by rail: ``{"VDD_IN": 3913}``.
    """

    ram_used_mib: int | None = None
    ram_total_mib: int | None = None
    swap_used_mib: int | None = None
    gpu_percent: int | None = None
    cpu_percent: tuple[int | None, ...] = ()
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    power_mw: Mapping[str, int] = field(default_factory=dict)


def parse_tegrastats(line: str) -> TegraStats:
    """Return what a line says; each generation of Jetsons has other parts, and unknown ones are skipped."""
    line = line[:_LONGEST_LINE]
    ram, swap, gpu, cpu = (pattern.search(line) for pattern in (_RAM, _SWAP, _GPU, _CPU))
    return TegraStats(
        ram_used_mib=int(ram[1]) if ram else None,
        ram_total_mib=int(ram[2]) if ram else None,
        swap_used_mib=int(swap[1]) if swap else None,
        gpu_percent=int(gpu[1]) if gpu else None,
        cpu_percent=tuple(_core(core) for core in cpu[1].split(",")) if cpu else (),
        # The PMIC's is a constant, 100 or 50 degrees.
        temperatures_c={n: float(t) for n, t in _TEMPERATURE.findall(line) if n.upper() != "PMIC"},
        power_mw={name: int(now) for name, now, _ in _RAIL.findall(line)},
    )


def read_tegrastats() -> str | None:
    """Run ``tegrastats`` for one line, a tenth of a second; None where it is not there or says nothing."""
    program = shutil.which("tegrastats")
    if program is None:
        return None
    try:
        process = subprocess.Popen(
            [program, "--interval", "100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return None
    stop = Timer(_WAIT_S, process.kill)
    stop.start()
    try:
        assert process.stdout is not None
        return process.stdout.readline(_LONGEST_LINE) or None
    finally:
        stop.cancel()
        process.kill()  # it goes on for ever
        process.communicate()


def _core(told: str) -> int | None:
    match = _CORE.match(told.strip())
    return int(match[1]) if match else None
