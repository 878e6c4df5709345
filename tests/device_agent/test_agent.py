"""The whole agent against real brokers: what a fleet wants comes about, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")
pytest.importorskip("onnx", reason="artifacts are built with onnx, of the extra `compiler`")

from examples.ota_walkthrough.models import images
from tests.brokers import broker, mosquitto  # noqa: F401
from tests.device_agent import poison
from tests.device_agent.fleet_side import DEVICE, Publisher, Server, config, quick_link

from edgec.artifact import Artifact
from edgec.device_agent import Agent, AgentConfig, Finding, HealthReport, UpdateSettings, read_status
from edgec.protocol import ModelWindow, desired_of
from edgec.protocol.brokers import Broker
from edgec.runtime import ObserveOptions
from edgec.trust import Terms

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
BLACK = {"pixels": np.zeros((1, 8, 8, 1), np.uint8)}
PATHS = {version: f"digits/digits-{version}-cpu-x86_64.edgec" for version in "12345"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """Versions 1 and 2, sound; 3, whose file is not what was signed; 4, poison; 5, for a later engine."""
    folder = tmp_path_factory.mktemp("shop")
    publisher = Publisher(folder)
    publisher.publish(poison.artifact(folder / "1.edgec", version="1"))
    publisher.publish(poison.artifact(folder / "2.edgec", poison.retrained(1), version="2"))
    publisher.publish(poison.artifact(folder / "3.edgec", poison.retrained(2), version="3"))
    file = publisher.file(PATHS["3"])
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    publisher.publish(poison.artifact(folder / "4.edgec", poison.nan_sometimes, version="4"))
    publisher.publish(poison.artifact(folder / "5.edgec", version="5", engine_version=">=99"))
    return publisher


@contextmanager
def running(settings: AgentConfig, **more: Any) -> Iterator[Agent]:
    with Agent(settings, **{"link": quick_link, **more}) as agent:
        yield agent


def until(holds: Callable[[], Any], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_models_come_by_the_broker_alone_follow_and_go_back_by_a_new_epoch(
    tmp_path: Path,
    shop: Publisher,
    broker: Broker,  # noqa: F811
) -> None:
    """No web server: signed metadata and files in pieces over MQTT; the second version as a patch."""
    settings = config(tmp_path, shop, broker, sources=())
    with Server(broker, shop.repo) as server, running(settings) as agent:
        assert server.chunks is not None
        first = server.want(shop, {"digits": PATHS["1"]})
        assert server.ended(first).kind == "update_committed"
        session = agent.session("digits")
        before, whole = session.run(BLACK)["logits"], server.chunks.sent_bytes
        second = server.want(shop, {"digits": PATHS["2"]})
        assert server.ended(second).kind == "update_committed"
        assert session.manifest.model_version == "2"
        assert not np.array_equal(session.run(BLACK)["logits"], before)
        assert server.chunks.sent_bytes - whole < whole / 4
        # An incident: older content is a newer epoch, and comes from the other slot.
        sent = server.chunks.sent_bytes
        third = server.want(shop, {"digits": PATHS["1"]})
        assert third > second
        assert server.ended(third).kind == "update_committed"
        np.testing.assert_array_equal(session.run(BLACK)["logits"], before)
        assert server.chunks.sent_bytes == sent
        heard = server.wait(lambda h: h.view.reported and h.view.reported.models["digits"].state == "idle")
        assert heard.view.reported is not None
        assert heard.view.reported.epoch == third
        assert heard.view.online
        removed = server.want(shop, {})
        assert server.ended(removed).kind == "update_removed"
        assert agent.serving("digits") is None
    server_view = heard.view
    assert server_view.clones == ()


def test_row_12_an_artifact_for_another_version_of_the_engine_is_refused_before_its_download(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    settings = config(tmp_path, shop, mosquitto, sources=())
    with Server(mosquitto, shop.repo) as server, running(settings) as agent:
        assert server.chunks is not None
        server.ended(server.want(shop, {"digits": PATHS["1"]}))
        path, sent = agent.serving("digits"), server.chunks.sent_bytes
        event = server.ended(server.want(shop, {"digits": PATHS["5"]}))
        assert (event.kind, event.reason) == ("update_failed", "engine")
        assert "it needs onnxruntime >=99, and here is" in event.detail
        assert (agent.serving("digits"), server.chunks.sent_bytes) == (path, sent)


def test_what_is_tampered_with_is_refused_and_the_old_one_serves(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    with Server(mosquitto) as server, running(config(tmp_path, shop, mosquitto)) as agent:
        first = server.want(shop, {"digits": PATHS["1"]})
        server.ended(first)
        path = agent.serving("digits")
        # The metadata: a thief changes what is assigned.
        _, director = shop.open()
        bundle = director.assign(DEVICE, {"digits": PATHS["2"]})
        forged = desired_of(bundle)
        assert forged.metadata is not None
        texts = {
            name: text.replace('"version":', '"version" :') for name, text in forged.metadata.director.items()
        }
        texts = {name: text.replace("digits-1", "digits-9") for name, text in texts.items()}
        forged = replace(forged, metadata=replace(forged.metadata, director=texts), epoch=forged.epoch)
        server.tell(b"{}")
        server.tell(b"\xff" * 1000)
        server.tell(replace(forged, epoch=2**50).to_bytes())
        # The file: what is signed is not what lies there.
        third = server.want(shop, {"digits": PATHS["3"]})
        event = server.ended(third)
        assert (event.kind, event.reason) == ("update_failed", "digest")
        assert agent.serving("digits") == path
        (model,) = agent.status().models
        assert "digest" in model.why
        # Nothing was believed of an epoch that nobody has signed.
        assert agent.status().epoch == third
        last = server.want(shop, {"digits": PATHS["2"]})
        assert server.ended(last).kind == "update_committed"


def test_row_24_a_poison_that_live_calls_show_is_rolled_back_and_quarantined(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    updates = UpdateSettings(probation_s=60, probation_calls=300, refresh_s=0)
    settings = config(tmp_path, shop, mosquitto, updates=updates)
    every = ObserveOptions(max_share=float("inf"))
    with Server(mosquitto) as server, running(settings, observe=every) as agent:
        first = server.want(shop, {"digits": PATHS["1"]})
        server.wait(lambda h: h.view.reported and h.view.reported.models.get("digits")
                    and h.view.reported.models["digits"].state == "probation")  # fmt: skip
        session = agent.session("digits")
        feeds = [{"pixels": image} for image in images("evaluation")]
        end = time.monotonic() + 120
        while not server_has(server, first) and time.monotonic() < end:
            for feed in feeds:
                session.run(feed)
        assert server.ended(first).kind == "update_committed"
        fourth = server.want(shop, {"digits": PATHS["4"]})
        until(lambda: agent.status().models[0].phase == "probation")
        while not server_has(server, fourth) and time.monotonic() < end:
            for feed in feeds:
                session.run(feed)
        event = server.ended(fourth)
        assert (event.kind, event.reason) == ("update_rolled_back", "non_finite")
        assert session.manifest.model_version == "1"
        (model,) = agent.status().models
        assert list(model.quarantined.values()) == ["non_finite"]
        server.want(shop, {"digits": PATHS["1"]})
        again = server.want(shop, {"digits": PATHS["4"]})
        assert (server.ended(again).kind, server.ended(again).reason) == ("update_refused", "quarantined")


def server_has(server: Server, epoch: int) -> bool:
    events = list(server.heard().events.values())
    return any(e.data.get("epoch") == str(epoch) and e.kind.startswith("update_") for e in events)


def test_row_18_and_29_a_broker_that_is_away_costs_nothing_but_time(
    tmp_path: Path,
    shop: Publisher,
    broker: Broker,  # noqa: F811
) -> None:
    with Server(broker) as server, running(config(tmp_path, shop, broker)) as agent:
        server.ended(server.want(shop, {"digits": PATHS["1"]}))
        broker.kill()
        until(lambda: agent.status().link == "not_connected")
        session = agent.session("digits")
        for _ in range(5):
            session.run(BLACK)
        for i in range(40):
            agent.note("test", f"line {i}" if i % 2 else b"\xff\x00 not text")
        agent.telemetry.flush()
        assert agent.status().waiting >= 41
        broker.start()
        heard = server.wait(lambda h: h.kinds.count("note") >= 40 and "window" in h.kinds)
        until(lambda: agent.status().waiting == 0)
        assert agent.status().lost == 0
        # Windows name the file that was assigned, as all else that the fleet hears does.
        windows = [
            record for record in heard.records.values() if b"digits" in record and b"line" not in record
        ]
        file = shop.open()[0].targets()[PATHS["1"]].sha256
        assert {ModelWindow.from_bytes(window).digest.hex() for window in windows} == {file[:16]}
        # Counted once each, however often they came.
        assert sorted(seq for boot, seq in heard.records if boot.endswith("-e")) == sorted(
            {seq for boot, seq in heard.records if boot.endswith("-e")}
        )
        # A server that is there, but keeps nothing yet.
        server.acknowledges = False
        agent.note("test", "kept until it is acknowledged")
        server.wait(lambda h: h.kinds.count("note") >= 41)
        assert agent.status().waiting == 1
        server.acknowledges = True
        broker.kill()
        broker.start()
        until(lambda: agent.status().waiting == 0)


def test_commands_are_obeyed_once_and_only_when_signed_for_this_device_and_time(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    with Server(mosquitto) as server, running(config(tmp_path, shop, mosquitto)) as agent:
        server.wait(lambda h: h.view.reported)

        def answer(command: Any) -> tuple[str, str | None]:
            server.order(command)
            heard = server.wait(lambda h: any(r.id == command.id and r.final for r in h.replies))
            (reply,) = {(r.state, r.reason) for r in heard.replies if r.id == command.id and r.final}
            return reply

        good = shop.command("refresh")
        assert answer(good) == ("done", None)
        count = len(server.heard().replies)
        server.order(good)
        server.wait(lambda h: len(h.replies) > count)
        assert [r.state for r in server.heard().replies[count:]] == ["done"]
        # The same envelope under another name is no new command.
        assert answer(replace(good, id="again")) == ("refused", "replay")
        assert answer(shop.command("refresh", issued_at=time.time() - 900)) == ("expired", "expired")
        assert answer(shop.command("refresh", device="dev2")) == ("refused", "device")
        unsigned = shop.command("refresh", command_id="unsigned")
        assert answer(replace(unsigned, envelope='{"payload": "e30="}')) == ("refused", "malformed")
        forged = unsigned.envelope.replace('"sig":"', '"sig":"0')
        assert answer(replace(unsigned, id="forged", envelope=forged))[0] == "refused"
        assert answer(shop.command("format_disk")) == ("refused", "unknown_command")
        assert answer(shop.command("abort", {"model": "none"})) == ("refused", "args")
        kinds = [(e.reason, e.severity) for e in server.heard().events.values() if e.kind == "command"]
        assert ("replay", "security") in kinds
        assert any("refresh" in entry.detail for entry in agent.history())


def test_row_28_an_order_to_stop_is_answered_by_the_whole_agent(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    updates = UpdateSettings(refresh_s=0, probation_s=60)
    with Server(mosquitto) as server, running(config(tmp_path, shop, mosquitto, updates=updates)) as agent:
        first = server.want(shop, {"digits": PATHS["1"]})
        until(lambda: agent.status().models and agent.status().models[0].phase == "probation")
        order = shop.command("abort", {"model": "digits", "epoch": first})
        server.order(order)
        heard = server.wait(lambda h: any(r.id == order.id and r.final for r in h.replies))
        (reply,) = [r for r in heard.replies if r.id == order.id and r.final]
        assert '"answer":"accepted"' in reply.result
        assert server.ended(first).kind == "update_aborted"
        assert agent.serving("digits") is None


def test_row_19_20_and_21_old_doubled_and_regressed_wishes_change_nothing(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    with Server(mosquitto) as server, running(config(tmp_path, shop, mosquitto)) as agent:
        _, director = shop.open()
        old = desired_of(director.assign(DEVICE, {"digits": PATHS["1"]}))
        new = server.want(shop, {"digits": PATHS["2"]})
        server.ended(new)
        for payload in (old.to_bytes(), old.to_bytes()):
            server.tell(payload)
        # The broker keeps the old one now, as after a server was restored from a backup.
        agent._link.reconnect()  # type: ignore[attr-defined]
        heard = server.wait(lambda h: h.view.reported and h.view.reported.alerts)
        assert heard.view.reported is not None
        assert [alert.reason for alert in heard.view.reported.alerts] == ["regressed"]
        assert heard.view.ahead_of(old.epoch)
        (model,) = agent.status().models
        assert model.target == PATHS["2"]


def test_row_22_two_agents_with_one_identity_are_seen(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    one, two = config(tmp_path / "one", shop, mosquitto), config(tmp_path / "two", shop, mosquitto)
    with Server(mosquitto) as server, running(one):
        server.wait(lambda h: h.view.online)
        with running(two):
            heard = server.wait(lambda h: h.view.fenced)
            assert len(heard.view.clones) == 2


def test_without_broker_time_or_server_what_is_installed_serves(tmp_path: Path, shop: Publisher) -> None:
    """A stick brings the model; then there is nothing but the device."""
    _, director = shop.open()
    director.assign(DEVICE, {"digits": PATHS["1"]})
    updates = UpdateSettings(refresh_s=3600, probation_s=0.2)
    settings = config(tmp_path, shop, None, updates=updates)
    with running(settings) as agent:
        until(lambda: [(m.phase, m.result) for m in agent.status().models] == [("idle", "committed")])
        assert agent.status().link == "no_broker"
    from edgec.device_agent import Clock

    for wall in (0.0, 4102444800.0):  # 1970 and 2100
        dead = replace(settings, sources=("/nowhere",))
        with running(dead, clock=Clock(wall=lambda wall=wall: wall)) as agent:  # type: ignore[misc]
            assert agent.session("digits").run(BLACK)["logits"].shape == (1, 10)
            assert agent.status().models[0].target == PATHS["1"]
    found = read_status(settings.state_dir)
    assert not found.running
    assert found.device == DEVICE
    assert found.models[0].why == "it is what is wanted"


# -- as a process of its own


class Process:
    """``edgec agent run``."""

    def __init__(self, folder: Path, shop: Publisher, broker: Broker) -> None:  # noqa: F811
        self.etc, self.state = folder / "etc", folder / "state"
        files = broker.authority.client(DEVICE)
        provision = [
            "provision", DEVICE, "--hardware", "cpu-x86_64", "--roots", shop.repo, "--source", shop.repo,
            "--broker", f"mqtts://127.0.0.1:{broker.port}", "--ca", files.authority,
            "--cert", files.certificate, "--key", files.key,
            "--directory", self.etc, "--state-dir", self.state,
        ]  # fmt: skip
        done = edgec(*map(str, provision))
        assert done.returncode == 0, done.stderr
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: Any) -> None:
        options = [f"--set=updates.{name}={value}" for name, value in settings.items()]
        command = [
            sys.executable,
            "-m",
            "edgec.cli",
            "agent",
            "run",
            "-c",
            str(self.etc / "agent.toml"),
            *options,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def lines(self, phase: str) -> int:
        """Return how many lines of the history of updates are of a phase."""
        database = sqlite3.connect(f"file:{self.state / 'updates.db'}?mode=ro", uri=True, timeout=10)
        try:
            query = "SELECT count(*) FROM history WHERE phase = ?"
            return int(database.execute(query, (phase,)).fetchone()[0])
        finally:
            database.close()

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(90)


def edgec(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgec.cli", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


@pytest.fixture
def process(tmp_path: Path, shop: Publisher, mosquitto: Broker) -> Iterator[Process]:  # noqa: F811
    made = Process(tmp_path, shop, mosquitto)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_row_01_an_agent_killed_in_the_middle_of_an_update_goes_on_and_tells(
    process: Process,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    with Server(mosquitto) as server:
        process.start(probation_s=0.5)
        server.ended(server.want(shop, {"digits": PATHS["1"]}))
        before = process.lines("self_test")
        second = server.want(shop, {"digits": PATHS["2"]})
        # Phases that pass within a second are not told one by one: its books are read.
        end = time.monotonic() + 60
        while process.lines("self_test") == before:
            assert time.monotonic() < end, "the update has not come to its self-test"
            time.sleep(0.005)
        process.end()
        # Nobody runs, and what is there is told all the same.
        down = edgec("status", "--state-dir", str(process.state))
        assert "does not run" in down.stdout
        assert PATHS["1"] in down.stdout
        process.start(probation_s=0.5)
        assert server.ended(second).kind == "update_committed"
        view = server.heard().view
        assert view.presence is not None
        assert view.presence.boot_epoch == 2
        assert not view.fenced
        up = edgec("status", "-c", str(process.etc / "agent.toml"))
        assert up.returncode == 0, up.stdout
        assert PATHS["2"] in up.stdout
        assert process.end(signal.SIGTERM) == 0
        server.wait(lambda h: not h.view.online)


def test_row_23_an_agent_that_dies_in_probation_again_and_again_falls_back(
    process: Process,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    with Server(mosquitto) as server:
        process.start(probation_s=0.2)
        server.ended(server.want(shop, {"digits": PATHS["1"]}))
        process.end(signal.SIGTERM)
        second = server.want(shop, {"digits": PATHS["2"]})
        for boot in (2, 3, 4):
            process.start(probation_s=300)
            server.wait(lambda h, boot=boot: h.view.reported and h.view.reported.boot_epoch == boot
                        and h.view.reported.models["digits"].state == "probation")  # type: ignore[misc]  # fmt: skip
            process.end()
        process.start(probation_s=300)
        event = server.ended(second)
        assert (event.kind, event.reason) == ("update_rolled_back", "crash_loop")
        assert os.readlink(process.state / "models/digits/current.edgec").endswith("model.edgec")
        found = read_status(process.state)
        assert found.models[0].target == PATHS["1"]
        assert list(found.models[0].quarantined.values()) == ["crash_loop"]


def test_what_is_fetched_ahead_waits_and_what_was_found_bad_is_tried_again_by_order_alone(
    tmp_path: Path,
    shop: Publisher,
    mosquitto: Broker,  # noqa: F811
) -> None:
    """The trial of version 2 fails once, as on a day on which a device was too warm."""
    tried: list[str] = []

    def trial(artifact: Path, /, **more: Any) -> HealthReport:
        with Artifact.open(artifact) as opened:
            tried.append(opened.manifest.model_version)
        found = Finding(word="latency", message="it was a hot day")
        bad = tried.count("2") == 1 and tried[-1] == "2"
        return HealthReport(passed=not bad, findings=(found,) if bad else ())

    settings = config(tmp_path, shop, mosquitto)
    with Server(mosquitto) as server, running(settings, trial=trial) as agent:
        server.ended(server.want(shop, {"digits": PATHS["1"]}))
        serving = agent.serving("digits")
        ahead = server.want(shop, {"digits": PATHS["2"]}, terms={"digits": Terms(prepare=True)})
        assert server.ended(ahead).kind == "update_prepared"
        assert (tried, agent.serving("digits")) == (["1"], serving)
        (model,) = agent.status().models
        assert (model.phase, model.reason) == ("deferred", "prepared")
        # It is here: its file may be away now.
        file = shop.file(PATHS["2"])
        aside = file.rename(file.with_suffix(".aside"))
        try:
            bad = server.want(shop, {"digits": PATHS["2"]}, terms={"digits": Terms()})
            assert (server.ended(bad).kind, server.ended(bad).reason) == ("update_failed", "latency")
        finally:
            aside.rename(file)
        server.want(shop, {"digits": PATHS["1"]})
        again = server.want(shop, {"digits": PATHS["2"]})
        assert (server.ended(again).kind, server.ended(again).reason) == ("update_refused", "quarantined")
        terms = {"digits": Terms(probation_s=1, shadow_s=0)}
        ordered = server.want(shop, {"digits": PATHS["2"]}, terms=terms, retry=["digits"])
        assert server.ended(ordered).kind == "update_committed"
        assert tried == ["1", "2", "2"]
        assert agent.status().models[0].quarantined == {}
