"""A fleet's server as a process: started, stopped, killed; what it has accepted is kept, and it goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("fastapi", reason="a fleet's server needs the extra 'fleet'")

from click.testing import CliRunner
from tests.fleet.servers import BROKERS, claim, enrol, running_server, skip_without, until
from tests.fleet.zygote import Zygote

from edgec.cli import main_group
from edgec.device_agent._joining import Trusted, join
from edgec.device_agent._links import link_options
from edgec.errors import FleetError, OutputError
from edgec.fleet.server import FleetOptions, FleetServer
from edgec.fleet.server._broker import end_orphans, make_broker
from edgec.fleet.server._leader import Leader
from edgec.fleet.server._listener import Listener
from edgec.fleet.server._options import Ports
from edgec.fleet.server._upkeep import remove_leftovers, renew
from edgec.fleet.service import Fleet
from edgec.fleet.store import Store
from edgec.protocol import DeviceEvent, LinkOptions, MqttLink, Outgoing, TelemetryAck, Topics
from edgec.protocol.brokers import Mosquitto
from edgec.protocol.certificates import CertificateAuthority

TOPICS = Topics("default")


class Server:
    """``edgec fleet up`` in a process of its own."""

    def __init__(self, folder: Path, broker: str, database: str | None) -> None:
        self._command = ["fleet", "up", "--json", "--data-dir", str(folder), "--broker", broker]
        self._command += ["--port", "0", "--broker-port", "0", "--token-port", "0"]
        if database is not None:
            self._command += ["--database", database if "://" in database else f"sqlite:///{database}"]
        self.facts: dict[str, Any] = {}
        self._zygote = Zygote()
        self._pid = 0

    def start(self) -> None:
        self._pid, self.facts = self._zygote.start(start=self._command)

    def end(self, number: int) -> int:
        """Send a signal, and return how the process ended."""
        return self._zygote.end(self._pid, number)

    def close(self) -> None:
        self._zygote.close()

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Ask the API."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.facts["url"] + path, data, headers, method=method)
        context = ssl.create_default_context(cafile=self.facts["ca"])
        with urllib.request.urlopen(request, timeout=60, context=context) as reply:
            return json.loads(reply.read() or b"null")


@contextmanager
def serving(folder: Path, broker: str, database: str | None) -> Iterator[Server]:
    skip_without(broker)
    server = Server(folder, broker, database)
    try:
        server.start()
        yield server
    finally:
        server.close()
        end_orphans(folder / "broker")


class Device:
    """Sends events, each until it is acknowledged, and knows which were."""

    def __init__(self, options: LinkOptions, device: str) -> None:
        self._link = MqttLink(replace(options, first_retry_s=0.1, last_retry_s=0.5))
        self._device = device
        self.sent = 0
        self.acknowledged: set[int] = set()

    def __enter__(self) -> Device:
        self._link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def send(self, more: int) -> bool:
        """Send some more, and again what was not acknowledged; return whether all is acknowledged now."""
        self.sent += more
        for seq in sorted(set(range(1, self.sent + 1)) - self.acknowledged):
            event = DeviceEvent(
                boot_epoch=1, boot_id="b1", seq=seq, at=1.8e9, kind="test", data={"n": str(seq)}
            )
            with suppress(Exception):
                self._link.publish(Outgoing(topic=TOPICS.event(self._device), payload=event.to_bytes()))
        end = time.monotonic() + 0.3
        while (left := end - time.monotonic()) > 0:
            inbound = self._link.get(left)
            if inbound is not None:
                inbound.ack()
                if inbound.topic == TOPICS.ack(self._device):
                    self._take(TelemetryAck.from_bytes(inbound.payload))
        return len(self.acknowledged) == self.sent

    def _take(self, ack: TelemetryAck) -> None:
        if ack.seq is not None:
            self.acknowledged |= set(range(1, ack.seq + 1))
        for part in ack.ranges:
            self.acknowledged |= set(range(part.first, part.last + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "kills", "url"), [("mosquitto", 2, "sqlite"), ("nats", 1, "postgresql")], indirect=["url"]
)
def test_killed_at_any_moment_it_loses_no_accepted_message_and_no_decision(
    broker: str, kills: int, url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "fleet"
    with serving(folder, broker, url) as server:
        token = server.facts["admin_token"]
        made = server.ask("POST", "/api/v1/claims", {}, token)
        trusted = Trusted(fingerprint=server.facts["fingerprint"])
        joined = join(
            server.facts["url"], made["claim"], hardware=["cpu-x86_64"], directory=tmp_path / "etc",
            state_dir=tmp_path / "state", trusted=trusted, device="cam-1",
        )  # fmt: skip
        with Device(link_options(joined.config), "cam-1") as device:
            for number in range(kills):
                until(lambda: device.send(20) or device.acknowledged, "something is acknowledged")
                server.ask("PUT", "/api/v1/devices/cam-1/labels", {"labels": {"turn": str(number)}}, token)
                device.send(50)
                assert server.end(signal.SIGKILL) == -signal.SIGKILL
                accepted = set(device.acknowledged)
                store = Store(url)
                kept = {record.seq for record in store.telemetry.records("cam-1", limit=100_000)}
                assert accepted <= kept
                assert store.devices.get("cam-1").labels == {"turn": str(number)}
                store.audit.verify()
                store.close()
                port = server.facts["url"]
                server.start()
                assert server.facts["url"] == port
                # It was used: there is no other one.
                assert server.facts["admin_token"] is None
                device.acknowledged.clear()
            until(
                lambda: device.send(0) or len(device.acknowledged) == device.sent,
                "all is acknowledged at last",
            )
        total = device.sent
        assert server.end(signal.SIGTERM) == 0
        store = Store(url)
        seqs = [record.seq for record in store.telemetry.records("cam-1", limit=100_000)]
        store.close()
        assert sorted(seqs) == list(range(1, total + 1))
        assert end_orphans(folder / "broker") == []


@pytest.mark.slow
def test_a_broker_that_dies_is_started_again_where_it_was(tmp_path: Path) -> None:
    with running_server(tmp_path / "fleet", "nats") as server:
        options = link_options(enrol(server, tmp_path, "cam-1").config)
        with MqttLink(replace(options, first_retry_s=0.1, last_retry_s=0.2)) as link:
            link.wait_connected(60)
            assert server.broker is not None
            pid = server.broker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until(lambda: not link.status.connected, "the connection is gone")
            link.wait_connected(60)
            assert server.broker.pid != pid
        until(lambda: not server.problems(), "the server is well again")


@pytest.mark.slow
@pytest.mark.parametrize("broker", BROKERS)
def test_certificates_that_end_soon_are_renewed_while_it_runs(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(tmp_path / "fleet", broker) as server:
        made = enrol(server, tmp_path, "cam-1")
        before = _shown(server.url), _shown(server.broker_url)
        assert not server.renew_certificates()
        later = datetime.now(timezone.utc) + timedelta(days=340)
        monkeypatch.setattr(server.authority, "_fixed_now", later)
        with MqttLink(link_options(made.config)) as link:
            link.wait_connected(60)
            connections = link.status.connections
            assert server.renew_certificates()
            assert _shown(server.url) != before[0]
            until(lambda: _shown(server.broker_url) != before[1], "the broker shows another one")
            assert link.status.connections == connections


def _shown(url: str) -> str:
    host, _, port = url.partition("://")[2].rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


@pytest.mark.slow
def test_one_directory_has_one_server(tmp_path: Path) -> None:
    with running_server(tmp_path, "nats") as server:
        with pytest.raises(FleetError, match="another server") as caught:
            FleetServer(replace(server.options)).start()
        assert caught.value.reason == "conflict"
        assert server.alive
        port = int(server.url.rpartition(":")[2])
        other = FleetServer(FleetOptions(data_dir=tmp_path / "other", port=port, broker="nats"))
        with pytest.raises(FleetError, match="cannot listen"):
            other.start()


@pytest.mark.slow
def test_a_port_that_was_chosen_and_is_taken_is_chosen_anew(tmp_path: Path) -> None:
    with running_server(tmp_path, "nats") as server:
        before = server.url, server.broker_url
        assert not server.advice
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(_port(before[0]))))
        taken.listen()
        with running_server(tmp_path, "nats") as server:
            assert server.url != before[0]
            assert server.broker_url == before[1]
            assert all(url in server.advice[0] for url in (_port(before[0]), _port(server.url)))
            # Who joins now and who is told something now hears of the new one.
            made = enrol(server, tmp_path, "cam-1")
            assert made.config.sources == (f"{server.url}/repo",)
            assert server.side.settings.sources == (f"{server.url}/repo",)
            moved = server.url
    with running_server(tmp_path, "nats") as server:
        assert (server.url, server.advice) == (moved, [])


@pytest.mark.slow
@pytest.mark.parametrize("broker", BROKERS)
def test_a_port_of_the_broker_that_was_chosen_and_is_taken_is_chosen_anew(
    tmp_path: Path, broker: str
) -> None:
    with running_server(tmp_path, broker) as server:
        assert server.broker is not None
        before = server.broker.port, server.broker.password_port
    with ExitStack() as stack:
        for port in filter(None, before):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        with running_server(tmp_path, broker) as server:
            assert server.broker is not None
            after = server.broker.port, server.broker.password_port
            assert not set(filter(None, before)) & set(after)
            assert all(
                str(old) in told for old, told in zip(filter(None, before), server.advice, strict=True)
            )
            assert f"--broker-port {before[0]}" in server.advice[0]
    with running_server(tmp_path, broker) as server:
        assert server.broker is not None
        assert ((server.broker.port, server.broker.password_port), server.advice) == (after, [])


@pytest.mark.parametrize("option", ["broker_port", "token_port"])
def test_a_port_of_the_broker_that_is_asked_for_and_taken_is_named(tmp_path: Path, option: str) -> None:
    skip_without("mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked = {"broker_port": 0, "token_port": 0, option: port}
        options = FleetOptions(data_dir=tmp_path, broker="mosquitto", **asked)
        flag = f"--{option.replace('_', '-')}"
        with pytest.raises(
            FleetError, match=rf"^cannot listen at .* port {port}: .*another {flag}$"
        ) as caught:
            make_broker(options, CertificateAuthority(tmp_path / "tls"), Ports())
    assert caught.value.reason == "address"


def _port(url: str) -> str:
    return url.rpartition(":")[2]


@pytest.mark.slow
def test_a_broker_of_somebody_else(tmp_path: Path) -> None:
    skip_without("mosquitto")
    # Its operator trusts the authority of the fleet, and gives devices their rights.
    authority = CertificateAuthority(tmp_path / "fleet/tls")
    with Mosquitto(tmp_path / "theirs", authority=authority) as theirs:
        url = f"mqtts://{theirs.host}:{theirs.port}"
        with running_server(tmp_path / "fleet", url, broker_port=8883) as server:
            assert server.broker is None
            server.side.wait_connected(60)
            made = enrol(server, tmp_path, "cam-1")
            assert made.config.broker is not None
            assert made.config.broker.port == theirs.port
            with Device(link_options(made.config), "cam-1") as device:
                until(lambda: device.send(1) or device.acknowledged, "an event is acknowledged")


@pytest.mark.slow
def test_on_postgresql(tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fleet.databases import make_database

    url = make_database(postgresql)
    with running_server(tmp_path / "fleet", "nats", database=url) as server:
        made = enrol(server, tmp_path, "cam-1", claim=claim(server, labels={"site": "lab"}))
        with Device(link_options(made.config), "cam-1") as device:
            until(lambda: device.send(5), "all is acknowledged")
        assert not (tmp_path / "fleet/fleet.db").exists()
        assert [d.labels for d in server.fleet.store.devices.find()] == [{"site": "lab"}]
        # A copy of the directory has the same keys; there is one server for the database all the same.
        monkeypatch.setattr("edgec.fleet.server._leader._PATIENCE_S", 0.2)
        other = FleetServer(replace(server.options, data_dir=tmp_path / "other"))
        with pytest.raises(FleetError, match=r"another server .*process.* uses the database") as caught:
            other.start()
        assert caught.value.reason == "conflict"
        assert [path.name for path in (tmp_path / "other").iterdir()] == [".lock"]
        assert server.alive
    # Nor does one begin anew on a database that is in use, with other keys.
    with pytest.raises(FleetError, match="restore the whole directory"):
        other.start()


@pytest.mark.slow
def test_a_leader_that_loses_its_connection_leads_on_unless_another_was_quicker(postgresql: str) -> None:
    import psycopg
    from tests.fleet.databases import make_database

    url = make_database(postgresql)

    def cut() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'edgec fleet on %' AND datname = current_database()"
            )

    with closing(Leader(url, every_s=0.05)) as leader:
        first = leader.pid
        cut()
        until(lambda: leader.pid != first and leader.problem() is None, "the lock is held again")
        assert leader.lost is None
        with pytest.raises(FleetError, match=r"another server \(edgec fleet on .*\) uses the database"):
            Leader(url, patience_s=0.0)
    with closing(Leader(url, every_s=3600)) as slow:
        cut()
        with closing(Leader(url)):
            slow.look()
            assert "this one stops" in str(slow.problem())
            assert slow.lost == slow.problem()


@pytest.mark.slow
def test_on_an_sqlite_file_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "books.db"
    with running_server(tmp_path / "fleet", "nats", database=f"sqlite:///{path}") as server:
        assert path.is_file()
        assert not (tmp_path / "fleet" / "fleet.db").exists()
        other = replace(server.options, data_dir=tmp_path / "other")
        with pytest.raises(FleetError, match="another server runs on"):
            FleetServer(other).start()


@pytest.mark.slow
def test_without_tls_a_proxy_in_front_does_it(tmp_path: Path) -> None:
    with running_server(tmp_path, "nats", tls=False) as server:
        assert server.url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=60) as reply:
            assert json.loads(reply.read())["ok"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"broker": "rabbit"}, "mqtts://"),
        ({"database": "garbage"}, "sqlite:///path or postgresql://user@host/name, got 'garbage'"),
        ({"database": ""}, "got ''"),
        ({"database": "sqlite:///"}, "got sqlite://"),
        ({"database": "mysql://ann:secret@db/fleet"}, r"got mysql://\.\.\.$"),
        ({"identity": "fingerprint"}, "identity"),
        ({"broker_cert": Path("x")}, "go together"),
        ({"broker_user": "x"}, "go together"),
        ({"certificate_days": 0}, "1 to 7320"),
        ({"connections_per_address": -1}, "0 for any number"),
        ({"webhook": "https://x"}, "go together"),
        ({"webhook": "ftp://x", "webhook_secret": "s"}, "for the webhook"),
        ({"webhook": "https://x:99999/", "webhook_secret": "s"}, "for the webhook"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(FleetError, match=expected):
        FleetOptions(data_dir=Path("x"), **options)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (None, None),
        ("postgresql+psycopg://db/fleet", None),
        ("sqlite:///fleet.db", Path("fleet.db")),
        ("sqlite:////srv/fleet.db", Path("/srv/fleet.db")),
    ],
)
def test_a_database_is_a_url(url: str | None, path: Path | None) -> None:
    assert FleetOptions(data_dir=Path("x"), database=url).sqlite == path


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.1", True),
        ("fleet.example", True),
    ],
)
def test_it_warns_where_tokens_go_through_the_network_in_clear(
    tmp_path: Path, host: str, warned: bool
) -> None:
    assert not FleetOptions(data_dir=tmp_path, host=host).in_clear
    # No directory: the start ends before it listens.
    none = tmp_path / "file"
    none.touch()
    words = ["fleet", "up", "--no-tls", "--host", host, "--data-dir", str(none / "fleet")]
    done = CliRunner().invoke(main_group, words)
    assert isinstance(done.exception, OutputError)
    assert ("warning: API and dashboard" in done.stderr) == warned


def test_an_address_of_another_machine_is_called_that() -> None:
    with pytest.raises(FleetError, match=r"listen at 192\.0\.2\.1: .* choose another --host") as caught:
        Listener("192.0.2.1", 0)
    assert caught.value.reason == "address"
    with Listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FleetError, match=rf"127\.0\.0\.1 port {port}: .* choose another --port"):
            Listener("127.0.0.1", port)


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    with (
        Listener("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        closing(listener.accept()[0]) as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_names_of_the_server_are_those_it_is_reached_under() -> None:
    here = FleetOptions(data_dir=Path("x"), names=("fleet.example",))
    assert here.all_names() == ("fleet.example", "127.0.0.1", "localhost")
    everywhere = FleetOptions(data_dir=Path("x"), host="0.0.0.0").all_names()
    assert "0.0.0.0" not in everywhere
    assert {"localhost", "127.0.0.1"} < set(everywhere)


def test_what_a_killed_upload_left_is_removed(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        assert remove_leftovers(fleet) == 0
        left = fleet.image.directory / "incoming" / "half.part"
        left.parent.mkdir()
        left.write_bytes(b"half")
        assert remove_leftovers(fleet) == 1
        assert not left.exists()


def test_metadata_is_renewed_when_a_third_of_its_life_is_over(tmp_path: Path) -> None:
    now = [1.8e9]
    with Fleet(tmp_path, clock=lambda: now[0]) as fleet:
        assert not renew(fleet)
        now[0] += 9 * 86400
        assert not renew(fleet)
        now[0] += 2 * 86400
        assert renew(fleet)
        assert fleet.image.snapshot().signed.expires.timestamp() > now[0] + 29 * 86400


def test_no_process_of_others_is_ended(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path)
    try:
        assert end_orphans(tmp_path) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
