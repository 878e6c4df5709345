"""Many simulated devices in one process."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edgec.device_agent import AgentConfig
from edgec.errors import EdgecError
from edgec.simulation._asking import RealCalls
from edgec.simulation._calls import DeclaredArtifacts
from edgec.simulation._checks import Checks, Works
from edgec.simulation._device import DeviceNews, SimulatedDevice
from edgec.simulation._places import allow_files
from edgec.simulation._rounds import Rounds
from edgec.simulation._settings import SimulationSettings
from edgec.simulation._trial import SharedTrial

_PAUSE_S = 0.2
_OFF_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How the devices of a simulation are; counts of several processes add up.

    Attributes:
        devices: In all.
        on: Switched on.
        online: Connected to the broker.
        connections: Made since the start.
        orders: Heard.
        follows: Changes of what serves.
        crashes: Of applications.
        restarts: Of devices, by churn.
        waiting: Records that the fleet has not acknowledged.
        lost: Records of high priority that were given up.
        serving: How many devices run what, ``model version``.
    """

    devices: int = 0
    on: int = 0
    online: int = 0
    connections: int = 0
    orders: int = 0
    follows: int = 0
    crashes: int = 0
    restarts: int = 0
    waiting: int = 0
    lost: int = 0
    serving: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Counts) -> Counts:
        """Return the counts of both."""
        names = [name for name in vars(self) if name != "serving"]
        serving = Counter(self.serving) + Counter(other.serving)
        return Counts(
            **{name: getattr(self, name) + getattr(other, name) for name in names}, serving=dict(serving)
        )


class Simulation:
    """Devices in this process: real agents, which share trials and what artifacts declare.

    Args:
        configs: Of the agents, each with a directory of its own.
        settings: Of all.
        news: Told of what happens, from threads of devices: it must be quick.
        failed: Told of a device that cannot be started, and why.
        samples: What models are asked, by name of the model: arguments of ``Session.predict``. Their calls
            are then made, ``settings.calls_per_s`` on each device, and not drawn.
    """

    def __init__(
        self,
        configs: Iterable[AgentConfig],
        settings: SimulationSettings | None = None,
        *,
        news: Callable[[DeviceNews], None] = lambda news: None,
        failed: Callable[[str, EdgecError], None] = lambda device, error: None,
        samples: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.settings = settings or SimulationSettings()
        self._news, self._failed = news, failed
        artifacts, self.trial = DeclaredArtifacts(), SharedTrial()
        configs = list(configs)
        self._checks, self._works, self._rounds = Checks(), Works(64 + 4 * len(configs)), Rounds()
        self.devices = {
            config.device: SimulatedDevice(
                config,
                self.settings,
                artifacts,
                self.trial,
                rounds=self._rounds,
                spawn=self._works.run,
                spawn_check=self._checks.run,
                news=self._hear,
                drawn=not samples,
            )
            for config in configs
        }
        self._real = RealCalls(samples, self.settings.calls_per_s) if samples else None
        self._told: Counter[str] = Counter()
        self._waiting = 0
        self._lost: dict[str, int] = {}
        self._off: dict[str, float] = {}
        self._random = random.Random(self.settings.seed)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to switch devices on; return at once."""
        allow_files()
        self._rounds.start()
        self._thread = threading.Thread(target=self._run, name="edgec-simulation", daemon=True)
        self._thread.start()
        if self._real is not None:
            self._real.start(self.devices.values())

    def close(self) -> None:
        """Switch all devices off."""
        self._over.set()
        if self._real is not None:
            self._real.stop()
        if self._thread is not None:
            self._thread.join()
        devices = list(self.devices.values())
        # A device waits for its broker's good-bye: together they wait once.
        while devices:
            some, devices = devices[:50], devices[50:]
            threads = [threading.Thread(target=device.stop) for device in some]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self._rounds.close()
        self._checks.close()
        self._works.close()

    def __enter__(self) -> Simulation:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_online(self, timeout_s: float, share: float = 1.0) -> bool:
        """Wait until a share of the devices is connected; return whether it is."""
        return self.wait(lambda: self.online >= share * len(self.devices), timeout_s)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds, which is looked at ten times a second; return whether it does."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end or self._over.wait(0.1):
                return False
        return True

    @property
    def online(self) -> int:
        """How many devices are connected."""
        states = [device.link for device in self.devices.values()]
        return sum(state is not None and state.connected for state in states)

    def counts(self, *, records: bool = True) -> Counts:
        """Return how all devices are.

        Args:
            records: Whether to count anew what waits in outboxes, which reads them all.
        """
        links = [device.link for device in self.devices.values()]
        known = [link for link in links if link is not None]
        if records:
            self._look_into_outboxes()
        serving = Counter(
            f"{model} {version}"
            for device in self.devices.values()
            for model, version in device.serving.items()
        )
        return Counts(
            devices=len(self.devices),
            on=len(known),
            online=sum(link.connected for link in known),
            connections=sum(device.connections for device in self.devices.values()),
            orders=self._told["order"],
            follows=self._told["follow"],
            crashes=self._told["crash"],
            restarts=self._told["restart"],
            waiting=self._waiting,
            lost=sum(self._lost.values()),
            serving=dict(sorted(serving.items())),
        )

    def _look_into_outboxes(self) -> None:
        waiting = 0
        for name, device in self.devices.items():
            agent = device.agent
            if agent is not None:
                with suppress(EdgecError):  # it has just been switched off
                    state = agent.outbox_state()
                    waiting += sum(state.records.values())
                    self._lost[name] = sum(x.records for x in state.losses if x.priority == 2)
        self._waiting = waiting

    # -- the thread

    def _run(self) -> None:
        """Switch devices on, one after the other; then let each tell what it saw, evenly over time."""
        devices = list(self.devices.items())
        begin = time.monotonic()
        for number, (name, device) in enumerate(devices):
            if self._over.wait(
                max(begin + self.settings.ramp_s * number / len(devices) - time.monotonic(), 0)
            ):
                return
            self._start(name, device)
        if devices:
            self._beat(devices)

    def _beat(self, devices: list[tuple[str, SimulatedDevice]]) -> None:
        beaten, turn, begin = 0, time.monotonic(), time.monotonic()
        while True:
            due = int((time.monotonic() - begin) / self.settings.window_s * len(devices))
            for _, device in devices:
                device.live()
            for number in range(beaten, due):
                devices[number % len(devices)][1].flush()
            beaten, passed = due, time.monotonic() - turn
            turn += passed
            self._churn(devices, passed)
            if self._over.wait(_PAUSE_S):
                return

    def _churn(self, devices: list[tuple[str, SimulatedDevice]], seconds: float) -> None:
        now = time.monotonic()
        for name, since in list(self._off.items()):
            if now - since >= _OFF_S:
                del self._off[name]
                self._start(name, self.devices[name])
        expected = self.settings.churn_per_minute * len(devices) * seconds / 60
        count = int(expected) + (self._random.random() < expected % 1)
        for name, device in self._random.sample(devices, min(count, len(devices))):
            if name not in self._off and device.agent is not None:
                device.stop()
                self._off[name] = now
                self._told["restart"] += 1

    def _start(self, name: str, device: SimulatedDevice) -> None:
        try:
            device.start()
        except EdgecError as e:
            self._failed(name, e)

    def _hear(self, news: DeviceNews) -> None:
        self._told[news.kind] += 1
        self._news(news)
