"""Disks that are really full: a file system of a few megabytes, and a limit on the size of files."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")
pytest.importorskip("onnx", reason="artifacts are built with onnx, of the extra `compiler`")

from tests.brokers import mosquitto  # noqa: F401
from tests.device_agent import poison
from tests.device_agent.fleet_side import Publisher, Server, config, quick_link
from tests.device_agent.world import Device, World, agrees, serves

from edgec.device_agent import Agent
from edgec.device_agent._turn import Limits
from edgec.errors import AgentError
from edgec.protocol.brokers import Broker

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    with suppress(FileNotFoundError):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            try:
                yield disk
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=True)
            return
    pytest.skip("a file system of its own needs the right to mount one")


def fill(disk: Path) -> Path:
    """Use up every byte; return the file that has them."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def test_row_16_an_agent_on_a_full_disk_serves_talks_and_goes_on_when_there_is_space(
    small_disk: Path,
    tmp_path: Path,
    mosquitto: Broker,  # noqa: F811
) -> None:
    shop = Publisher(tmp_path / "shop")
    files = [poison.artifact(tmp_path / f"{n}.edgec", poison.retrained(n), version=str(n)) for n in (1, 2)]
    paths = [shop.publish(file) for file in files]
    limits = Limits(backoff_s=1.0, backoff_limit_s=2.0)
    with Server(mosquitto) as server, small_agent(small_disk, shop, mosquitto, limits) as agent:
        server.ended(server.want(shop, {"digits": paths[0]}))
        session = agent.session("digits")
        ballast = fill(small_disk)
        server.want(shop, {"digits": paths[1]})
        # It says that it cannot, and serves what it has.
        server.wait(lambda h: h.view.reported and "storage" in {a.reason for a in h.view.reported.alerts},
                    timeout_s=90)  # fmt: skip
        assert session.run({"pixels": np.zeros((1, 8, 8, 1), np.uint8)})["logits"].shape == (1, 10)
        assert session.manifest.model_version == "1"
        assert not notes_are_kept(agent)
        ballast.unlink()
        again = server.want(shop, {"digits": paths[1]}, retry=["digits"])
        # Until it has tried its database again it may say so once more; then what is wanted is taken up.
        server.wait(
            lambda h: any(
                e.kind == "update_committed" and e.data["epoch"] == str(again) for e in h.events.values()
            ),
            timeout_s=90,
        )
        assert session.manifest.model_version == "2"
        assert notes_are_kept(agent)


def small_agent(disk: Path, shop: Publisher, broker: Broker, limits: Limits) -> Agent:
    """Return an agent whose state is on a small disk."""
    return Agent(config(disk, shop, broker), link=quick_link, limits=limits)


def notes_are_kept(agent: Agent) -> bool:
    """Return whether what is to be told finds room."""
    try:
        for _ in range(200):
            agent.note("test", "x" * 4000)
    except AgentError:
        return False
    return True


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: as a disk that is full in the middle of any write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1, 4096, 8999, 33_000, 4_200_000])
def test_row_16_files_that_cannot_grow_cost_no_model(tmp_path: Path, size: int) -> None:
    first = Device(tmp_path, World(tmp_path))
    first.want(1, "v1")
    first.close()
    with files_up_to(size), suppress(AgentError):  # an agent may refuse to start without a database
        device = Device(tmp_path, World(tmp_path))
        with suppress(OSError):  # reports of this world go to a file, which is full, too
            device.want(2, "v2", rounds=100)
        device.close()
    assert serves(tmp_path) in ("v1", "v2")
    after = Device(tmp_path, World(tmp_path))
    state = after.want(3, "v2", rounds=2000)
    assert state.phase == "idle", f"it does not end: {state}"
    assert agrees(tmp_path, state) == "v2"
    after.close()
