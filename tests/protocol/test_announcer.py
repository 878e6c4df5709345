"""Telling devices what they are to have, and what their answers mean; files in pieces over the broker."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt", reason="the extra `agent` is not installed")

from edgec.errors import LinkError
from edgec.protocol import (
    Alert,
    Announcer,
    Answer,
    ChunkRequest,
    ChunkServer,
    Desired,
    DesiredModel,
    DeviceEvent,
    LinkOptions,
    ModelReport,
    MqttLink,
    Outgoing,
    Presence,
    Reported,
    Subscription,
    Told,
    Topics,
    broker_address,
    tls_context,
)
from edgec.protocol.brokers import Broker
from edgec.protocol.certificates import CertificateAuthority

OLD, NEW = "1" * 64, "2" * 64
TOPICS = Topics("default")
WANTED = Desired(epoch=2, models={"digits": DesiredModel(path="digits/new", length=3, sha256=NEW)})


def report(seq: int, epoch: int = 2, **model: Any) -> Reported:
    models = {"digits": ModelReport(**{"since": 1.0, "active": OLD, **model})} if model else {}
    return Reported(boot_epoch=1, boot_id="b", seq=seq, epoch=epoch, models=models, sent_at=1.0)


def end(result: str, epoch: int = 2, digest: str = NEW, model: str = "digits") -> DeviceEvent:
    data = {"epoch": str(epoch), "digest": digest}
    kind = f"update_{result}"
    return DeviceEvent(
        boot_epoch=1, boot_id="b", seq=1, at=1.0, kind=kind, model=model, reason="golden", data=data
    )


def after(*messages: Presence | Reported | DeviceEvent) -> Answer:
    told = Told(device="dev1", desired=WANTED, models=("digits",))
    for message in messages:
        told = told.after(message, 0.0)
    (answer,) = told.answers()
    return answer


UNDER_WAY = report(1, state="downloading", candidate=NEW)


@pytest.mark.parametrize(
    ("messages", "outcome"),
    [
        ([], "waiting"),
        ([report(1, epoch=1, state="idle")], "waiting"),
        ([report(1)], "noticed"),
        ([report(1, state="idle", reason="of an update before")], "noticed"),
        ([UNDER_WAY], "working"),
        ([report(1, state="probation", active=NEW, previous=OLD, candidate=NEW)], "working"),
        ([report(1, state="cleaned", active=NEW)], "committed"),
        ([report(2, state="idle", active=NEW), UNDER_WAY], "committed"),
        ([end("committed")], "committed"),
        ([report(1, state="idle"), end("refused")], "refused"),
        ([UNDER_WAY, end("failed")], "failed"),
        ([end("failed"), UNDER_WAY], "failed"),
        ([UNDER_WAY, end("rolled_back")], "rolled_back"),
        ([UNDER_WAY, end("superseded")], "superseded"),
        # Of another update, another model, or no end.
        ([UNDER_WAY, end("failed", epoch=1), end("failed", digest=OLD)], "working"),
        ([UNDER_WAY, end("failed", model="other"), end("abort_refused")], "working"),
        ([report(1, epoch=3, state="idle")], "ahead"),
    ],
)
def test_answers_say_what_became_of_it(messages: list[Any], outcome: str) -> None:
    answer = after(*messages)
    assert answer.outcome == outcome
    assert answer.over == (outcome not in ("waiting", "noticed", "working"))


def test_who_is_away_is_known_and_so_is_why_nothing_happens() -> None:
    here = Presence(online=True, boot_epoch=1, boot_id="b", connection=1, agent="a", sent_at=0.0)
    assert after(here).online
    assert not after(here, here.as_will()).online
    alert = Reported(
        boot_epoch=1,
        boot_id="b",
        seq=1,
        epoch=1,
        models={},
        sent_at=0.0,
        alerts=(Alert(reason="signature", detail="nobody who may has signed it"),),
    )
    assert (after(alert).outcome, after(alert).reason) == ("waiting", "signature")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtts://broker.example", ("broker.example", 8883, True)),
        ("mqtts://broker.example:9000/", ("broker.example", 9000, True)),
        ("mqtt://localhost", ("localhost", 1883, False)),
        ("mqtts://[::1]:1", ("::1", 1, True)),
    ],
)
def test_addresses_of_brokers(url: str, expected: tuple[str, int, bool]) -> None:
    assert broker_address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "broker.example", "http://broker.example", "mqtts://", "mqtts://broker:x", "mqtts://broker/topic",
        "mqtt://broker.example", "mqtts://me:secret@broker.example", "mqtts://broker?x=1",
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(LinkError) as raised:
        broker_address(url)
    assert "secret" not in str(raised.value) or "me:" not in str(raised.value)


def test_certificates_are_read_or_the_file_is_named(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    mine = authority.client("dev1")
    context = tls_context(authority.root, mine.certificate, mine.key)
    assert context.verify_mode is ssl.CERT_REQUIRED
    (tmp_path / "empty").touch()
    for ca, certificate in ((tmp_path / "empty", None), (None, tmp_path / "empty"), (None, mine.certificate)):
        with pytest.raises(LinkError, match=r"empty|dev1\.crt"):
            tls_context(ca, certificate)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ChunkServer]:
    folder = tmp_path / "repo/targets/digits"
    folder.mkdir(parents=True)
    data = bytes(range(250)) * 1000
    (folder / f"{hashlib.sha256(data).hexdigest()}.new.edgec").write_bytes(data)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / f"{OLD}.link").symlink_to(tmp_path / "secret")
    with closing(MqttLink(LinkOptions(host="127.0.0.1", client_id="x", tls=None))) as link:
        yield ChunkServer(link, TOPICS, tmp_path / "repo")


SHA = hashlib.sha256(bytes(range(250)) * 1000).hexdigest()


@pytest.mark.parametrize(
    ("path", "sha256", "offset", "error"),
    [
        (f"targets/digits/{SHA}.new.edgec", SHA, 0, None),
        ("digits/new.edgec", SHA, 249_900, None),
        ("digits/new.edgec", SHA, 250_000, "range"),
        ("digits/new.edgec", NEW, 0, "not_found"),
        ("digits/other.edgec", SHA, 0, "not_found"),
        ("digits", SHA, 0, "not_found"),
        (f"targets/digits/{OLD}.link", OLD, 0, "not_found"),
        ("digits/link", OLD, 0, "not_found"),
    ],
)
def test_pieces_of_files(files: ChunkServer, path: str, sha256: str, offset: int, error: str | None) -> None:
    request = ChunkRequest(id="r1", path=path, sha256=sha256, offset=offset, length=1000)
    chunk = files.answer(request)
    assert chunk.error == error
    expected = b"" if error else (bytes(range(250)) * 1000)[offset : offset + 1000]
    assert (chunk.id, chunk.data) == ("r1", expected)


@pytest.mark.slow
def test_a_device_hears_of_it_asks_for_the_file_and_answers(broker: Broker, tmp_path: Path) -> None:
    def link(identity: str, client: str, *subscriptions: Subscription) -> MqttLink:
        tls = broker.authority.client(identity).client_context()
        return MqttLink(
            LinkOptions(
                host=broker.host,
                port=broker.port,
                client_id=client,
                tls=tls,
                subscriptions=subscriptions,
                session_expiry_s=0,
                first_retry_s=0.1,
            )
        )

    folder = tmp_path / "repo/targets/digits"
    folder.mkdir(parents=True)
    (folder / f"{NEW}.new").write_bytes(b"abc")
    got: list[bytes] = []

    def device() -> None:
        with link("dev1", "dev1", Subscription(filter=TOPICS.for_device("dev1")[0])) as mine:
            mine.wait_connected(60)
            while (inbound := mine.get(timeout_s=60)) is not None:
                inbound.ack()
                if inbound.topic == TOPICS.desired("dev1"):
                    wanted = Desired.from_bytes(inbound.payload).models["digits"]
                    ask = ChunkRequest(id="r", path=wanted.path, sha256=wanted.sha256, offset=0, length=9)
                    mine.publish(Outgoing(topic=TOPICS.request("dev1", "chunk"), payload=ask.to_bytes()))
                else:
                    got.append(inbound.payload)
                    done = report(5, state="cleaned", active=NEW)
                    mine.publish(Outgoing(topic=TOPICS.reported("dev1"), payload=b"no message")).wait(60)
                    mine.publish(Outgoing(topic=TOPICS.reported("dev1"), payload=done.to_bytes())).wait(60)
                    return

    thread = threading.Thread(target=device)
    wanted = (*Announcer.subscriptions(TOPICS, ["dev1"]), *ChunkServer.subscriptions(TOPICS))
    seen: list[Answer] = []
    with link("fleet", "push-1", *wanted) as mine:
        mine.wait_connected(60)
        announcer, server = Announcer(mine, TOPICS), ChunkServer(mine, TOPICS, tmp_path / "repo")
        announcer.announce("dev1", WANTED)
        assert [a.outcome for a in announcer.wait(0.05)] == ["waiting"]
        # The device comes later: what it was told is retained.
        thread.start()
        answers = announcer.wait(60, seen.append, server.take)
    thread.join(60)
    assert [answer.outcome for answer in answers] == ["committed"]
    assert seen
    assert b"abc" in got[0]
