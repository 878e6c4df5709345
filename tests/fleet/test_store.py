"""What a fleet keeps, on SQLite and PostgreSQL: presence, labels, telemetry, rollouts, the audit log."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the store needs the extra 'fleet'")
pytest.importorskip("cbor2", reason="the store needs the extra 'fleet'")

import cbor2
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DBAPIError

from edgec.errors import FleetError
from edgec.fleet.rollouts import Hold, Order, Plan, Stage, Undo, Undone
from edgec.fleet.store import HourOf, Store, matches, parse_query
from edgec.fleet.store._database import alembic_config
from edgec.fleet.store._drift import DriftRow
from edgec.fleet.store._facts import gather_devices
from edgec.fleet.store._schema import audit, decisions, drift
from edgec.protocol import (
    DeviceEvent,
    DeviceView,
    ModelReport,
    ModelWindow,
    Presence,
    Reported,
    Telemetry,
    TelemetryRecord,
)
from edgec.sketch import Histogram, QuantileSketch

NOW = 1.75e9
pytestmark = pytest.mark.slow
OLD, NEW, FIX = "a" * 64, "b" * 64, "c" * 64


def birth(epoch: int, connection: int = 1, *, online: bool = True, boot: str | None = None) -> Presence:
    return Presence(
        online=online, boot_epoch=epoch, boot_id=boot or f"b{epoch}", connection=connection, agent="edgec",
        sent_at=NOW,
    )  # fmt: skip


def report(epoch: int, seq: int, active: str, *, state: str = "idle", **more: Any) -> Reported:
    own = ModelReport(state=state, active=active, since=NOW, **more)
    return Reported(boot_epoch=1, boot_id="b1", seq=seq, epoch=epoch, models={"m": own}, sent_at=NOW)


def window(latencies: list[float], *, digest: str = OLD, since: float = NOW, **more: Any) -> ModelWindow:
    sketch, confidence = QuantileSketch(), Histogram([0.5])
    sketch.add_many(np.array(latencies))
    confidence.add_many([0.9] * len(latencies))
    return ModelWindow(
        model="m", digest=bytes.fromhex(digest)[:8], since=since, seconds=60.0, calls=len(latencies),
        sampled=len(latencies), latency_ms=sketch.to_bytes(), confidence=confidence.to_bytes(),
        classes={1: len(latencies)}, **more,
    )  # fmt: skip


def telemetry(
    first: int, *payloads: ModelWindow | bytes, boot: str = "b1", kind: str = "window"
) -> Telemetry:
    return Telemetry(
        boot_id=boot,
        first_seq=first,
        sent_at=NOW,
        records=tuple(
            TelemetryRecord(offset=i, kind=kind, at=NOW, payload=p if isinstance(p, bytes) else p.to_bytes())
            for i, p in enumerate(payloads)
        ),
    )


def enrol(store: Store, *names: str, **labels: str) -> None:
    for name in names:
        store.devices.enrol(name, "cpu", own=labels, now=NOW, actor="ann")


# Devices


def test_labels_are_found_by_query(store: Store) -> None:
    enrol(store, "d1", site="lab")
    enrol(store, "d2", site="hall", camera="yes")
    store.devices.enrol("d3", "npu", now=NOW, actor="ann")
    expected = {
        "": "d1 d2 d3", "site=lab": "d1", "site=lab|hall": "d1 d2", "site!=lab": "d2 d3", "camera": "d2",
        "!camera": "d1 d3", "hardware=npu": "d3", "id!=d1, hardware=cpu": "d2", "site=mars": "",
    }  # fmt: skip
    for query, names in expected.items():
        found = store.devices.find(query)
        assert " ".join(d.id for d in found) == names, query
        in_memory = [
            d.id for d in store.devices.find() if matches(parse_query(query), d.id, d.hardware, d.labels)
        ]
        assert " ".join(in_memory) == names, query
    store.devices.label("d1", {"site": "moon"}, now=NOW, actor="ann")
    assert [d.id for d in store.devices.find("site=moon")] == ["d1"]
    assert [d.id for d in store.devices.find(after="d1", limit=1)] == ["d2"]
    store.devices.set_group("all", "site=lab", now=NOW, actor="ann")
    assert store.devices.groups() == {"all": "site=lab"}


@pytest.mark.parametrize("query", ["a=", "=b", "!a=b", "a==b", "a;b", "a='x'", "a b"])
def test_what_is_no_query_is_refused(query: str) -> None:
    with pytest.raises(FleetError, match="expected key"):
        parse_query(query)


def test_what_cannot_be_is_refused_with_a_word(store: Store) -> None:
    enrol(store, "d1")
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: enrol(store, "d1"), "conflict"),
        (lambda: enrol(store, "d2", hardware="x"), "query"),
        (lambda: store.devices.get("d9"), "not_found"),
        (lambda: store.devices.heard("d9", birth(1), NOW), "not_found"),
        (lambda: store.devices.settle("d1", "b9", now=NOW, actor="ann"), "not_found"),
    ]
    for do, reason in refused:
        with pytest.raises(FleetError) as caught:
            do()
        assert caught.value.reason == reason


def test_a_revoked_device_is_not_believed(store: Store) -> None:
    enrol(store, "d1")
    store.devices.revoke("d1", now=NOW, actor="ann")
    with pytest.raises(FleetError, match="revoked"):
        store.devices.heard("d1", birth(1), NOW)
    assert store.telemetry.ingest([("d1", telemetry(0, window([1.0])))], NOW) == []


def test_presence_is_the_same_whatever_the_order(store: Store) -> None:
    messages: list[Presence | Reported] = [
        birth(1),
        birth(1, online=False),
        birth(1, 2),
        birth(2),
        report(3, 1, OLD),
        report(2, 0, OLD),
    ]
    expected = DeviceView()
    for message in messages:
        expected = expected.apply(message, NOW)
    rng = random.Random(1)
    for i in range(8):
        name = f"d{i}"
        enrol(store, name)
        shuffled = [*messages, *rng.choices(messages, k=4)]
        rng.shuffle(shuffled)
        for message in shuffled:
            store.devices.heard(name, message, NOW)
        found = store.devices.get(name)
        assert found.view == expected
        assert found.online


def test_a_late_will_cannot_lie(store: Store) -> None:
    enrol(store, "d1")
    store.devices.heard("d1", birth(5, 2), NOW)
    store.devices.heard("d1", birth(5, 1, online=False), NOW + 1)
    store.devices.heard("d1", birth(4, 9, online=False), NOW + 2)
    device = store.devices.get("d1")
    assert device.online
    assert device.seen_at == NOW
    store.devices.heard("d1", birth(5, 2, online=False), NOW + 3)
    assert not store.devices.get("d1").online


def test_clones_are_fenced_until_a_person_picks_one(store: Store) -> None:
    enrol(store, "d1")
    store.devices.heard("d1", birth(1, boot="x"), NOW)
    store.devices.heard("d1", birth(1, boot="y"), NOW)
    assert store.devices.get("d1").fenced
    assert [i.reason for i in store.rollouts.incidents()] == ["cloned"]
    store.devices.settle("d1", "y", now=NOW, actor="ann")
    assert not store.devices.get("d1").fenced
    # Both run on: the other one is not believed any more.
    store.devices.heard("d1", birth(1, 2, boot="x"), NOW + 45)
    store.devices.heard("d1", birth(1, 2, boot="y"), NOW + 45)
    assert not store.devices.get("d1").fenced
    # It starts anew: a clone again, and the incident that is still open tells of it.
    store.devices.heard("d1", birth(1, boot="z"), NOW + 90)
    assert store.devices.get("d1").fenced
    assert [i.evidence["boots"] for i in store.rollouts.incidents()] == [["y", "z"]]
    # One that a person has closed is over.
    store.rollouts.close_incident(store.rollouts.incidents()[0].id, now=NOW + 91, actor="ann")
    store.devices.settle("d1", "y", now=NOW + 91, actor="ann")
    store.devices.heard("d1", birth(1, boot="w"), NOW + 92)
    assert len(store.rollouts.incidents()) == 2


def test_two_servers_believe_every_message_once(url: str) -> None:
    stores = [Store(url), Store(url)]
    enrol(stores[0], "d1")

    def hear(server: Store, start: int) -> None:
        for i in range(start, 40, 2):
            server.devices.heard("d1", report(1, i, OLD), NOW)

    threads = [threading.Thread(target=hear, args=(s, i)) for i, s in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    device = stores[0].devices.get("d1")
    assert device.view.reported is not None
    assert device.view.reported.seq == 39
    for opened in stores:
        opened.close()


# Telemetry


def test_each_record_counts_once_whatever_comes_twice_or_out_of_order(store: Store) -> None:
    rng = random.Random(3)
    messages = [telemetry(2 * i, window([1.0 + i] * 5), window([10.0] * 3, digest=NEW)) for i in range(6)]
    messages += [telemetry(0, window([7.0]), boot="b2")]
    results, acks = [], []
    for run in range(4):
        name = f"d{run}"
        enrol(store, name)
        shuffled = [*messages, *rng.choices(messages, k=10)] if run else list(messages)
        if run:
            rng.shuffle(shuffled)
        while shuffled:
            batch = [(name, shuffled.pop()) for _ in range(min(rng.randint(1, 5), len(shuffled)))]
            acks = store.telemetry.ingest(batch, NOW)
        hours = store.telemetry.device(name, "m", since=NOW, until=NOW)
        results.append({key: part.to_row() for key, part in hours.items()})
    assert all(result == results[0] for result in results)
    assert {key[0]: row["calls"] for key, row in results[0].items()} == {OLD[:16]: 31, NEW[:16]: 18}
    assert acks


def test_acknowledgements_tell_what_is_kept(store: Store) -> None:
    enrol(store, "d1")
    ((device, ack),) = store.telemetry.ingest([("d1", telemetry(0, window([1.0]), window([1.0])))], NOW)
    assert (device, ack.seq, ack.ranges) == ("d1", 1, ())
    ((_, ack),) = store.telemetry.ingest([("d1", telemetry(5, window([1.0])))], NOW)
    assert ack.seq == 1
    assert ack.covers(5)
    assert not ack.covers(4)
    again = store.telemetry.ingest([("d1", telemetry(0, window([1.0])))], NOW)
    assert again == [("d1", ack)]
    # What a device has lost before an event is not waited for, once it says so.
    crash = DeviceEvent(boot_epoch=1, boot_id="e1", seq=9, at=NOW, kind="crash")
    floor = Telemetry(boot_id="e1", first_seq=9, records=(), floor=9, sent_at=NOW)
    ((_, ack),) = store.telemetry.ingest([("d1", crash)], NOW)
    assert ack.seq is None
    for _ in range(2):
        ((_, ack),) = store.telemetry.ingest([("d1", floor), ("d1", crash)], NOW)
        assert ack.seq == 9


def test_percentiles_of_a_fleet_are_those_of_all_calls(store: Store) -> None:
    rng = np.random.default_rng(5)
    every = []
    for i in range(12):
        enrol(store, f"d{i}")
        values = rng.lognormal(3, 0.5 + i / 10, 200)
        every.append(values)
        message = telemetry(0, window(values.tolist(), since=NOW - 3600 * (i % 3)))
        store.telemetry.ingest([(f"d{i}", message)], NOW)
    merged = store.telemetry.fleet("m", since=NOW - 7200, until=NOW)[OLD[:16]]
    whole = np.concatenate(every)
    assert merged.figures["calls"] == 2400
    for q in (0.5, 0.95, 0.99):
        assert merged.latency.quantile(q) == pytest.approx(np.quantile(whole, q, method="lower"), rel=0.011)
    last = store.telemetry.fleet("m", since=NOW, until=NOW, hardware="cpu")[OLD[:16]]
    assert last.figures["calls"] == 800
    assert store.telemetry.fleet("m", since=NOW, until=NOW, hardware="npu") == {}


def test_bad_data_is_kept_acknowledged_and_counted_nowhere(store: Store) -> None:
    enrol(store, "d1")
    good = window([1.0])
    bad = [b"", b"\xff" * 100, replace(good, latency_ms=b"junk").to_bytes(), b"\0" * 90_000]
    ((_, ack),) = store.telemetry.ingest([("d1", telemetry(0, *bad, good))], NOW)
    assert ack.seq == 4
    assert [r.kind for r in store.telemetry.records("d1")] == ["damaged"] * 4
    hours = store.telemetry.device("d1", "m", since=NOW, until=NOW)
    assert [part.figures["calls"] for part in hours.values()] == [1]
    strange = DeviceEvent(
        boot_epoch=1, boot_id="b1", seq=9, at=1e15, kind="crash", model="m", detail="\0x",
        data={"digest": "\0" * 20},
    )  # fmt: skip
    store.telemetry.ingest([("d1", strange)], NOW)
    assert store.telemetry.records("d1")[0].kind == "crash"


def test_a_clock_that_is_wrong_puts_nothing_into_another_year(store: Store) -> None:
    enrol(store, "d1")
    messages = telemetry(0, window([1.0], since=0.0), window([1.0], since=4e9), window([1.0]))
    store.telemetry.ingest([("d1", messages)], NOW)
    ((key, part),) = store.telemetry.device("d1", "m", since=0, until=5e9).items()
    assert key == (OLD[:16], int(NOW // 3600))
    assert part.figures["calls"] == 3


def test_crashes_and_shadows_belong_to_the_artifact_that_serves(store: Store) -> None:
    enrol(store, "d1")
    store.devices.heard("d1", report(1, 1, NEW), NOW)
    crash = DeviceEvent(boot_epoch=1, boot_id="b1", seq=0, at=NOW, kind="crash", model="m")
    shadow = replace(crash, seq=1, kind="shadow", data={"compared": "50", "disagreed": "7", "digest": OLD})
    store.telemetry.ingest([("d1", crash), ("d1", shadow), ("d1", crash)], NOW)
    hours = store.telemetry.device("d1", "m", since=NOW, until=NOW)
    figures = {key[0]: part.figures for key, part in hours.items()}
    assert figures[NEW[:16]]["crashes"] == 1
    assert (figures[OLD[:16]]["compared"], figures[OLD[:16]]["disagreed"]) == (50, 7)


def test_what_is_old_is_removed_and_not_counted_again(store: Store) -> None:
    enrol(store, "d1")
    message = telemetry(0, window([1.0]))
    store.telemetry.ingest([("d1", message)], NOW)
    later = NOW + 30 * 86400
    assert store.telemetry.prune(later) == 1
    assert store.telemetry.device("d1", "m", since=NOW, until=NOW) == {}
    assert store.telemetry.fleet("m", since=NOW, until=NOW)[OLD[:16]].figures["calls"] == 1
    store.telemetry.ingest([("d1", message)], later)
    assert store.telemetry.device("d1", "m", since=0, until=later) == {}


@pytest.mark.parametrize("kept", ["absent", None, 7])
def test_hours_of_other_versions_may_have_named_as_few_classes_as_there_are(kept: object) -> None:
    part = HourOf.of_window(replace(window([1.0]), classes={-1: 40, **dict.fromkeys(range(8), 5)}))
    assert part.named == {8: 80}
    row = part.to_row()
    sketches = cbor2.loads(row["sketches"])
    sketches.pop(5)
    if kept != "absent":
        sketches[5] = kept
    old = HourOf.of_row({**row, "sketches": cbor2.dumps(sketches)})
    assert old.named == {5: 80}
    old.merge(part)
    assert old.to_row()["calls"] == 2 * part.figures["calls"]
    assert old.named == {5: 80, 8: 80}


def test_hours_survive_the_database() -> None:
    part = HourOf.of_window(window([1.0, 2.0], outputs={"y": Histogram([0.0]).to_bytes()}))
    again = HourOf.of_row(part.to_row())
    assert again.to_row() == part.to_row()
    other = HourOf(outputs={"y": Histogram([5.0])})
    again.merge(other)
    assert list(again.outputs["y"].edges) == [0.0]


def test_hours_of_before_inputs_were_counted_add_up_with_those_of_now() -> None:
    seen = Histogram([0.0])
    seen.add_many([-1.0, 1.0, 2.0])
    part = HourOf.of_window(window([1.0], input_bins={"x/mean": seen.to_bytes()}))
    row = part.to_row()
    assert HourOf.of_row(row).inputs["x/mean"].counts.tolist() == [1, 2]
    sketches = cbor2.loads(row["sketches"])
    sketches.pop(6)
    old = HourOf.of_row({**row, "sketches": cbor2.dumps(sketches)})
    assert old.inputs == {}
    for _ in range(2):
        old.merge(part)
    assert old.inputs["x/mean"].counts.tolist() == [2, 4]
    # However many names a device makes up.
    for number in range(100):
        old.merge(HourOf(inputs={f"{number}/mean": Histogram([0.0])}))
    assert len(old.inputs) == 64


# Rollouts


def make_plan(**more: Any) -> Plan:
    stages = (Stage(percent=20, soak_s=600), Stage(percent=100, soak_s=600))
    values: dict[str, Any] = {"id": "r1", "name": "r", "model": "m", "version": "2", "stages": stages}
    return Plan(**{**values, "artifacts": {"cpu": NEW}, "least_devices": 10, **more})


def settle_down(store: Store, names: list[str], seq: int, now: float, calls: int = 200, **more: Any) -> None:
    """Let devices do what they are told, and say how it goes."""
    rng = np.random.default_rng(seq)
    told = []
    for name in names:
        device = store.devices.get(name)
        active = device.wanted.get("m", OLD)
        store.devices.heard(name, report(device.epoch, seq, active), now)
        bad = more if active == NEW else {}
        latencies = rng.lognormal(3, 0.2, calls).tolist()
        told.append((name, telemetry(seq, window(latencies, digest=active, since=now, **bad))))
    store.telemetry.ingest(told, now)


def test_devices_that_have_a_release_since_a_moment_ago_are_not_silent(store: Store) -> None:
    names = [f"d{i}" for i in range(40)]
    enrol(store, *names)
    settle_down(store, names, 0, NOW)
    limits = replace(make_plan().limits, least_devices=15)
    store.rollouts.create(make_plan(limits=limits, least_devices=20), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    store.rollouts.tick("r1", NOW)
    with_it = [name for name in names if store.devices.get(name).wanted.get("m") == NEW]
    assert len(with_it) == 20
    settle_down(store, [name for name in names if name not in with_it], 1, NOW + 10)
    for name in with_it:
        store.devices.heard(name, report(store.devices.get(name).epoch, 1, NEW), NOW + 10)
    found: dict[int, str] = {}
    for passed in (
        11,
        72,
        135,
        260,
    ):  # the soak begins; then looks
        store.rollouts.tick("r1", NOW + passed)
        found[passed] = store.rollouts.get("r1").state
    assert [found[passed] for passed in (11, 72)] == ["running"] * 2
    assert found[260] in ("undoing", "undone")
    (incident,) = store.rollouts.incidents(only_open=True)
    assert incident.reason == "silence"


@pytest.mark.parametrize(("poison", "state"), [({}, "finished"), ({"errors": 60}, "undone")])
def test_a_rollout_goes_through_or_is_taken_back(store: Store, poison: dict[str, int], state: str) -> None:
    names = [f"d{i}" for i in range(24)]
    enrol(store, *names)
    settle_down(store, names, 0, NOW)
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    now = NOW
    for seq in range(1, 60):
        store.rollouts.tick("r1", now)
        now += 240
        settle_down(store, names, seq, now, **poison)
        if store.rollouts.get("r1").state == state:
            break
    rollout = store.rollouts.get("r1")
    logged = store.rollouts.decisions("r1")
    assert rollout.state == state, [d.decision for d in logged if not isinstance(d.decision, Hold)][-3:]
    actives = [store.devices.get(n).view.reported for n in names]
    assert {r.models["m"].active for r in actives if r} == ({NEW} if state == "finished" else {None, OLD}) - {
        None
    }
    if poison:
        touched = [d for d in logged if isinstance(d.decision, Undo)]
        assert 10 <= len(touched) < 24
        assert store.rollouts.quarantined() == {NEW}
        (incident,) = store.rollouts.incidents(only_open=True)
        assert incident.reason == "errors"
        assert incident.evidence["findings"]
        with pytest.raises(FleetError, match="quarantined"):
            store.rollouts.create(make_plan(id="r2"), now=NOW, actor="ann")
        store.rollouts.close_incident(incident.id, now=NOW, actor="ann")
        store.rollouts.release_quarantine(NEW, now=NOW, actor="ann", reason="fixed")
        store.rollouts.create(make_plan(id="r2"), now=NOW, actor="ann")
    assert store.audit.verify()[0] == len(store.audit.entries(limit=1000))


def test_a_device_that_was_away_when_an_undo_ended_goes_back_when_it_returns(store: Store) -> None:
    names = [f"d{i:02}" for i in range(12)]
    enrol(store, *names)
    for name in names:
        store.devices.heard(name, birth(1), NOW)
    settle_down(store, names, 0, NOW)
    plan = make_plan(stages=(Stage(percent=100),))
    store.rollouts.create(plan, now=NOW, actor="ann")
    store.rollouts.create(make_plan(id="r2", artifacts={"cpu": FIX}), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    store.rollouts.tick("r1", NOW)
    untold, installed, *rest = names
    settle_down(store, [installed, *rest], 1, NOW + 5)
    bad = store.devices.get(installed).epoch
    for name in (untold, installed):
        store.devices.heard(name, birth(1, online=False), NOW + 6)
    store.rollouts.order("r1", "undo", now=NOW + 10, actor="ann")
    store.rollouts.tick("r1", NOW + 10)
    with pytest.raises(FleetError, match="r1 of m is under way: its undo ends"):
        store.rollouts.order("r2", "start", now=NOW + 11, actor="ann")
    settle_down(store, rest, 2, NOW + 12)
    assert store.rollouts.tick("r1", NOW + 129) == []
    assert store.rollouts.tick("r1", NOW + 130) == [Undone(confirmed=10, waiting=2)]
    store.rollouts.order("r2", "start", now=NOW + 131, actor="ann")
    store.rollouts.order("r2", "pause", now=NOW + 131, actor="ann")
    # Back again, with what they had: the order of the newer epoch is there for them, and they follow it.
    for name, active in ((untold, OLD), (installed, NEW)):
        store.devices.heard(name, birth(1, 2), NOW + 900)
        store.devices.heard(name, report(bad if active == NEW else 0, 3, active), NOW + 900)
    assert store.rollouts.tick("r1", NOW + 901) == []
    due = {order.device: order.epoch for order in store.orders.due(NOW + 902, renew_s=0.0, limit=100)}
    for name in (untold, installed):
        device = store.devices.get(name)
        assert NEW not in device.wanted.values()
        assert due[name] == device.epoch > bad
    settle_down(store, [untold, installed], 4, NOW + 910)
    with store.database.read() as connection:
        facts = gather_devices(connection, store.rollouts.get("r1"))
    assert all(d.confirmed for d in facts)


def test_a_server_that_dies_in_a_tick_leaves_nothing_half_done(store: Store, monkeypatch: Any) -> None:
    names = [f"d{i}" for i in range(12)]
    enrol(store, *names)
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgec.fleet.store._rollouts.upsert", die)
        with pytest.raises(KeyboardInterrupt):
            store.rollouts.tick("r1", NOW)
    assert [type(d.decision) for d in store.rollouts.decisions("r1")] == [Order]
    assert all(not store.devices.get(n).wanted for n in names)
    assert len([d for d in store.rollouts.tick("r1", NOW) if d.kind == "assign"]) >= 10


def test_orders_are_refused_with_a_reason_and_one_model_has_one_rollout(store: Store) -> None:
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.create(make_plan(id="r2"), now=NOW, actor="ann")
    with pytest.raises(FleetError, match="there is a rollout 'r1' already"):
        store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    with pytest.raises(FleetError, match="r1 of m is under way"):
        store.rollouts.order("r2", "start", now=NOW, actor="ann")
    with pytest.raises(FleetError, match="only a draft can be started"):
        store.rollouts.order("r1", "start", now=NOW, actor="ann")
    store.rollouts.order("r1", "abort", now=NOW, actor="ann")
    store.rollouts.order("r2", "start", now=NOW, actor="ann")
    assert [r.plan.id for r in store.rollouts.find(states=["running"])] == ["r2"]
    with pytest.raises(FleetError, match="no rollout 'r9'"):
        store.rollouts.get("r9")


def test_a_restored_backup_gives_no_epoch_twice(store: Store) -> None:
    enrol(store, "d1")
    store.devices.heard("d1", report(500, 1, OLD), NOW)
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    store.rollouts.tick("r1", NOW)
    assert store.devices.get("d1").epoch == 501


# Logs


@pytest.mark.parametrize("table", [audit, decisions])
def test_a_log_cannot_be_changed_in_the_database(store: Store, table: Any) -> None:
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    for statement in (update(table).values(at=0.0), delete(table)):
        with pytest.raises(DBAPIError, match="only be added to"), store.database.write() as connection:
            connection.execute(statement)


def test_the_audit_log_shows_what_was_changed_in_it(store: Store) -> None:
    for i in range(5):
        enrol(store, f"d{i}")
    head = store.audit.verify()
    assert head[0] == 5
    with store.database.write() as connection:
        off = "DROP TRIGGER audit_no_{}" + (" ON audit" if connection.dialect.name == "postgresql" else "")
        for word in ("update", "delete"):
            connection.execute(text(off.format(word)))
        connection.execute(delete(audit).where(audit.c.seq == 5))
    assert store.audit.verify()[0] == 4
    with pytest.raises(FleetError, match="there were 5"):
        store.audit.verify(expected=head)
    with store.database.write() as connection:
        connection.execute(update(audit).where(audit.c.seq == 2).values(actor="eve"))
    with pytest.raises(FleetError, match="changed at or before entry 2"):
        store.audit.verify()


def test_a_store_is_there_after_it_was_closed(url: str) -> None:
    first = Store(url)
    enrol(first, "d1", site="lab")
    first.close()
    second = Store(url)
    assert second.devices.get("d1").labels == {"site": "lab"}
    second.close()


def test_a_database_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"expected postgresql://"):
        Store("mysql://x/y")
    (tmp_path / "file").write_text("no database at all" * 100)
    with pytest.raises(FleetError, match="cannot open the database"):
        Store(tmp_path / "file")


def test_the_migrations_make_the_tables_that_the_code_has(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from edgec.fleet.store._schema import metadata

    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


@pytest.mark.slow
def test_figures_of_drift_stay_when_those_of_inputs_are_kept_too(store: Store) -> None:
    from alembic import command

    row = DriftRow(
        model="m", digest="a" * 16, hardware="cpu", output="y", hour=7, hours=1, n=1000, psi=0.5, ks=0.25
    )
    store.drift.write([row, replace(row, kind="input", psi=0.7)])
    with store.database.engine.connect() as connection:
        config = alembic_config(connection)
        command.downgrade(config, "0005")
        assert len(connection.exec_driver_sql("SELECT * FROM drift").all()) == 1
        command.upgrade(config, "head")
    assert store.drift.history("m", since=0, until=NOW) == [row]
    with pytest.raises(DBAPIError), store.database.write() as again:
        again.execute(drift.insert(), dict(vars(row)))
    store.drift.write([replace(row, kind="input")])
    assert len(store.drift.history("m", since=0, until=NOW)) == 2
