"""The state of the device: a clock that is held back, memory that runs short.

    watch = DeviceWatch()
    ...
    for condition in watch.check():  # at most every 5 seconds it looks; in between it costs nothing
        print(condition.message)

It reads what Linux shows in /proc and /sys (pressure stall information, thermal zones, cooling devices,
clocks, throttle counts), the firmware of a Raspberry Pi and a Jetson's ``tegrastats``, whatever there is of
that. There is no thread unless it is asked for.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread

from edgec.runtime._machine import memory_mib
from edgec.runtime._tegrastats import TegraStats, parse_tegrastats, read_tegrastats
from edgec.runtime._thermal import ThermalState, held_back, limited, thermal_state

_log = logging.getLogger("edgec.runtime")
_RESOURCES = ("cpu", "memory", "io")
_AVERAGE = re.compile(r"avg10=(\d+(?:\.\d+)?)")
_VCGENCMD_S = 2.0
THROTTLED, MEMORY = "throttled", "memory"


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """How long processes waited for a resource in the last 10 seconds: pressure stall information of Linux.

    Attributes:
        some: Percent of the time in which at least one process waited.
        full: Percent of the time in which all waited at once.
    """

    some: float
    full: float


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What a device shows of itself; what it does not is empty or None.

    Attributes:
        thermal: Temperatures and clocks.
        pressure: By resource: ``cpu``, ``memory``, ``io``.
        memory_available_mib: Memory that processes can still get, without swap.
        memory_total_mib: Installed.
        tegra: What ``tegrastats`` says; None where it is not a Jetson.
    """

    thermal: ThermalState = field(default_factory=ThermalState)
    pressure: Mapping[str, Pressure] = field(default_factory=dict)
    memory_available_mib: int | None = None
    memory_total_mib: int | None = None
    tegra: TegraStats | None = None

    @property
    def temperatures_c(self) -> Mapping[str, float]:
        """Of each sensor, in degrees Celsius."""
        return {**(self.tegra.temperatures_c if self.tegra else {}), **self.thermal.temperatures_c}


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What is a condition worth a warning.

    Attributes:
        interval_s: How often the device is looked at, at most.
        memory_pressure: Percent of the last 10 seconds in which all processes waited for memory at once, from
            which on it is short: the system then spends its time on making room.
        memory_share: Share of the memory that is available, below which it is short.
    """

    interval_s: float = 5.0
    memory_pressure: float = 5.0
    memory_share: float = 0.05

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        if not (self.interval_s > 0 and self.memory_pressure > 0 and 0 <= self.memory_share < 1):
            raise ValueError(f"expected an interval and a pressure above 0, a share from 0 to 1, got {self}")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that is wrong with the device now.

    Attributes:
        kind: ``throttled`` or ``memory``.
        message: What, and what to do, in a sentence.
        since: When it was first seen, in seconds since 1970.
    """

    kind: str
    message: str
    since: float


def _nothing() -> str | None:
    return None


def device_state(
    root: Path = Path("/"),
    *,
    tegrastats: Callable[[], str | None] = _nothing,
    vcgencmd: Callable[[], str | None] = _nothing,
) -> DeviceState:
    """Return the state of this device now.

    Args:
        root: Where ``proc`` and ``sys`` are.
        tegrastats: Returns a line of it; see `DeviceWatch`.
        vcgencmd: Returns what ``vcgencmd get_throttled`` says, asked where the system does not show it.
    """
    line = tegrastats()
    tegra = None if line is None else parse_tegrastats(line)
    memory = memory_mib(root)
    if tegra is not None and not memory and tegra.ram_total_mib and tegra.ram_used_mib is not None:
        memory = {"MemTotal": tegra.ram_total_mib, "MemAvailable": tegra.ram_total_mib - tegra.ram_used_mib}
    return DeviceState(
        thermal=thermal_state(root, vcgencmd=vcgencmd),
        pressure={name: found for name in _RESOURCES if (found := _pressure(root, name)) is not None},
        memory_available_mib=memory.get("MemAvailable"),
        memory_total_mib=memory.get("MemTotal"),
        tegra=tegra,
    )


class DeviceWatch:
    """Looks at the device now and then, and warns once each time that something begins. Safe from threads.

    Attributes:
        options: What it was told.
        episodes: How often each kind of condition has begun: ``{"throttled": 2}``.
    """

    options: WatchOptions
    episodes: dict[str, int]

    def __init__(
        self,
        options: WatchOptions | None = None,
        *,
        root: Path = Path("/"),
        tegrastats: Callable[[], str | None] | None = read_tegrastats,
        vcgencmd: Callable[[], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Look at the device for the first time; what is so by then is what it is compared with.

        Args:
            options: None for the defaults.
            root: Where ``proc`` and ``sys`` are.
            tegrastats: Returns a line of it, or None; it takes a tenth of a second on a Jetson. None for not
                asking it.
            vcgencmd: Returns what ``vcgencmd get_throttled`` says; None for running it where there is one.
            clock: Monotonic, in seconds.
            wall: Seconds since 1970.
        """
        self.options = WatchOptions() if options is None else options
        self.episodes = {}
        self._root = root
        self._tegrastats = tegrastats or _nothing
        self._vcgencmd = vcgencmd or read_vcgencmd
        self._clock = clock
        self._wall = wall
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None
        self._conditions: dict[str, Condition] = {}
        self._state = self._look()
        self._first = self._state
        self._looked = clock()
        with self._lock:
            self._judge(self._state)

    @property
    def state(self) -> DeviceState:
        """What was seen last."""
        return self._state

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What was wrong when it was looked at last."""
        return tuple(self._conditions.values())

    def check(self) -> tuple[Condition, ...]:
        """Return what is wrong, and look at the device before if the last time is `interval_s` ago."""
        if self._clock() - self._looked >= self.options.interval_s and self._lock.acquire(blocking=False):
            try:
                before, self._state = self._state, self._look()
                self._looked = self._clock()
                self._judge(before)
            finally:
                self._lock.release()
        return self.conditions

    def start(self) -> None:
        """Check in a thread from now on, each `interval_s`, until `close`."""
        with self._lock:
            if self._thread is None:
                self._stop.clear()
                self._thread = Thread(target=self._work, name="edgec-conditions", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread, if there is one."""
        self._stop.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def __enter__(self) -> DeviceWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while not self._stop.wait(self.options.interval_s):
            self.check()

    def _look(self) -> DeviceState:
        return device_state(self._root, tegrastats=self._tegrastats, vcgencmd=self._vcgencmd)

    def _judge(self, before: DeviceState) -> None:
        """Begin and end conditions."""
        now = self._state.thermal
        found = {
            # Counts since the last look; limits since the first one, for a lower one may be chosen.
            THROTTLED: "; ".join([*held_back(before.thermal, now), *limited(self._first.thermal, now)]),
            MEMORY: memory_short(self._state, self.options),
        }
        for kind, message in found.items():
            known = self._conditions.get(kind)
            if not message:
                if self._conditions.pop(kind, None) is not None:
                    _log.info("%s: over", kind)
                continue
            since = self._wall() if known is None else known.since
            self._conditions[kind] = Condition(kind=kind, message=message, since=since)
            if known is None:
                self.episodes[kind] = self.episodes.get(kind, 0) + 1
                _log.warning("%s", message)


def read_vcgencmd() -> str | None:
    """Return what the firmware of a Raspberry Pi says of throttling; None where there is no such command."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, "get_throttled"], capture_output=True, text=True, timeout=_VCGENCMD_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None


def memory_short(state: DeviceState, options: WatchOptions) -> str:
    """Return how memory is short, in a sentence; nothing where it is not."""
    reasons = []
    pressure = state.pressure.get("memory")
    if pressure is not None and pressure.full >= options.memory_pressure:
        reasons.append(f"all processes waited for it {pressure.full:.0f} % of the last 10 seconds")
    available, total = state.memory_available_mib, state.memory_total_mib
    if available is not None and total and available < options.memory_share * total:
        reasons.append(f"{available} of {total} MiB are available")
    if not reasons:
        return ""
    return f"memory is short: {' and '.join(reasons)}; unload models, or give the device less to do"


def _pressure(root: Path, resource: str) -> Pressure | None:
    rows = {}
    for line in _text(root / "proc/pressure" / resource).splitlines():
        average = _AVERAGE.search(line)
        if average is not None:
            rows[line.split()[0]] = float(average[1])
    # Older kernels have no row of their own for processors: all waiting at once means none does.
    return Pressure(some=rows["some"], full=rows.get("full", 0.0)) if "some" in rows else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not there, or pressure stall information is switched off
        return ""
