"""A device joins a fleet with a claim and a key of its own, may do what is its own, and is shut out."""

from __future__ import annotations

import json
import shutil
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("fastapi", reason="a fleet's server needs the extra 'fleet'")

import httpx2
from cryptography import x509
from sqlalchemy import update
from tests.fleet.servers import BROKERS, HARDWARE, claim, enrol, running_server, until

from edgec.cli import main_group
from edgec.device_agent._config import make_config, read_config
from edgec.device_agent._joining import Trusted, join
from edgec.device_agent._links import link_options as _link
from edgec.errors import AgentError, FleetError, LinkError
from edgec.fleet.client import FleetClient
from edgec.fleet.server._places import own_link
from edgec.fleet.store._schema import credentials
from edgec.fleet.store.migrations.versions import v0005_expiry
from edgec.protocol import MqttLink, Outgoing, Subscription, Topics

if TYPE_CHECKING:
    from edgec.fleet.server import FleetServer

TOPICS = Topics("default")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BROKERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    with running_server(tmp_path_factory.mktemp("fleet"), request.param) as running:
        yield running


def test_an_agent_that_joined_is_heard_and_told(server: FleetServer, tmp_path: Path) -> None:
    from edgec.device_agent import Agent

    made = enrol(server, tmp_path, "cam.1", claim=claim(server, labels={"site": "lab"}))
    assert stat.S_IMODE((tmp_path / "etc/device.key").stat().st_mode) == 0o600
    assert [d.id for d in server.fleet.store.devices.find("site=lab")] == ["cam.1"]
    agent = Agent(made.config)
    agent.start()
    try:
        until(lambda: server.fleet.store.devices.get("cam.1").online, "the device is online")
        reply = server.side.send_command("cam.1", "refresh", timeout_s=60)
        assert reply.state == "done"
    finally:
        agent.stop()
    until(lambda: not server.fleet.store.devices.get("cam.1").online, "the device is offline")


def test_an_agent_in_a_process_of_its_own_runs_what_is_rolled_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the model needs the extra 'onnxruntime'")
    from tests.fleet.shop import begin, make_template

    folder = make_template(tmp_path)
    # Only over HTTPS: whoever vouches for the server is believed for files, too.
    with running_server(folder, "nats", files=False) as server:
        made = enrol(server, tmp_path, "cam-1")
        command = [sys.executable, "-m", "edgec.cli", "agent", "run", "--config", str(made.path)]
        agent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            begin(server.fleet, "first", "1")
            server.fleet.wake()
            digest = server.fleet.registry.by_hardware("digits", "1")[HARDWARE]
            until(lambda: _active(server, "cam-1") == digest, "the agent runs the release", 120)
        finally:
            agent.terminate()
            assert agent.wait(60) == 0


def _active(server: FleetServer, device: str) -> str | None:
    reported = server.fleet.store.devices.get(device).view.reported
    model = reported.models.get("digits") if reported else None
    return model.active if model else None


def test_a_device_writes_and_reads_what_is_its_own_only(server: FleetServer, tmp_path: Path) -> None:
    one, two = (_link(enrol(server, tmp_path / name, name).config) for name in ("one", "two"))
    listening = (Subscription(filter="edgec/v1/default/d/+/up/event"),)
    with _as_fleet(server, "ears", listening) as fleet, MqttLink(one) as link:
        fleet.wait_connected(60)
        link.wait_connected(60)
        with suppress(LinkError):
            link.publish(Outgoing(topic=TOPICS.event("two"), payload=b"forged")).wait(2)
        link.publish(Outgoing(topic=TOPICS.event("one"), payload=b"own")).wait(60)
        heard = fleet.get(60)
        assert heard is not None
        assert (heard.topic, heard.payload) == (TOPICS.event("one"), b"own")
        spying = (*one.subscriptions, *two.subscriptions)
        with MqttLink(replace(one, client_id="spy", subscriptions=spying)) as spy:
            until(lambda: spy.status.connected or spy.status.error is not None, "the spy is answered")
            fleet.publish(Outgoing(topic=TOPICS.command("two", "x"), payload=b"secret")).wait(60)
            fleet.publish(Outgoing(topic=TOPICS.command("one", "x"), payload=b"own")).wait(60)
            inbound = spy.get(60) if spy.status.connected else None
            assert inbound is None or inbound.payload == b"own"


def test_a_revoked_device_is_shut_out_and_told_why(server: FleetServer, tmp_path: Path) -> None:
    first = claim(server)
    made = enrol(server, tmp_path, "lost", claim=first)
    kept = MqttLink(_link(enrol(server, tmp_path / "kept", "kept").config))
    with kept, MqttLink(replace(_link(made.config), first_retry_s=0.1, last_retry_s=0.2)) as link:
        kept.wait_connected(60)
        link.wait_connected(60)
        connections = kept.status.connections
        server.fleet.store.devices.revoke("lost", now=1.0, actor="ann", reason="stolen")
        server.fleet.wake()
        until(lambda: not link.status.connected and link.status.error, "the device is shut out")
        until(lambda: link.status.connections > 4, "it has tried again")
        assert not link.status.connected
        assert kept.status.connections == connections
    # With the claim that it came with, with any other, and with a new key, too.
    for folder, other in ((tmp_path, first), (tmp_path, claim(server)), (tmp_path / "other", claim(server))):
        with pytest.raises(AgentError, match=r"revoked: stolen.*edgec fleet claim --device lost"):
            enrol(server, folder, "lost", claim=other, replace=True)
    again = claim(server, device="lost")
    key = tmp_path / "etc/device.key"
    with pytest.raises(AgentError, match=f"remove {key}, and enrol it with --force"):
        enrol(server, tmp_path, "lost", claim=again, replace=True)
    # A person lets it in again, with another key.
    old = shutil.copytree(key.parent, tmp_path / "old")
    key.unlink()
    back = enrol(server, tmp_path, "lost", claim=again, replace=True)
    with MqttLink(_link(back.config)) as link:
        link.wait_connected(60)
    with MqttLink(_link(make_config(read_config(old / "agent.toml"), base=old))) as link:
        until(lambda: link.status.error is not None, "the old key is refused")
        assert not link.status.connected


def _as_fleet(server: FleetServer, name: str, subscriptions: tuple[Subscription, ...]) -> MqttLink:
    assert server.broker is not None
    return MqttLink(replace(own_link(server.broker)(), client_id=name, subscriptions=subscriptions))


def test_the_same_question_gets_the_same_answer(server: FleetServer, tmp_path: Path) -> None:
    once = claim(server)
    first = enrol(server, tmp_path, None, claim=once)
    certificate = (tmp_path / "etc/device.crt").read_bytes()
    assert first.config.device.startswith("device-")
    with pytest.raises(AgentError, match="is enrolled"):
        enrol(server, tmp_path, None, claim=once)
    again = enrol(server, tmp_path, None, claim=once, replace=True)
    assert again.config == first.config
    assert (tmp_path / "etc/device.crt").read_bytes() == certificate


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"claim": "edgec-claim_no"}, "no such claim"),
        ({"device": "fleet"}, "cannot be the id"),
        ({"trusted": {"fingerprint": "0" * 64}}, "somebody is in between"),
        ({"trusted": {"fingerprint": "zz"}}, "64 hexadecimal"),
        ({"trusted": {}}, "give its authority"),
        ({"trusted": {"authority": b"nothing"}}, "no certificate"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_settings(
    server: FleetServer, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    if "trusted" in options:
        options = {**options, "trusted": Trusted(**options["trusted"])}
    with pytest.raises(AgentError, match=expected):
        enrol(server, tmp_path, **{"device": "dev", **options})
    assert not (tmp_path / "etc/agent.toml").exists()


def test_the_command_says_what_it_has_written(server: FleetServer, tmp_path: Path) -> None:
    (tmp_path / "claim").write_text(claim(server) + "\n")
    arguments = ["agent", "enrol", server.url, "--claim-file", str(tmp_path / "claim"), "--device", "told"]
    arguments += ["--hardware", HARDWARE, "--hardware", "cpu-arm64", "--ca", str(server.authority.root)]
    arguments += ["--directory", str(tmp_path / "etc"), "--state-dir", str(tmp_path / "state"), "--json"]
    done = CliRunner().invoke(main_group, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == {
        "device": "told",
        "config": str(tmp_path / "etc/agent.toml"),
        "tenant": "default",
        "broker": server.broker_url.removeprefix("mqtts://"),
    }
    config = make_config(read_config(tmp_path / "etc/agent.toml"), base=tmp_path / "etc")
    assert config.hardware == (HARDWARE, "cpu-arm64")
    assert config.sources == (f"{server.url}/repo",)


def test_a_server_that_is_asked_without_tls_is_not_called_down(server: FleetServer, tmp_path: Path) -> None:
    plain = server.url.replace("https:", "http:")
    with pytest.raises(AgentError, match="begins with https://"):
        join(
            plain,
            "edgec-claim_any",
            hardware=[HARDWARE],
            directory=tmp_path / "etc",
            state_dir=tmp_path / "state",
            trusted=Trusted(),
        )
    with FleetClient(plain, "edgec_token", tries=1) as client, pytest.raises(FleetError, match="https://"):
        list(client.devices())


def test_when_a_certificate_ends_is_seen(server: FleetServer, tmp_path: Path) -> None:
    enrol(server, tmp_path, "ending")
    made = x509.load_pem_x509_certificate((tmp_path / "etc/device.crt").read_bytes())
    ends = made.not_valid_after_utc.timestamp()
    secret = server.fleet.tokens.create("eve", "viewer", now=server.fleet.clock(), actor="test")[1]
    with FleetClient(server.url, secret, ca=server.authority.root) as client:
        assert client.device("ending").certificate_expires_at == ends
        assert next(d for d in client.devices() if d.id == "ending").certificate_expires_at == ends
    trust = ssl.create_default_context(cafile=str(server.authority.root))
    with httpx2.Client(base_url=server.url, verify=trust, timeout=60) as browser:
        browser.post("/login", data={"token": secret})
        shown = browser.get("/devices/ending").text
        assert f"its certificate holds until {made.not_valid_after_utc:%Y-%m-%d}" in shown
    # Of those that were let in before this was written down, too.
    database = server.fleet.store.database
    with database.engine.begin() as connection:
        connection.execute(update(credentials).values(expires_at=None))
        v0005_expiry.fill_in(connection)
    assert server.fleet.claims.ends(["ending"]) == {"ending": ends}


def test_hardware_that_is_mistyped_uses_up_no_claim(server: FleetServer, tmp_path: Path) -> None:
    once = claim(server)
    for wrong in (["cpu-x86"], [HARDWARE, "cpu-x86"]):
        with pytest.raises(AgentError, match="did you mean 'cpu-x86_64'"):
            enrol(server, tmp_path, "mistyped", claim=once, hardware=wrong)
    with pytest.raises(FleetError, match="mistyped"):
        server.fleet.store.devices.get("mistyped")
    assert enrol(server, tmp_path, "mistyped", claim=once).config.hardware == (HARDWARE,)
    own = claim(server, hardware="acme-cam")
    made = enrol(server, tmp_path / "own", "camera", claim=own, hardware=["acme-cam"])
    assert made.config.hardware == ("acme-cam",)


def test_another_class_of_hardware_needs_another_claim(server: FleetServer, tmp_path: Path) -> None:
    def shown(key: str, hardware: str) -> str:
        (tmp_path / "claim").write_text(key + "\n")
        arguments = ["agent", "enrol", server.url, "--claim-file", str(tmp_path / "claim"), "--force"]
        arguments += ["--device", "typo", "--hardware", hardware, "--ca", str(server.authority.root)]
        arguments += ["--directory", str(tmp_path / "etc"), "--state-dir", str(tmp_path / "state")]
        done = CliRunner().invoke(main_group, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    first = claim(server)
    assert f"edgec agent run --config {tmp_path / 'etc/agent.toml'}" in shown(first, "cpu-arm64")
    assert "note" not in shown(first, "cpu-arm64")
    assert "edgec fleet claim --device typo" in shown(first, HARDWARE)
    (tmp_path / "etc/device.key").unlink()
    assert "note" not in shown(claim(server, device="typo"), HARDWARE)
    assert server.fleet.store.devices.get("typo").hardware == HARDWARE


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["enrol", "https://fleet.example", "--hardware", "cpu"], "--claim"),
        (["enrol", "https://fleet.example", "--claim", "c"], "--hardware"),
        (
            ["provision", "https://fleet.example", "--hardware", "cpu"],
            "edgec agent enrol https://fleet.example",
        ),
    ],
)
def test_wrong_usage_says_what_is_missing(arguments: list[str], expected: str) -> None:
    done = CliRunner().invoke(main_group, ["agent", *arguments])
    assert done.exit_code == 2
    assert expected in done.output


@pytest.mark.parametrize("url", ["http://fleet.example", "ftp://x", "https://u:p@x", "https://x?a", "x"])
def test_a_claim_goes_to_no_other_place(url: str, tmp_path: Path) -> None:
    with pytest.raises(AgentError):
        join(url, "c", hardware=[HARDWARE], directory=tmp_path, state_dir=tmp_path, trusted=Trusted())
    assert not list(tmp_path.iterdir())


def test_devices_with_tokens(tmp_path: Path, token_broker: str) -> None:
    with running_server(tmp_path / "fleet", token_broker, identity="token") as server:
        made = enrol(server, tmp_path, "kiosk.1", token=True)
        secret = (tmp_path / "etc/broker-password").read_text()
        with MqttLink(replace(_link(made.config), first_retry_s=0.1, last_retry_s=0.2)) as link:
            link.wait_connected(60)
            link.publish(Outgoing(topic=TOPICS.event("kiosk.1"), payload=b"{}")).wait(60)
            server.fleet.store.devices.revoke("kiosk.1", now=1.0, actor="ann")
            server.fleet.wake()
            until(lambda: link.status.error is not None and not link.status.connected, "it is shut out")
        for path in (tmp_path / "fleet").rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
        if token_broker == "nats":
            with pytest.raises(AgentError, match="takes tokens, not certificates"):
                enrol(server, tmp_path / "other", "other")


@pytest.fixture(params=BROKERS)
def token_broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)
