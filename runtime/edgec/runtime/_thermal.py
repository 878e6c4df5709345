"""What heat does to the clock: temperatures, clocks and throttling, as the system tells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CPUS = "sys/devices/system/cpu"
# The firmware of a Raspberry Pi: bits of what happens now; the same 16 bits up, what has since the start.
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FIRMWARE_BITS = {0: "under-voltage", 1: "a capped clock", 2: "throttling", 3: "the soft temperature limit"}


@dataclass(frozen=True, kw_only=True)
class ThermalState:
    """How hot a machine is, and how fast its clock; what the system does not tell is empty or None.

    Attributes:
        temperatures_c: Of each thermal zone, in degrees Celsius: ``{"cpu-thermal": 61.2}``.
        clock_mhz: Of the cores now, the mean.
        limit_mhz: What the clock may reach now, the lowest of all cores.
        nominal_mhz: What it can reach, of the same core.
        throttled: Times that cores were throttled since the machine started (x86).
        cooling: Cooling devices of the processor that are at work: ``{"cpufreq-cpu0": 2}``.
        firmware: What the firmware of a Raspberry Pi says it does now, in words.
        over_currents: Times that a Jetson held its clocks back for current or voltage since it started.
    """

    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    clock_mhz: float | None = None
    limit_mhz: float | None = None
    nominal_mhz: float | None = None
    throttled: int | None = None
    cooling: Mapping[str, int] = field(default_factory=dict)
    firmware: tuple[str, ...] = ()
    over_currents: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the system tells anything, as virtual machines do not."""
        return self != ThermalState()

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON has it."""
        return {
            "temperatures_c": dict(self.temperatures_c),
            "clock_mhz": self.clock_mhz,
            "limit_mhz": self.limit_mhz,
            "nominal_mhz": self.nominal_mhz,
            "throttled": self.throttled,
            "cooling": dict(self.cooling),
            "firmware": list(self.firmware),
            "over_currents": self.over_currents,
        }


def thermal_state(
    root: Path = Path("/"), *, vcgencmd: Callable[[], str | None] | None = None
) -> ThermalState:
    """Return the state of this machine now.

    Args:
        root: Where ``sys`` is.
        vcgencmd: Returns what ``vcgencmd get_throttled`` says, ``throttled=0x50005``, or None; asked where
            the system does not show that itself.
    """
    clocks = _numbers(root, "cpufreq/scaling_cur_freq")
    limits = {
        core: (limit, most)
        for core, limit in _numbers(root, "cpufreq/scaling_max_freq").items()
        if (most := _number(root / _CPUS / core / "cpufreq/cpuinfo_max_freq")) is not None
    }
    limit, nominal = min(limits.values(), key=lambda pair: pair[0] / pair[1], default=(None, None))
    throttled = _numbers(root, "thermal_throttle/core_throttle_count")
    return ThermalState(
        temperatures_c=_temperatures(root),
        clock_mhz=sum(clocks.values()) / len(clocks) / 1e3 if clocks else None,
        limit_mhz=None if limit is None else limit / 1e3,
        nominal_mhz=None if nominal is None else nominal / 1e3,
        throttled=sum(throttled.values()) if throttled else None,
        cooling=_cooling(root),
        firmware=_firmware(root, vcgencmd),
        over_currents=_over_currents(root),
    )


def throttling(before: ThermalState, after: ThermalState) -> list[str]:
    """Return what slowed the clock between two states, in plain sentences; empty where nothing is seen."""
    return [*held_back(before, after), *limited(before, after)]


def held_back(before: ThermalState, after: ThermalState) -> list[str]:
    """Return what holds the clock back now, or did since `before`, in plain sentences."""
    found = []
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        found.append(
            f"cores were throttled {after.throttled - before.throttled} times meanwhile: "
            "cool the device, or give it less to do"
        )
    if (after.over_currents or 0) > (before.over_currents or 0):
        found.append("the clocks were held back for current or voltage meanwhile: check the power supply")
    if after.cooling:
        names = ", ".join(f"{name} at step {step}" for name, step in sorted(after.cooling.items()))
        found.append(f"the clock is throttled for heat ({names})")
    if after.firmware:
        found.append(f"the firmware reports {' and '.join(after.firmware)}: check power supply and cooling")
    return found


def limited(before: ThermalState, after: ThermalState) -> list[str]:
    """Return that the clock may go less high than before, in a sentence; nothing where it may."""
    if after.limit_mhz is None or before.limit_mhz is None or after.limit_mhz >= before.limit_mhz:
        return []
    return [f"the highest clock fell from {before.limit_mhz:.0f} to {after.limit_mhz:.0f} MHz meanwhile"]


def _temperatures(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None:
            kind = _text(zone / "type") or zone.name
            found[kind if kind not in found else f"{kind} ({zone.name})"] = value / 1e3
    return found


def _cooling(root: Path) -> dict[str, int]:
    found = {}
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind, step = _text(device / "type"), _number(device / "cur_state")
        # Fans are cooling devices too, and slow nothing down.
        if step and kind.lower().startswith(("cpufreq", "processor", "thermal-cpufreq", "cpu-")):
            found[kind if kind not in found else f"{kind} ({device.name})"] = step
    return found


def _over_currents(root: Path) -> int | None:
    counts = [_number(path) for path in root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _firmware(root: Path, vcgencmd: Callable[[], str | None] | None) -> tuple[str, ...]:
    told = _text(root / _FIRMWARE)
    if not told and vcgencmd is not None:
        told = (vcgencmd() or "").strip().partition("=")[2]
    try:
        bits = int(told or "0", 16)
    except ValueError:
        return ()
    return tuple(words for bit, words in _FIRMWARE_BITS.items() if bits >> bit & 1)


def _numbers(root: Path, name: str) -> dict[str, int]:
    """Return a figure of each core that has it, by the name of the core."""
    found = {path: _number(path / name) for path in sorted((root / _CPUS).glob("cpu[0-9]*"))}
    return {path.name: value for path, value in found.items() if value is not None}


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:  # not there, not for us, or a sensor that is off
        return ""
