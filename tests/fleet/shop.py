"""A fleet with two sound releases of the digits model, made once and copied, and settings for a broker."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.device_agent import poison

from edgec.fleet.mqtt import MqttSettings, MqttSide
from edgec.fleet.rollouts import Plan, Stage
from edgec.fleet.service import Fleet
from edgec.protocol import LinkOptions
from edgec.protocol.brokers import FLEET, Broker

HARDWARE = "cpu-x86_64"
QUICK = MqttSettings(turn_s=0.2, late_s=0.5, first_wait_s=1.0, last_wait_s=2.0)


def make_template(folder: Path, database: str | None = None) -> Path:
    """Make a fleet with releases 1 and 2."""
    with Fleet(folder / "fleet", database=database) as fleet:
        for version, change in (("1", None), ("2", poison.retrained(1))):
            path = folder / f"{version}.edgec"
            poison.artifact(path, *([change] if change else []), version=version)
            with path.open("rb") as file:
                fleet.registry.upload(file, now=time.time(), actor="ann", override="a test")
    return folder / "fleet"


def copied(template: Path, folder: Path) -> Path:
    """Return a fleet's directory of one's own."""
    shutil.copytree(template, folder)
    return folder


def side_of(fleet: Fleet, broker: Broker, **more: Any) -> MqttSide:
    """Return the fleet's side of a broker, not started."""
    options = LinkOptions(
        host=broker.host,
        port=broker.port,
        client_id=FLEET,
        tls=broker.authority.client(FLEET).client_context(),
        first_retry_s=0.1,
        last_retry_s=0.5,
    )
    return MqttSide(fleet, options, settings=MqttSettings(**{**vars(QUICK), **more}))


def begin(fleet: Fleet, name: str, version: str, **more: Any) -> None:
    """Begin a rollout of a release of the digits to all devices at once."""
    options: dict[str, Any] = {"stages": (Stage(percent=100, soak_s=0.1),), "first_look_s": 0.1, **more}
    plan = Plan(
        id=name,
        name=name,
        model="digits",
        version=version,
        artifacts=fleet.registry.by_hardware("digits", version),
        **options,
    )
    fleet.store.rollouts.create(plan, now=fleet.clock(), actor="ann")
    fleet.store.rollouts.order(name, "start", now=fleet.clock(), actor="ann")
    fleet.wake()


def end(fleet: Fleet, name: str) -> None:
    """End a rollout; what is installed stays. Devices that say nothing of a model let no gate pass."""
    fleet.store.rollouts.order(name, "abort", now=fleet.clock(), actor="ann")


def enrol(fleet: Fleet, *names: str) -> None:
    """Take devices into the fleet."""
    for name in names:
        fleet.store.devices.enrol(name, HARDWARE, now=fleet.clock(), actor="ann")
    fleet.wake()


def until(holds: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
