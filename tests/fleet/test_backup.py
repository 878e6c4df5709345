"""A fleet is copied while its server runs; what is restored goes on above all that devices know."""

from __future__ import annotations

import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("fastapi", reason="a fleet's server needs the extra 'fleet'")

from tests.fleet.servers import HARDWARE, enrol, running_server, until

from edgec.errors import FleetError
from edgec.fleet.service import Fleet, back_up

if TYPE_CHECKING:
    from edgec.device_agent import AgentConfig
    from edgec.fleet.server import FleetServer


def test_a_backup_has_all_but_what_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with Fleet(folder) as fleet:
        fleet.store.devices.enrol("cam-1", "cpu", now=1.8e9, actor="ann")
        (folder / "repo/incoming").mkdir()
        (folder / "repo/incoming/half.part").write_bytes(b"x")
        assert back_up(folder, tmp_path / "fleet.tar") > 15
    assert stat.S_IMODE((tmp_path / "fleet.tar").stat().st_mode) == 0o600
    with tarfile.open(tmp_path / "fleet.tar") as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "again", filter="data")
    assert names[0] == "fleet.db"
    assert not [name for name in names if "incoming" in name]
    assert names.index("repo/image/timestamp.json") < names.index("repo/image/1.snapshot.json")
    with Fleet(tmp_path / "again") as again:
        assert again.store.devices.get("cam-1").hardware == "cpu"
        assert again.image.snapshot() is not None


def test_what_is_no_fleet_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no fleet") as caught:
        back_up(tmp_path / "nothing", tmp_path / "out.tar")
    assert caught.value.reason == "not_found"
    (tmp_path / "keys").mkdir()
    (tmp_path / "fleet.db").write_bytes(b"no database" * 100)
    with pytest.raises(FleetError, match="cannot copy"):
        back_up(tmp_path, tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()


@contextmanager
def _agent(config: AgentConfig) -> Iterator[None]:
    from edgec.device_agent import Agent

    # A model that is on probation makes way for no other.
    agent = Agent(replace(config, updates=replace(config.updates, probation_s=0.1)))
    agent.start()
    try:
        yield
    finally:
        agent.stop()


def _runs(server: FleetServer, version: str) -> None:
    digest = server.fleet.registry.by_hardware("digits", version)[HARDWARE]

    def active() -> bool:
        reported = server.fleet.store.devices.get("cam-1").view.reported
        model = reported.models.get("digits") if reported else None
        return model is not None and model.active == digest

    until(active, f"the device runs version {version}", 120)


@pytest.mark.slow
def test_row_21_a_restored_backup_takes_no_device_back(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the model needs the extra 'onnxruntime'")
    from tests.fleet.shop import begin, end, make_template

    folder = make_template(tmp_path)
    with running_server(folder, "nats") as server:
        config = enrol(server, tmp_path, "cam-1").config
        with _agent(config):
            begin(server.fleet, "r1", "1")
            _runs(server, "1")
            end(server.fleet, "r1")
            back_up(folder, tmp_path / "fleet.tar")
            begin(server.fleet, "r2", "2")
            _runs(server, "2")
    shutil.rmtree(folder)
    with tarfile.open(tmp_path / "fleet.tar") as tar:
        tar.extractall(folder, filter="data")
    with running_server(folder, "nats") as server, _agent(config):
        devices = server.fleet.store.devices
        until(lambda: devices.get("cam-1").acknowledged == 2, "the device says what it knows")
        assert devices.get("cam-1").epoch == 1
        begin(server.fleet, "r3", "1")
        until(lambda: devices.get("cam-1").acknowledged == 3, "it takes notice of what is decided now")
        _runs(server, "1")
