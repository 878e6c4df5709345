"""What one device or a database does must not stop a thread of the fleet, or what others say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("tuf", reason="a fleet needs the extra 'fleet'")
pytest.importorskip("sqlalchemy", reason="a fleet needs the extra 'fleet'")

from sqlalchemy import exc, update

from edgec.errors import OutputError, ProtocolError
from edgec.fleet.alerts import AlertSettings, Courier, Watch, Webhook
from edgec.fleet.alerts._rules import conditions
from edgec.fleet.mqtt import Counters, MqttSettings
from edgec.fleet.mqtt._directing import Directing
from edgec.fleet.mqtt._ingest import Ingest
from edgec.fleet.service import Fleet
from edgec.fleet.store import Claims, Condition, HourOf, Store, ToldOrder
from edgec.fleet.store._credentials import Request
from edgec.fleet.store._devices import tell
from edgec.fleet.store._schema import device_hours, devices, fleet_hours, orders
from edgec.protocol import (
    Inbound,
    ModelWindow,
    MqttLink,
    Publication,
    Reported,
    Telemetry,
    TelemetryRecord,
    Topics,
)
from edgec.sketch._bytes import pack_numbers
from edgec.trust import DeviceBundle, Issued, SignedWish, Wish

NOW = 1_790_000_000.0
TOPICS = Topics("t")
DIGEST = b"\1" * 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "fleet.db")
    for device in ("bad", "good"):
        opened.devices.enrol(device, "cpu", now=NOW, actor="test")
    yield opened
    opened.close()


@dataclass
class Link:
    """What a broker has sent, and what is sent to it; acknowledged messages by device."""

    waiting: list[Inbound] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)

    def get(self, timeout_s: float) -> Inbound | None:
        if self.waiting:
            return self.waiting.pop(0)
        time.sleep(min(timeout_s, 0.01))
        return None

    def nudge(self) -> None:
        pass

    def publish(self, message: Any) -> None:
        self.sent.append(message)

    def bring(self, device: str, message: Telemetry) -> None:
        self.waiting.append(
            Inbound(
                topic=TOPICS.telemetry(device), payload=message.to_bytes(), qos=1, retained=False,
                _ack=lambda: self.acknowledged.append(device),
            )
        )  # fmt: skip


def window(**fields: Any) -> ModelWindow:
    return ModelWindow(model="m", digest=DIGEST, since=NOW, seconds=60.0, calls=5, **fields)


def message(seq: int = 0, *, offset: int = 0, **fields: Any) -> Telemetry:
    record = TelemetryRecord(offset=offset, kind="window", at=NOW, payload=window(**fields).to_bytes())
    return Telemetry(boot_id="b", first_seq=seq, records=(record,), sent_at=NOW)


def histogram(count: int) -> bytes:
    edges = np.array([0.0]).astype("<f8").tobytes()
    return bytes([1]) + (1).to_bytes(2, "little") + edges + pack_numbers([0, count, 1])


def sketch(count: int) -> bytes:
    limits = np.array([1.0, 2.0, 3.0]).astype("<f8").tobytes()
    return bytes([1]) + limits + pack_numbers([0, 0, 1, 10, count, 0])


def until(done: Any) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def ingest(store: Any, link: Link, counters: Counters | None = None) -> Ingest:
    return Ingest(
        cast("MqttLink", link), TOPICS, store, counters or Counters(), MqttSettings(),
        clock=lambda: NOW, heard=lambda: None, reply=lambda device, reply: None,
    )  # fmt: skip


def calls(store: Store) -> float:
    return sum(p.figures["calls"] for p in store.telemetry.fleet("m", since=NOW, until=NOW).values())


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": {"y": histogram(2**65)}},
        {"outputs": {"y": histogram(2**41)}},
        {"input_bins": {"x/mean": histogram(2**41)}},
        {"confidence": histogram(2**65)},
        {"latency_ms": sketch(2**66)},
        {"latency_ms": sketch(2**41)},
        {"inputs": {"x": sketch(2**66)}},
    ],
)
def test_counts_beyond_what_can_be_are_damaged(fields: dict[str, Any]) -> None:
    made = window(**fields)
    read = made.input_sketches if made.inputs else lambda: HourOf.of_window(made)
    with pytest.raises(ProtocolError, match="of a window is damaged"):
        read()


def test_hours_of_the_greatest_counts_add_up_and_come_back(store: Store) -> None:
    greatest: dict[str, Any] = {
        "latency_ms": sketch(2**40),
        "outputs": {"y": histogram(2**40)},
        "classes": {1: 2**53 - 1},
    }
    for seq in range(12):
        store.ingest([], [("bad", message(seq, **greatest))], NOW)
    store.ingest([], [("good", message())], NOW)
    (whole,) = store.telemetry.fleet("m", since=NOW, until=NOW).values()
    assert whole.figures["calls"] == 65
    assert whole.latency.count == whole.outputs["y"].counts[0] == 2**40


def test_numbers_of_records_that_no_acknowledgement_can_name_are_refused() -> None:
    message(2**53 - 2, offset=1)
    data = message(2**53 - 2, offset=2).to_bytes
    with pytest.raises(ProtocolError, match="at most 9007199254740991"):
        Telemetry.from_bytes(data())


def test_a_message_that_provokes_what_nobody_knows_stops_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, link, counters = HourOf.of_window.__func__, Link(), Counters()  # type: ignore[attr-defined]

    def of_window(window: ModelWindow) -> HourOf:
        if window.errors:
            raise OverflowError("something else")
        return cast("HourOf", read(HourOf, window))

    monkeypatch.setattr(HourOf, "of_window", of_window)
    link.bring("bad", message(errors=1))
    link.bring("good", message())
    taking = ingest(store, link, counters)
    thread = threading.Thread(target=taking.run)
    thread.start()
    until(lambda: len(link.acknowledged) == 2 and link.sent)
    assert thread.is_alive()
    taking.stop()
    thread.join()
    assert calls(store) == 5
    assert counters.snapshot()[0]["dropped", "refused"] == 1
    assert [sent.topic for sent in link.sent] == [TOPICS.ack("good")]


def test_an_hour_that_cannot_be_read_is_left_out_told_once_and_begun_anew(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.ingest([], [("bad", message()), ("good", message())], NOW)
    with store.database.write() as connection:
        for table in (device_hours, fleet_hours):
            connection.execute(update(table).values(sketches=b"\xa0"))
    for _ in range(2):
        assert store.telemetry.fleet("m", since=NOW, until=NOW) == {}
    assert store.telemetry.device("bad", "m", since=NOW, until=NOW) == {}
    told = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(told) == len(set(told)) == 2
    store.ingest([], [("good", message(1))], NOW)
    assert calls(store) == 5


class Away:
    """A store that does not write at first."""

    def __init__(self, store: Store, error: Exception) -> None:
        self.store, self.error, self.attempts = store, error, 0

    def ingest(self, *args: Any) -> Any:
        self.attempts += 1
        if self.attempts < 3:
            raise self.error
        return self.store.ingest(*args)


@pytest.mark.parametrize(
    "error",
    [
        exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
        exc.InternalError("INSERT", {}, Exception("read-only transaction")),
        exc.ProgrammingError("INSERT", {}, Exception("no such table")),
        exc.DatabaseError("INSERT", {}, Exception("database disk image is malformed")),
        exc.OperationalError("INSERT", {}, Exception("disk is full")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_database_that_does_not_write_loses_no_message(
    store: Store, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.fleet.mqtt._ingest._RETRY_S", (0.005, 0.01))
    link, counters, away = Link(), Counters(), Away(store, error)
    acknowledged_at: list[int] = []
    link.bring("good", message())
    taking = ingest(away, link, counters)
    thread = threading.Thread(target=taking.run)
    thread.start()
    until(lambda: link.acknowledged)
    acknowledged_at.append(away.attempts)
    taking.stop()
    thread.join()
    assert acknowledged_at == [3]
    assert calls(store) == 5
    assert ("dropped", "refused") not in counters.snapshot()[0]


ERRORS = [
    exc.TimeoutError("QueuePool limit"),
    exc.InternalError("SELECT", {}, Exception("read-only transaction")),
    ValueError("a row that cannot be read"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_directing_goes_on_after_any_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.fleet.mqtt._directing._MOST_PAUSE_S", 0.01)
    turns: list[int] = []

    def find(**_: Any) -> Any:
        turns.append(1)
        raise error

    fleet = SimpleNamespace(store=SimpleNamespace(rollouts=SimpleNamespace(find=find)), clock=lambda: NOW)
    directing = Directing(
        cast("Any", fleet), cast("Any", None), TOPICS, Counters(), MqttSettings(turn_s=0.01)
    )
    thread = threading.Thread(target=directing.run)
    thread.start()
    until(lambda: len(turns) > 2 or not thread.is_alive())
    assert thread.is_alive()
    directing.stop()
    thread.join()


def test_a_look_that_fails_while_a_broker_is_waited_for_is_counted_and_not_repeated_at_once() -> None:
    looks: list[int] = []

    def find(**_: Any) -> Any:
        looks.append(1)
        raise OSError("the database is gone")

    fleet = SimpleNamespace(store=SimpleNamespace(rollouts=SimpleNamespace(find=find)), clock=lambda: NOW)
    counters = Counters()
    directing = Directing(cast("Any", fleet), cast("Any", None), TOPICS, counters, MqttSettings())
    directing._looked_at -= 3600
    for _ in range(3):
        directing._look_again()
    assert looks == [1]
    assert counters.get("orders", "interrupted") == 1


def test_a_rollout_that_cannot_go_on_stops_no_other() -> None:
    ticked: list[str] = []

    def tick(rollout: str, now: float) -> None:
        ticked.append(rollout)
        if rollout == "bad":
            raise KeyError("something else")

    both = [
        SimpleNamespace(plan=SimpleNamespace(id=name, model="m"), state="running") for name in ("bad", "good")
    ]
    store = SimpleNamespace(rollouts=SimpleNamespace(find=lambda **_: both, tick=tick))
    link = SimpleNamespace(status=SimpleNamespace(connected=False))
    fleet = SimpleNamespace(store=store, clock=lambda: NOW)
    directing = Directing(cast("Any", fleet), cast("Any", link), TOPICS, Counters(), MqttSettings())
    assert directing.turn()
    assert set(ticked) == {"bad", "good"}


def signed_for(wishes: Iterable[Wish]) -> dict[str, SignedWish]:
    bundles = [DeviceBundle(device=w.device, epoch=1, targets={}, metadata={}) for w in wishes]
    return {b.device: SignedWish(bundle=b, version=3, expires=NOW + 1e9) for b in bundles}


def test_what_was_sent_before_something_broke_is_not_sent_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def publish(message: Any) -> Publication:
        sent.append(message.topic)
        if len(sent) == 2:
            raise MemoryError
        publication = Publication()
        publication.settle()
        return publication

    def issue(director: Any, wishes: list[Wish]) -> Issued:
        return Issued(Path(), signed_for(wishes), {})

    with store.database.write() as connection:
        connection.execute(update(devices).values(epoch=1))
    fleet = SimpleNamespace(store=store, clock=lambda: NOW, director=None)
    link = SimpleNamespace(status=SimpleNamespace(connected=True, connections=0), publish=publish)
    directing = Directing(cast("Any", fleet), cast("Any", link), TOPICS, Counters(), MqttSettings())
    monkeypatch.setattr("edgec.fleet.mqtt._directing.issue", issue)
    assert [directing.turn() for _ in range(3)] == [False, True, True]
    assert sent == [TOPICS.desired("bad"), TOPICS.desired("good"), TOPICS.desired("good")]


def test_what_was_sent_and_may_not_be_kept_is_told_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def publish(message: Any) -> Publication:
        sent.append(message.topic)
        publication = Publication()
        publication.settle()
        return publication

    class Unkept(Issued):
        def keep(self) -> dict[str, OutputError]:
            if len(sent) == 2:
                raise RuntimeError("can't start new thread")
            return {} if len(sent) > 4 else {"good": OutputError("the disk is full")}

    now = [NOW]
    with store.database.write() as connection:
        connection.execute(update(devices).values(epoch=1))
    fleet = SimpleNamespace(store=store, clock=lambda: now[0], director=None)
    link = SimpleNamespace(status=SimpleNamespace(connected=True, connections=0), publish=publish)
    directing = Directing(cast("Any", fleet), cast("Any", link), TOPICS, Counters(), MqttSettings())
    monkeypatch.setattr(
        "edgec.fleet.mqtt._directing.issue", lambda _, wishes: Unkept(Path(), signed_for(wishes), {})
    )
    told = []
    for _ in range(4):
        directing.turn()
        told.append(store.orders.counts()["told"])
        now[0] += 3600
    # Nothing is known of either; one's files are not kept; that one is told again, and then both are.
    assert told == [0, 1, 2, 2]
    assert sorted(sent[:4]) == sorted(TOPICS.desired(name) for name in ("bad", "good") * 2)
    assert sent[4:].count(TOPICS.desired("good")) >= 1


@pytest.mark.slow
def test_alerts_go_on_after_any_error_and_health_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Fleet(tmp_path, clock=lambda: NOW) as fleet:
        watch = Watch(fleet, settings=AlertSettings(every_s=0.01))
        failing, looks = [True], [0]

        def look() -> list[Any]:
            looks[0] += 1
            if failing[0]:
                raise ValueError("a row that cannot be read")
            return []

        monkeypatch.setattr(watch, "look", look)
        with watch:
            until(lambda: looks[0] > 2 and watch.problems())
            assert watch.problems() == ["alerts cannot be looked at now: a row that cannot be read"]
            failing[0] = False
            until(lambda: not watch.problems())
        assert len(watch.problems()) == 2


def test_a_sink_that_raises_anything_ends_no_courier(store: Store) -> None:
    sent: list[str] = []

    @dataclass
    class Sink:
        name: str

        def send(self, delivery: Any, now: float) -> None:
            if self.name == "bad":
                raise ValueError("something else")
            sent.append(self.name)

    courier = Courier(store.alerts, [Sink("bad"), Sink("good")], clock=lambda: NOW)
    condition = Condition(rule="r", subject="s", severity="warning", summary="!")
    store.alerts.compare([condition], NOW, rules=["r"], quiet_s=60, sinks=["bad", "good"])
    assert courier.deliver() == 2
    assert sent == ["good"]
    assert store.alerts.undelivered() == {"bad": 1}
    with pytest.raises(ValueError, match="expected https://"):
        Webhook(name="hook", url="https://h:99999/", secret="s")


def test_a_courier_goes_on_after_any_error() -> None:
    outcomes: list[Exception | list[Any]] = [*ERRORS, []]

    def take_due(now: float, *, lease_s: float) -> list[Any]:
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    courier = Courier(cast("Any", SimpleNamespace(take_due=take_due)), [], clock=lambda: NOW)
    thread = threading.Thread(target=courier.run)
    thread.start()

    def over() -> bool:
        courier.poke()
        return (len(outcomes) == 1 and courier.problem is None) or not thread.is_alive()

    until(over)
    assert thread.is_alive()
    courier.stop()
    thread.join()


def ordered(store: Store, digest: str = "0" * 64) -> int:
    with store.database.write() as connection:
        return tell(connection, "m", {"bad": digest})["bad"]


def reported(boot: int, epoch: int) -> Reported:
    return Reported(boot_epoch=boot, boot_id=f"b{boot}", seq=1, epoch=epoch, models={}, sent_at=1.0)


def test_a_device_cannot_use_up_its_epochs(store: Store) -> None:
    store.devices.heard("bad", reported(1, 7), NOW)
    assert ordered(store) == 8
    store.devices.heard("bad", reported(2, 2**53 - 1), NOW)
    assert ordered(store) == 9
    store.devices.heard("bad", reported(3, 9), NOW)
    assert ordered(store) == 10


def test_a_device_that_is_admitted_anew_is_told_anew(store: Store) -> None:
    ordered(store)
    for epoch in (2**53 - 1, 5):
        with store.database.write() as connection:
            values = {"epoch": epoch, "acknowledged": epoch}
            connection.execute(update(devices).where(devices.c.id == "bad").values(values))
        (due,) = store.orders.due(NOW, renew_s=0, limit=10)
        store.orders.told(
            [ToldOrder(order=due, version=3, expires_at=NOW + 9, delivered=True, next_at=NOW)], NOW
        )
        readmit(store, f"{epoch:064x}")
        record = store.devices.get("bad")
        assert (record.epoch, record.acknowledged) == (6 if epoch == 5 else 1, 0)
        (due,) = store.orders.due(NOW, renew_s=0, limit=10)
        assert (due.epoch, due.version, due.tries) == (record.epoch, 0, 0)


def readmit(store: Store, fingerprint: str) -> None:
    claims = Claims(store.database)
    _, secret = claims.create(now=NOW, actor="test", device="bad")
    request = Request(device="bad", hardware=["cpu"], kind="token", fingerprint=fingerprint)
    claims.redeem(secret, request, lambda device: ("1", "document", None), now=NOW)


@pytest.mark.slow
def test_orders_of_a_revoked_device_raise_no_alert(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        now, settings = fleet.clock(), AlertSettings()
        for device, problem, expires_at in (("a", "too large", 0.0), ("b", "", now - 9)):
            fleet.store.devices.enrol(device, "cpu", now=now, actor="test")
            with fleet.store.database.write() as connection:
                row = {"device": device, "epoch": 1, "revision": 0, "version": 1, "expires_at": expires_at}
                row |= {"told_at": now, "tries": 1, "next_at": now, "problem": problem}
                connection.execute(orders.insert(), row)

        def raised() -> set[tuple[str, str]]:
            found = {(c.rule, c.subject) for c in conditions(fleet, settings, now)}
            return found & {("untold", "fleet"), ("expiry", "director/devices")}

        assert len(raised()) == 2
        for device in "ab":
            fleet.store.devices.revoke(device, now=now, actor="test")
        assert raised() == set()
