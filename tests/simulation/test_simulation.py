"""Simulated devices over a real broker: real agents, whose calls are drawn."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")
pytest.importorskip("onnxruntime", reason="releases run on ONNX Runtime, of the extra `onnxruntime`")

from tests.brokers import make_broker
from tests.device_agent.fleet_side import HARDWARE, Heard, Publisher, Server, config

from edgec.device_agent import UpdateSettings
from edgec.protocol import ModelWindow
from edgec.protocol.brokers import Broker
from edgec.simulation import (
    TELEMETRY,
    DeviceNews,
    Poison,
    Simulation,
    SimulationSettings,
    Swarm,
    make_release,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DEVICES = ("dev1", "dev2", "dev3", "dev4")
UPDATES = UpdateSettings(probation_s=0.3, refresh_s=0, health_timeout_s=100)
QUICK = SimulationSettings(window_s=0.5, calls_per_s=50, updates=UPDATES, backoff_s=0.5)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    folder = tmp_path_factory.mktemp("shop")
    publisher = Publisher(folder)
    for version, poison in (("1", None), ("2", None), ("3", "install")):
        publisher.publish(make_release(folder / f"{version}.edgec", version, target=HARDWARE, poison=poison))
    return publisher


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with make_broker("mosquitto", tmp_path_factory.mktemp("broker"), devices=DEVICES) as running:
        yield running


class World:
    """Some devices, their fleet, and what they told of themselves."""

    def __init__(self, shop: Publisher, broker: Broker, settings: SimulationSettings, folder: Path) -> None:
        self.shop, self.news = shop, list[DeviceNews]()
        self.server = Server(broker, shop.repo)
        configs = [
            config(folder, shop, broker, name, updates=settings.updates, telemetry=TELEMETRY)
            for name in DEVICES
        ]
        self.simulation = Simulation(configs, settings, news=self.news.append)

    def __enter__(self) -> World:
        self.server.__enter__()
        self.simulation.__enter__()
        assert self.simulation.wait_online(200)
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()
        self.server.__exit__()

    def want(self, version: str) -> dict[str, str]:
        """Let all have a version; return how each has ended, and why."""
        path = f"sorter/sorter-{version}-{HARDWARE}.edgec"
        epochs = {name: self.server.want(self.shop, {"sorter": path}, name) for name in DEVICES}
        events = {name: self.server.ended(epochs[name], "sorter", 200, name) for name in DEVICES}
        return {name: event.kind if not event.reason else event.reason for name, event in events.items()}

    def windows(self, device: str) -> list[ModelWindow]:
        heard = self.server.heard(device)
        records = zip(list(heard.records.values()), list(heard.kinds), strict=False)
        return [ModelWindow.from_bytes(data) for data, kind in records if kind == "window"]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ec") as name:
        yield Path(name)


def test_devices_update_and_tell_of_calls_that_were_drawn(
    shop: Publisher, broker: Broker, folder: Path
) -> None:
    with World(shop, broker, QUICK, folder) as world:
        assert set(world.want("1").values()) == {"update_committed"}
        assert world.simulation.counts().serving == {"sorter 1": 4}
        for name in DEVICES:
            world.server.wait(lambda heard: len(heard.records) > 3, 200, name)
            windows = world.windows(name)
            assert {w.model_version for w in windows} == {"1"}
            assert sum(w.calls for w in windows) > 20
        # What cannot be installed is tried once for all, and every device says why.
        tried = world.simulation.trial.tried
        assert set(world.want("3").values()) == {"golden"}
        assert world.simulation.trial.tried == tried + 1
        assert world.simulation.counts().serving == {"sorter 1": 4}
        assert {n.kind for n in world.news} == {"order", "follow"}
        assert sum(n.kind == "order" for n in world.news) >= 8


def test_a_release_that_kills_its_application_is_taken_back_by_the_device(
    shop: Publisher, broker: Broker, folder: Path
) -> None:
    with World(shop, broker, QUICK, folder) as world:
        world.want("1")
    updates = UpdateSettings(probation_s=300, refresh_s=0, health_timeout_s=100)
    settings = SimulationSettings(window_s=0.5, updates=updates, poison=Poison(kind="crashes"))
    with World(shop, broker, settings, folder) as world:
        assert world.simulation.wait(lambda: world.simulation.counts().serving == {"sorter 1": 4}, 200)
        ended = world.want("2")
        assert set(ended.values()) == {"crash_loop"}
        told = [event for name in DEVICES for event in world.server.heard(name).events.values()]
        assert any(event.kind == "crash" and event.model == "sorter" for event in told)


def test_devices_that_lose_power_come_back_and_lose_nothing(
    shop: Publisher, broker: Broker, folder: Path
) -> None:
    settings = SimulationSettings(window_s=0.5, updates=UPDATES, churn_per_minute=1.0, first_retry_s=0.2)
    with World(shop, broker, settings, folder) as world:
        world.want("2")
        # Each minute each device: the thread draws how many it is now.
        assert world.simulation.wait(lambda: world.simulation.counts(records=False).restarts >= 1, 120)
        assert world.simulation.wait_online(200)
        counts = world.simulation.counts()
        assert (counts.online, counts.lost, counts.serving) == (4, 0, {"sorter 2": 4})

        def gaps(heard: Heard) -> int:
            return sum(bool(ledger.ranges) for ledger in heard.ledgers.values())

        end = time.monotonic() + 200
        while any(gaps(world.server.heard(name)) for name in DEVICES) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(gaps(world.server.heard(name)) for name in DEVICES)


def test_devices_in_several_processes_add_up(shop: Publisher, broker: Broker, folder: Path) -> None:
    news = list[DeviceNews]()
    configs = [config(folder, shop, broker, name, updates=UPDATES, telemetry=TELEMETRY) for name in DEVICES]
    settings = SimulationSettings(window_s=0.5, updates=UPDATES, poison=Poison(kind="slow"), ramp_s=0.1)
    with (
        Server(broker, shop.repo) as server,
        Swarm(configs, settings, processes=2, nice=1, news=news.append) as swarm,
    ):
        assert swarm.wait_online(200)
        for name in DEVICES:
            server.want(shop, {"sorter": f"sorter/sorter-1-{HARDWARE}.edgec"}, name)
        assert swarm.wait(lambda counts: counts.serving == {"sorter 1": 4}, 200)
        assert swarm.counts().devices == 4
        nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 1, 19)
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in swarm.pids] == [nice, nice]
        assert {n.device for n in news if n.kind == "order"} == set(DEVICES)
    assert swarm.counts().online == 0
