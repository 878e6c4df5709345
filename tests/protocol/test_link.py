"""The link, against real brokers: Mosquitto, which speaks MQTT 5, and nats-server, which speaks 3.1.1."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt", reason="the extra `agent` is not installed")

from tests.brokers import BROKERS, make_broker
from tests.protocol.proxy import Proxy

from edgec.errors import LinkError
from edgec.protocol import (
    Announcement,
    DeviceView,
    Inbound,
    LinkOptions,
    MqttLink,
    Outgoing,
    Presence,
    Subscription,
    Topics,
)
from edgec.protocol.brokers import Broker
from edgec.protocol.certificates import CertificateAuthority

TOPICS = Topics("default")
MakeLink = Callable[..., MqttLink]


def options(broker: Broker, identity: str, **changes: Any) -> LinkOptions:
    filters = TOPICS.for_fleet() if identity == "fleet" else TOPICS.for_device(identity)
    values: dict[str, Any] = {
        "host": broker.host,
        "port": broker.port,
        "client_id": identity,
        "tls": broker.authority.client(identity).client_context(),
        "subscriptions": tuple(Subscription(filter=f) for f in filters),
        "will_delay_s": 0,
        "first_retry_s": 0.05,
        "last_retry_s": 0.2,
        **changes,
    }
    return LinkOptions(**values)


@pytest.fixture
def link(broker: Broker) -> Iterator[MakeLink]:
    """Makes links that are connected, and closed after the test."""
    with ExitStack() as stack:

        def make(identity: str, announce: Any = None, **changes: Any) -> MqttLink:
            made = MqttLink(options(broker, identity, **changes), announce=announce)
            stack.callback(made.close, 1.0)
            made.start()
            made.wait_connected(60)
            return made

        yield make


def announce(connection: int, boot_id: str = "b") -> Announcement:
    topic = TOPICS.state("dev1")
    birth = Presence(
        online=True, boot_epoch=1, boot_id=boot_id, connection=connection, agent="test", sent_at=0.0
    )
    return Announcement(
        birth=Outgoing(topic=topic, payload=birth.to_bytes(), retain=True),
        will=Outgoing(topic=topic, payload=birth.as_will().to_bytes(), retain=True),
    )


def take(link: MqttLink, *, ack: bool = True, timeout_s: float = 60.0) -> Inbound:
    inbound = link.get(timeout_s)
    assert inbound is not None, link.status
    if ack:
        inbound.ack()
    return inbound


def event(payload: bytes) -> Outgoing:
    return Outgoing(topic=TOPICS.event("dev1"), payload=payload)


def order(payload: bytes, **more: Any) -> Outgoing:
    return Outgoing(topic=TOPICS.command("dev1", "verify"), payload=payload, **more)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_messages_go_both_ways_in_the_best_version_there_is(broker: Broker, link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev1")
    device.publish(event(b"up")).wait(60)
    assert take(fleet).payload == b"up"
    fleet.publish(order(b"down", correlation=b"c1", user={"a": "b"}, expiry_s=60)).wait(60)
    inbound = take(device)
    assert (inbound.topic, inbound.payload) == (TOPICS.command("dev1", "verify"), b"down")
    capabilities = device.status.capabilities
    assert capabilities is not None
    assert capabilities.mqtt5 == (broker.name == "mosquitto")
    assert (inbound.correlation, inbound.user) == ((b"c1", {"a": "b"}) if capabilities.mqtt5 else (None, {}))
    assert device.status.last_heard_s is not None


def test_who_does_not_wait_is_told_when_something_comes(broker: Broker, link: MakeLink) -> None:
    fleet, came = link("fleet"), threading.Semaphore(0)
    with MqttLink(options(broker, "dev1"), came=came.release) as device:
        device.wait_connected(60)
        fleet.publish(order(b"down")).wait(60)
        assert came.acquire(timeout=60)
        assert take(device, ack=False).payload == b"down"
        assert device.get(0.0) is None
        device.nudge()
        assert came.acquire(timeout=60)


@pytest.mark.slow
def test_an_id_with_a_dot_has_its_topics_everywhere(link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev.3")
    fleet.publish(Outgoing(topic=TOPICS.desired("dev.3"), payload=b"{}")).wait(60)
    assert take(device).topic == TOPICS.desired("dev.3")


@pytest.mark.slow
def test_a_lost_connection_is_seen_and_made_good(broker: Broker, link: MakeLink) -> None:
    fleet, view = link("fleet"), DeviceView()
    with Proxy(broker.port) as proxy:
        device = link("dev1", announce, port=proxy.port)
        view = view.apply(Presence.from_bytes(take(fleet).payload), 0.0)
        assert view.online
        proxy.cut()
        # The will of the first connection and the birth of the second, in whatever order.
        first = device.status.connections
        for _ in range(2):
            view = view.apply(Presence.from_bytes(take(fleet).payload), 0.0)
        assert view.online
        assert view.presence
        assert view.presence.connection >= first
        device.close()
        view = view.apply(Presence.from_bytes(take(fleet).payload), 0.0)
        assert not view.online


@pytest.mark.slow
def test_presence_is_there_for_who_comes_later(broker: Broker, link: MakeLink) -> None:
    device = link("dev1", announce)
    device.publish(event(b"x")).wait(60)
    fleet = link("fleet")
    inbound = take(fleet)
    assert (inbound.topic, inbound.retained) == (TOPICS.state("dev1"), True)


@pytest.mark.slow
def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(broker: Broker, link: MakeLink) -> None:
    fleet = link("fleet")
    with Proxy(broker.port) as proxy:
        device = link("dev1", port=proxy.port)
        fleet.publish(order(b"one")).wait(60)
        fleet.publish(order(b"two")).wait(60)
        assert take(device).payload == b"one"
        assert take(device, ack=False).payload == b"two"
        # The acknowledgement goes out before this is answered.
        device.publish(event(b"x")).wait(60)
        proxy.cut()
        again = take(device)
        assert (again.payload, again.duplicate) == (b"two", True)
        fleet.publish(order(b"three")).wait(60)
        assert take(device).payload == b"three"


@pytest.mark.slow
def test_a_restarted_process_gets_what_was_sent_meanwhile(broker: Broker, link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev1")
    device.close()
    for number in range(3):
        fleet.publish(order(b"%d" % number)).wait(60)
    again = link("dev1")
    # NATS may give what waited in another order.
    assert {take(again).payload for _ in range(3)} == {b"0", b"1", b"2"}


@pytest.mark.slow
def test_nothing_is_sent_later_behind_the_callers_back(broker: Broker, link: MakeLink) -> None:
    fleet = link("fleet")
    with Proxy(broker.port) as proxy:
        device = link("dev1", port=proxy.port)
        proxy.refuse()
        proxy.cut()
        until(lambda: not device.status.connected)
        with pytest.raises(LinkError, match="there is no connection to"):
            device.publish(event(b"offline"))
        proxy.refuse(False)
        device.wait_connected(60)
        device.publish(event(b"online")).wait(60)
        assert take(fleet).payload == b"online"
        assert fleet.get(0.2) is None


@pytest.mark.slow
def test_what_is_under_way_fails_with_its_connection(broker: Broker, link: MakeLink) -> None:
    with Proxy(broker.port) as proxy:
        device = link("dev1", port=proxy.port)
        proxy.silence()
        publication = device.publish(event(b"lost"))
        with pytest.raises(LinkError, match="within"):
            publication.wait(0.1)
        assert not publication.done
        proxy.cut()
        with pytest.raises(LinkError, match="before the broker acknowledged"):
            publication.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("keepalive_s", [1, 60])
def test_a_broker_that_falls_silent_is_given_up(broker: Broker, link: MakeLink, keepalive_s: int) -> None:
    with Proxy(broker.port) as proxy:
        # By the missing answer to a ping; and with long intervals, by the missing acknowledgement.
        device = link(
            "dev1", port=proxy.port, keepalive_s=keepalive_s, ack_timeout_s=0.5, connect_timeout_s=1.0
        )
        proxy.silence()
        if keepalive_s > 1:
            device.publish(event(b"x"))
        until(lambda: not device.status.connected)
        proxy.cut()
        proxy.silence(False)
        device.wait_connected(60)
        assert device.status.revived == 0


@pytest.mark.slow
def test_a_killed_broker_is_found_again(broker: Broker, link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev1", announce)
    broker.kill()
    until(lambda: not device.status.connected and not fleet.status.connected)
    broker.start()
    device.wait_connected(60)
    fleet.wait_connected(60)
    device.publish(event(b"back")).wait(60)
    while take(fleet).payload != b"back":
        pass


@pytest.mark.slow
def test_more_than_there_is_room_for_comes_again(broker: Broker, link: MakeLink) -> None:
    fleet = link("fleet")
    device = link("dev1", inbound_messages=8)
    for number in range(12):
        fleet.publish(order(b"%d" % number)).wait(60)
    time.sleep(0.3)
    seen: set[bytes] = set()
    while len(seen) < 12:
        seen.add(take(device).payload)
    assert device.status.dropped == 0


@pytest.mark.slow
def test_many_threads_may_publish_and_acknowledge_at_once(link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev1")
    held = threading.Lock()

    def send(name: int) -> None:
        for number in range(100):
            # Holding a lock of one's own around this has made paho's callbacks wait for ever.
            with held:
                publication = device.publish(event(b"%d.%d" % (name, number)))
            publication.wait(60)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    seen: set[bytes] = set()
    while len(seen) < 400:
        seen.add(take(fleet).payload)
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_a_device_is_kept_to_its_own_topics(broker: Broker, link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev1")
    spoof = Outgoing(topic=TOPICS.event("dev2"), payload=b"spoof")
    if broker.name == "mosquitto":
        with pytest.raises(LinkError, match=r"Not authorized.*access list"):
            device.publish(spoof).wait(60)
    else:
        # MQTT 3.1.1 has no way to say so.
        device.publish(spoof).wait(60)
    device.publish(event(b"own")).wait(60)
    assert take(fleet).payload == b"own"
    nosy = (Subscription(filter=f"{TOPICS.desired('dev2')}"),)
    if broker.name == "mosquitto":
        # It grants the subscription, and delivers nothing.
        other = link("dev1", subscriptions=nosy)
        fleet.publish(Outgoing(topic=TOPICS.desired("dev2"), payload=b"{}")).wait(60)
        assert other.get(0.3) is None
    else:
        device.close()
        assert "refuses a subscription" in failure(broker, subscriptions=nosy)


@pytest.mark.slow
def test_closing_sends_what_was_given(link: MakeLink) -> None:
    fleet, device = link("fleet"), link("dev1", announce)
    take(fleet)
    publications = [device.publish(event(b"%d" % n)) for n in range(50)]
    device.close(timeout_s=60)
    for publication in publications:
        publication.wait(0)
    received = [take(fleet) for _ in range(51)]
    assert {m.payload for m in received if m.topic == TOPICS.event("dev1")} == {b"%d" % n for n in range(50)}
    with pytest.raises(LinkError, match="closed"):
        device.start()
    with pytest.raises(LinkError):
        device.publish(event(b"x"))
    assert device.get(5) is None


@pytest.mark.slow
def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    with make_broker("mosquitto", tmp_path, names=["other.example"]) as broker:
        assert "the name that it was issued for" in failure(broker)


def failure(broker: Broker, **changes: Any) -> str:
    """Return why the first attempt failed."""
    with MqttLink(options(broker, "dev1", **changes)) as link:
        until(lambda: link.status.error is not None)
        assert not link.status.connected
        with pytest.raises(LinkError, match="there is no connection to"):
            link.wait_connected(0)
        return str(link.status.error)


@pytest.mark.slow
def test_a_failure_says_what_to_do(broker: Broker, tmp_path: Path) -> None:
    stranger = CertificateAuthority(tmp_path / "stranger")
    assert "does the broker accept this client's certificate?" in failure(
        broker, tls=broker.authority.server_trust()
    )
    assert "give the authority that issued it" in failure(broker, tls=stranger.server_trust())
    assert "does it want TLS" in failure(broker, tls=None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "does not answer" in failure(broker, port=server.getsockname()[1], connect_timeout_s=0.3)
    with socket.socket() as silent:  # bound, so that nobody else listens there
        silent.bind(("127.0.0.1", 0))
        assert "nothing listens" in failure(broker, port=silent.getsockname()[1])
    assert "check name and network" in failure(broker, host="broker.invalid")


@pytest.mark.slow
def test_passwords_and_tokens(tmp_path: Path) -> None:
    for name in BROKERS:
        with make_broker(name, tmp_path / name, passwords={"dev1": "s3cret"}) as broker:
            values = {
                "tls": broker.authority.server_trust(),
                "port": broker.password_port,
                "username": "dev1",
            }
            with MqttLink(options(broker, "dev1", password="s3cret", **values)) as link:
                link.wait_connected(60)
                link.publish(event(b"x")).wait(60)
            assert "s3cret" not in repr(options(broker, "dev1", password="s3cret", **values))
            assert "password or token" in failure(broker, password="wrong", **values)


@pytest.mark.slow
def test_mqtt_5_alone_is_refused_by_a_broker_that_has_it_not(nats: Broker) -> None:
    assert "allow 'auto'" in failure(nats, version="5")


@pytest.mark.slow
def test_mqtt_3_1_1_can_be_asked_for(mosquitto: Broker) -> None:
    with MqttLink(options(mosquitto, "dev1", version="3.1.1")) as link:
        link.wait_connected(60)
        capabilities = link.status.capabilities
        assert capabilities is not None
        assert not capabilities.mqtt5


@pytest.mark.slow
def test_a_message_that_is_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    broker = make_broker("mosquitto", tmp_path, max_packet_bytes=4096)
    with broker, MqttLink(options(broker, "dev1")) as link:
        link.wait_connected(60)
        with pytest.raises(LinkError, match="takes 4096"):
            link.publish(event(bytes(5000)))
        link.publish(event(bytes(3500))).wait(60)
        assert link.status.connections == 1


@pytest.mark.slow
def test_the_birth_is_refused_where_it_is_too_large(tmp_path: Path) -> None:
    def large(_: int) -> Announcement:
        topic = TOPICS.state("dev1")
        return Announcement(
            birth=Outgoing(topic=topic, payload=bytes(2000)), will=Outgoing(topic=topic, payload=b"")
        )

    broker = make_broker("mosquitto", tmp_path, max_packet_bytes=1000)
    with broker, MqttLink(options(broker, "dev1"), announce=large) as link:
        until(lambda: link.status.error is not None)
        assert "too large for the broker" in str(link.status.error)
        assert not link.status.connected


@pytest.mark.slow
def test_a_shared_subscription_halves_the_work(mosquitto: Broker) -> None:
    shared = (Subscription(filter=f"{TOPICS.event('dev1')}", share="ingest"),)
    with ExitStack() as stack:
        links = [
            stack.enter_context(MqttLink(options(mosquitto, i, subscriptions=s, client_id=c)))
            for i, s, c in (("fleet", shared, "one"), ("fleet", shared, "two"), ("dev1", (), "dev1"))
        ]
        for link in links:
            link.wait_connected(60)
        for number in range(20):
            links[2].publish(event(b"%d" % number)).wait(60)
        got = [[take(link).payload for _ in range(10)] for link in links[:2]]
        assert sorted(got[0] + got[1]) == sorted(b"%d" % n for n in range(20))


@pytest.mark.slow
def test_a_message_that_nobody_hears_is_marked(mosquitto: Broker) -> None:
    with MqttLink(options(mosquitto, "fleet", subscriptions=())) as fleet:
        fleet.wait_connected(60)
        publication = fleet.publish(order(b"x"))
        publication.wait(60)
        assert publication.unheard


@pytest.mark.slow
def test_row_22_an_identity_that_is_used_twice_is_noticed(link: MakeLink) -> None:
    fleet, view = link("fleet"), DeviceView()
    # One disk image on two machines: the same boot epoch, and another boot id.
    for boot_id in ("one", "two"):
        link("dev1", lambda connection, boot_id=boot_id: announce(connection, boot_id))
    while not view.fenced:
        view = view.apply(Presence.from_bytes(take(fleet).payload), time.time())
    assert view.clones == ("one", "two")


def test_who_is_put_out_by_another_of_its_name_knows_it() -> None:
    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.recv(1000)
            # CONNACK of MQTT 5, and DISCONNECT: session taken over.
            client.sendall(b"\x20\x03\x00\x00\x00" + b"\xe0\x02\x8e\x00")
            client.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        with MqttLink(LinkOptions(host="127.0.0.1", port=port, client_id="d", tls=None)) as link:
            until(lambda: link.status.taken_over == 1)
            assert "identity used twice" in str(link.status.error)
            thread.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(mosquitto: Broker) -> None:
    def dying(connection: int) -> Announcement:
        if connection == 1:
            # Ends a thread without a word.
            raise SystemExit
        return announce(connection)

    with MqttLink(options(mosquitto, "dev1"), announce=dying) as link:
        link.wait_connected(60)
        assert link.status.revived == 1
        link.publish(event(b"x")).wait(60)


class Noted(random.Random):
    """Notes between which bounds a wait was drawn."""

    def __init__(self) -> None:
        super().__init__(1)
        self.bounds: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append((a, b))
        return super().uniform(a, b) / 1000


def test_waits_are_spread_and_double_up_to_a_limit() -> None:
    noted = Noted()
    with socket.socket() as silent:  # bound, so that nobody else listens there
        silent.bind(("127.0.0.1", 0))
        link = MqttLink(
            LinkOptions(
                host="127.0.0.1", port=silent.getsockname()[1], client_id="d", tls=None,
                first_retry_s=1.0, last_retry_s=6.0,
            ),
            randomness=noted,
        )  # fmt: skip
        with link:
            until(lambda: len(noted.bounds) >= 5)
    assert noted.bounds[:5] == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 6.0), (0.0, 6.0)]


@pytest.mark.slow
def test_a_server_that_talks_nonsense_ends_no_thread() -> None:
    words = random.Random(7)
    answers = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x20\x02\x00\x01", b"\x20\x03\x00\x00\x00" * 3]
    answers += [b"\x20\x03\x00\x00\x00" + words.randbytes(words.randrange(1, 60)) for _ in range(150)]
    answers += [words.randbytes(words.randrange(1, 60)) for _ in range(150)]
    left = iter(answers)
    done = threading.Event()

    def serve(server: socket.socket) -> None:
        for answer in left:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)
        done.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        values: dict[str, Any] = {"first_retry_s": 1e-4, "last_retry_s": 1e-3, "connect_timeout_s": 0.2}
        link = MqttLink(
            LinkOptions(
                host="127.0.0.1",
                port=port,
                client_id="d",
                tls=None,
                subscriptions=(Subscription(filter="a/#"),),
                **values,
            )
        )
        with link:
            assert done.wait(60)
            assert link.status.revived == 0
        thread.join()


@pytest.mark.parametrize("changes", [{"version": "4"}, {"keepalive_s": 0}, {"inbound_messages": 0}])
def test_options_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LinkOptions(host="h", client_id="d", tls=None, **changes)
