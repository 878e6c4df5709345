"""A whole agent, its fleet over a broker, and an application in a process of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")
pytest.importorskip("onnx", reason="artifacts are built with onnx, of the extra `compiler`")

from tests.brokers import mosquitto  # noqa: F401
from tests.device_agent import poison
from tests.device_agent.fleet_side import Publisher, Server, config, quick_link
from tests.device_agent.followed import Device, eventually, line, tell

from edgec.device_agent import Agent, AuditLog, RemoteOperations, SocketApplications, UpdateSettings
from edgec.protocol import CommandReply
from edgec.protocol.brokers import Broker

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
APPLICATION = """
import json, os, sys, threading, time
import numpy as np
from edgec.runtime import follow
X = {"pixels": np.zeros((1, 8, 8, 1), np.uint8)}
over, told = threading.Event(), {"calls": 0, "failed": 0, "versions": []}
session = follow("digits", directory=directory, socket=socket, poll_s=0.05, wait_s=60)
def call():
    while not over.wait(0.002):
        try:
            session.run(X)
        except Exception:
            told["failed"] += 1
        told["calls"] += 1
        version = session.manifest.model_version
        if told["versions"][-1:] != [version]:
            told["versions"].append(version)
            if len(sys.argv) > 1 and version == sys.argv[1]:
                os._exit(1)
thread = threading.Thread(target=call)
thread.start()
print(json.dumps("ready"), flush=True)
sys.stdin.readline()
over.set()
thread.join()
session.close()
print(json.dumps(told), flush=True)
"""


@contextmanager
def device(
    shop: Publisher, broker: Broker, **more: Any
) -> Iterator[tuple[Agent, SocketApplications, Device]]:
    """Run an agent with applications and operations, in a directory whose name is short."""
    with tempfile.TemporaryDirectory(prefix="ec") as root:
        settings = config(Path(root), shop, broker, **more)
        served = SocketApplications(settings.socket, settings.models_dir, observe_s=0.2, watch_s=0.1)
        here = Device(settings.state_dir)
        here.socket = settings.socket
        with Agent(
            settings, link=quick_link, applications=[served], operations=[RemoteOperations()]
        ) as agent:
            yield agent, served, here


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    folder = tmp_path_factory.mktemp("shop")
    publisher = Publisher(folder)
    publisher.publish(poison.artifact(folder / "1.edgec", version="1"))
    publisher.publish(poison.artifact(folder / "2.edgec", poison.retrained(1), version="2"))
    return publisher


PATHS = {version: f"digits/digits-{version}-cpu-x86_64.edgec" for version in "12"}


def test_an_application_takes_part_in_an_update(
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    updates = UpdateSettings(shadow_s=30.0, probation_s=1.0, refresh_s=0, health_timeout_s=60)
    with (
        Server(mosquitto) as server,
        device(shop, mosquitto, updates=updates) as (agent, served, here),
        here.application(APPLICATION) as process,
    ):
        assert server.ended(server.want(shop, {"digits": PATHS["1"]})).kind == "update_committed"
        assert line(process) == "ready"
        eventually(lambda: served.connected("digits"))
        event = server.ended(server.want(shop, {"digits": PATHS["2"]}))
        assert event.kind == "update_committed", event
        heard = server.wait(lambda h: any(e.kind == "shadow" for e in h.events.values()))
        (seen,) = [e for e in heard.events.values() if e.kind == "shadow"]
        assert seen.data["digest"] == event.data["digest"]
        assert int(seen.data["compared"]) > 0
        assert (seen.data["disagreed"], seen.data["failed"], seen.reason) == ("0", "0", None)
        path = agent.serving("digits")
        assert path is not None
        assert served.held("digits") == {json.loads((path.parent / "slot.json").read_text())["digest"]}
        tell(process, "end")
        told = line(process)
        assert (told["failed"], told["versions"]) == (0, ["1", "2"])
        assert told["calls"] > 100


def test_row_23_an_application_that_dies_of_a_model_again_and_again_gets_the_old_one(
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    """The process dies at the first calls of the new model, and a supervisor starts it again."""
    updates = UpdateSettings(probation_s=60, probation_calls=5, refresh_s=0, health_timeout_s=60)
    script = "import sys\nsys.argv.append('2')\n" + APPLICATION
    with Server(mosquitto) as server, device(shop, mosquitto, updates=updates) as (agent, _, here):
        first = server.want(shop, {"digits": PATHS["1"]})
        with here.application(APPLICATION) as process:
            assert line(process) == "ready"
            assert server.ended(first).kind == "update_committed"
            tell(process, "end")
            line(process)
        server.want(shop, {"digits": PATHS["2"]})

        def over() -> bool:
            return bool(agent.status().models[0].quarantined)

        while not over():  # as a supervisor starts it again
            with here.application(script) as process:
                eventually(lambda: process.poll() is not None or over())
        heard = server.wait(lambda h: any(e.kind == "update_rolled_back" for e in h.events.values()))
        (event,) = [e for e in heard.events.values() if e.kind == "update_rolled_back"]
        assert event.reason == "crash_loop"
        assert "without a goodbye" in event.detail
        # The fleet counts deaths by the artifact that died, and the loop once.
        heard = server.wait(lambda h: any(e.kind == "crash_loop" for e in h.events.values()))
        bad = shop.open()[0].targets()[PATHS["2"]].sha256
        crashes = [e for e in heard.events.values() if e.kind == "crash"]
        assert len(crashes) >= 3
        assert {(e.model, e.reason, e.data["digest"]) for e in crashes} == {("digits", "crashed", bad)}
        (loop,) = [e for e in heard.events.values() if e.kind == "crash_loop"]
        assert (loop.model, loop.data["digest"], loop.severity) == ("digits", bad, "error")


def test_orders_are_carried_out_and_the_audit_tells_of_all(
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    with Server(mosquitto) as server, device(shop, mosquitto) as (agent, _, here):
        assert server.ended(server.want(shop, {"digits": PATHS["1"]})).kind == "update_committed"

        def reply(name: str, **args: Any) -> CommandReply:
            command = shop.command(name, args)
            server.order(command)
            mine: Callable[[Any], list[CommandReply]] = lambda h: [  # noqa: E731
                r for r in h.replies if r.id == command.id and r.final
            ]
            return mine(server.wait(mine))[0]

        assert json.loads(reply("verify", model="digits").result)["passed"] is True
        assert json.loads(reply("benchmark", model="digits", seconds=0.1).result)["calls"] >= 20
        assert json.loads(reply("status").result)["running"] is True
        assert reply("restart", model="digits").state == "done"
        assert reply("logs").state == "done"
        allowed = reply("telemetry", policy={"inputs": True, "metrics": False})
        assert json.loads(allowed.result)["policy"] == {
            **json.loads(allowed.result)["policy"], "inputs": False, "metrics": False
        }  # fmt: skip
        assert agent.telemetry.policy.metrics is False
        refused = reply("verify", model="none")
        assert (refused.state, refused.reason) == ("refused", "unknown_model")
        states = [reply("restart", model="digits").reason for _ in range(3)]
        assert states[-1] == "rate"
        log = AuditLog(here.root / "audit.jsonl")
        assert log.check().problem == ""
        assert [entry["command"] for entry in log.last()][:4] == ["verify", "benchmark", "status", "restart"]
        told = server.wait(lambda h: any(e.data.get("audit") == log.check().head for e in h.events.values()))
        assert told
