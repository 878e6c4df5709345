"""Energy, where the device has a meter: RAPL of x86 processors, and INA sensors, as Jetsons have."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

_RAPL = "sys/class/powercap"
# Of the whole board first; a sum of rails would count some twice.
_BOARD_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "VIN")
_PERIOD_S = 0.05
_ABSENT = "the system shows no energy meter (RAPL in /sys/class/powercap, INA sensors in /sys/class/hwmon)"
_LOCKED = (
    "RAPL is here, but only root may read it: run as root, or  chmod a+r /sys/class/powercap/*/energy_uj"
)


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What was used while a measurement ran, by everything that the meter sees, idle included.

    Attributes:
        joules: In all.
        seconds: How long it ran.
        calls: How many calls were made meanwhile.
        source: What was read: ``RAPL: package-0``.
    """

    joules: float
    seconds: float
    calls: int
    source: str

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds

    @property
    def joules_per_call(self) -> float:
        """Energy of one call."""
        return self.joules / self.calls


class EnergyMeter:
    """Reads the energy used between entering and leaving a ``with`` block.

    Attributes:
        source: What it reads; None where there is no meter.
        absent: Why there is none, in a sentence; empty where there is one.
    """

    source: str | None
    absent: str

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.perf_counter) -> None:
        """Look for a meter.

        Args:
            root: Where ``sys`` is.
            clock: Monotonic, in seconds.
        """
        self._clock = clock
        self._joules: float | None = None
        self._seconds = 0.0
        packages, locked = _rapl_packages(root)
        self._packages = packages
        self._rail = None if packages else _board_rail(root)
        self.source = None
        self.absent = ""
        if packages:
            self.source = "RAPL: " + ", ".join(name for name, _, _ in packages)
        elif self._rail is not None:
            self.source = f"INA: {self._rail.name}"
        else:
            self.absent = _LOCKED if locked else _ABSENT

    def __enter__(self) -> EnergyMeter:
        self._start = self._clock()
        self._before = [_read(path) for _, path, _ in self._packages]
        if self._rail is not None:
            self._sampler = _Sampler(self._rail, self._clock)
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        after = [_read(path) for _, path, _ in self._packages]
        self._seconds = self._clock() - self._start
        if self._rail is not None:
            self._joules = self._sampler.stop()
        elif self._packages:
            self._joules = _difference(self._before, after, [most for _, _, most in self._packages])

    def energy(self, calls: int) -> Energy | None:
        """Return what was used in the block, in which `calls` calls were made; None without a meter."""
        if self._joules is None or self.source is None or self._seconds <= 0:
            return None
        return Energy(joules=self._joules, seconds=self._seconds, calls=calls, source=self.source)


@dataclass(frozen=True)
class _Rail:
    name: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float | None:
        volts, amperes = _read(self.millivolts), _read(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


class _Sampler:
    """Sums up the power of a rail over time, by trapezoids, 20 times per second."""

    def __init__(self, rail: _Rail, clock: Callable[[], float]) -> None:
        self._rail = rail
        self._clock = clock
        self._points: list[tuple[float, float]] = []
        self._done = Event()
        self._thread = Thread(target=self._sample, name="edgec-energy", daemon=True)

    def start(self) -> None:
        self._note()
        self._thread.start()

    def stop(self) -> float | None:
        """Return joules; None where the sensor gave less than two readings."""
        self._done.set()
        self._thread.join()
        self._note()
        if len(self._points) < 2:
            return None
        pairs = zip(self._points[:-1], self._points[1:], strict=True)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)

    def _sample(self) -> None:
        while not self._done.wait(_PERIOD_S):
            self._note()

    def _note(self) -> None:
        watts = self._rail.watts()
        if watts is not None:
            self._points.append((self._clock(), watts))


def _rapl_packages(root: Path) -> tuple[list[tuple[str, Path, int]], bool]:
    """Return name, counter and its range of each package, and whether counters are there but locked.

    What a counter wraps at is some 260 kJ, more than twenty minutes at 200 W: one wrap is seen, a second
    one would not be.
    """
    found, locked = [], False
    # intel-rapl:0 is a package, intel-rapl:0:0 a part of it; AMD's processors have the same names.
    for zone in sorted((root / _RAPL).glob("intel-rapl:*")):
        name = _text(zone / "name")
        if zone.name.count(":") != 1 or not name.startswith("package"):
            continue
        counter = zone / "energy_uj"
        if _read(counter) is None:
            locked = locked or counter.exists()
            continue
        found.append((name, counter, _read(zone / "max_energy_range_uj") or 0))
    return found, locked


def _board_rail(root: Path) -> _Rail | None:
    rails = []
    for sensor in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if not _text(sensor / "name").startswith("ina"):
            continue
        for volts in sorted(sensor.glob("in[0-9]*_input")):
            number = volts.name[2:].removesuffix("_input")
            current = sensor / f"curr{number}_input"
            if current.exists():
                rails.append(_Rail(_text(sensor / f"in{number}_label") or f"rail {number}", volts, current))
    readable = [rail for rail in rails if rail.watts() is not None]
    whole = [rail for name in _BOARD_RAILS for rail in readable if rail.name == name]
    return next(iter(whole or readable), None)


def _difference(before: list[int | None], after: list[int | None], ranges: list[int]) -> float | None:
    joules = 0.0
    for first, last, most in zip(before, after, ranges, strict=True):
        if first is None or last is None:
            return None
        joules += (last - first + (most if last < first else 0)) / 1e6
    return joules


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, not for us, or a sensor that is off
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
