"""Rows of the fault matrix as the server sees them, on SQLite and PostgreSQL; each is named by its number."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the store needs the extra 'fleet'")
pytest.importorskip("cbor2", reason="the store needs the extra 'fleet'")

from tests.fleet.test_store import (
    NEW,
    NOW,
    OLD,
    birth,
    enrol,
    make_plan,
    report,
    settle_down,
    telemetry,
    window,
)

from edgec.errors import FleetError, ProtocolError
from edgec.fleet.rollouts import Assign, Stage, Undo
from edgec.fleet.store import Store
from edgec.protocol import DeviceEvent, Message, Presence, Reported, Telemetry

pytestmark = pytest.mark.slow
LATENCIES = np.random.default_rng(1).lognormal(3, 0.2, 200).tolist()


def crash(seq: int, digest: str = NEW, kind: str = "crash", **data: str) -> DeviceEvent:
    return DeviceEvent(
        boot_epoch=1, boot_id="b1-e", seq=seq, at=NOW, kind=kind, model="m", data={"digest": digest, **data}
    )


def take(store: Store, device: str, *messages: Message, now: float = NOW) -> None:
    """Keep messages in the order they came."""
    said = [(device, m) for m in messages if isinstance(m, Presence | Reported)]
    told = [(device, m) for m in messages if isinstance(m, Telemetry | DeviceEvent)]
    store.ingest(said, told, now)


def test_row_19_a_session_that_is_shuffled_and_doubled_leaves_the_same_state(store: Store) -> None:
    session: list[Message] = [birth(1), birth(1, online=False), birth(1, 2), birth(2), birth(2, 2)]
    session += [report(epoch, seq, OLD) for seq, epoch in enumerate((0, 1, 1, 3))]
    session += [telemetry(3 * i, window([1.0 + i] * 4), window([9.0] * 2, digest=NEW)) for i in range(4)]
    session += [crash(i) for i in range(3)] + [crash(9, kind="shadow", compared="40", disagreed="4")]
    rng, found = random.Random(19), []
    for run in range(8):
        name = f"d{run}"
        enrol(store, name)
        heard = [*session, *rng.choices(session, k=12)] if run else list(session)
        if run:
            rng.shuffle(heard)
        while heard:
            take(store, name, *(heard.pop() for _ in range(min(rng.randint(1, 6), len(heard)))))
        device = store.devices.get(name)
        hours = store.telemetry.device(name, "m", since=NOW, until=NOW)
        assert device.view.presence is not None
        assert device.view.reported is not None
        state = (device.view.presence, device.view.reported, device.online, device.acknowledged)
        found.append((state, {key: part.to_row() for key, part in hours.items()}))
        assert len(store.telemetry.records(name)) == 4
    assert all(one == found[0] for one in found)
    new = next(row for key, row in found[0][1].items() if key[0] == NEW[:16])
    assert (new["calls"], new["crashes"], new["compared"], new["disagreed"]) == (8, 3, 40, 4)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0)])
def test_row_20_a_will_that_overtakes_the_birth_does_not_lie(store: Store, order: tuple[int, ...]) -> None:
    """Within one batch, and one by one."""
    session = [birth(1), birth(1, online=False), birth(2)]
    enrol(store, "together", "apart")
    take(store, "together", *(session[i] for i in order))
    for i in order:
        take(store, "apart", session[i])
    for name in ("together", "apart"):
        assert store.devices.get(name).online
    # The will of the connection that lives counts.
    take(store, "apart", birth(2, online=False), now=NOW + 5)
    device = store.devices.get("apart")
    assert (device.online, device.seen_at) == (False, NOW)


def settle(store: Store, seq: int, now: float, poison: Any = None) -> None:
    """Let devices do what they are told, and say how it goes, all in one transaction."""
    said: list[tuple[str, Presence | Reported]] = []
    told: list[tuple[str, Telemetry | DeviceEvent]] = []
    for device in store.devices.find():
        active = device.wanted.get("m", OLD)
        said.append((device.id, report(device.epoch, seq, active)))
        bad = poison if isinstance(poison, dict) and active == NEW else {}
        part = window(LATENCIES, digest=active, since=now, **bad)
        told.append((device.id, telemetry(seq, part)))
        if not isinstance(poison, dict | None) and active == NEW:
            told.append((device.id, replace(poison(seq), at=now)))
    store.ingest(said, told, now)


def lead(store: Store, poison: Any) -> list[str]:
    """Lead a poisoned release through a rollout to 40 devices; return those that had it."""
    names = [f"d{i:02}" for i in range(40)]
    with store.database.together():
        enrol(store, *names)
    settle(store, 0, NOW)
    stages = (Stage(percent=25, soak_s=600), Stage(percent=100, soak_s=600))
    store.rollouts.create(make_plan(stages=stages), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    now = NOW
    for seq in range(1, 40):
        store.rollouts.tick("r1", now)
        now += 240
        settle(store, seq, now, poison)
        if store.rollouts.get("r1").state in ("undone", "finished"):
            break
    assert store.rollouts.get("r1").state == "undone"
    assert store.rollouts.quarantined() == {NEW}
    logged = [d.decision for d in store.rollouts.decisions("r1")]
    had = {d.device for d in logged if isinstance(d, Assign)}
    assert had == {d.device for d in logged if isinstance(d, Undo)}
    return sorted(had)


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        ({"non_finite": 60}, "non_finite"),
        (lambda seq: crash(seq), "crashes"),
        (lambda seq: crash(seq, kind="crash_loop"), "crashes"),
    ],
    ids=["nan", "crash", "crash_loop"],
)
def test_row_24_a_poison_that_devices_tell_of_touches_the_first_stage_alone(
    store: Store, poison: Any, reason: str
) -> None:
    had = lead(store, poison)
    assert 10 <= len(had) < 20
    (incident,) = store.rollouts.incidents(only_open=True)
    assert incident.reason == reason


def test_row_25_classes_in_another_order_show_in_what_the_model_before_answers(store: Store) -> None:
    """The device's own golden labels come first; where there are none, a shadow tells."""
    had = lead(store, lambda seq: crash(seq, kind="shadow", compared="50", disagreed="43", failed="2"))
    assert len(had) < 20
    (incident,) = store.rollouts.incidents(only_open=True)
    assert incident.reason == "disagreement"


@pytest.mark.parametrize(
    ("orders", "refused"),
    [
        ([], None),
        (["start"], None),
        (["start", "pause"], None),
        (["start", "undo"], "abort"),
        (["start", "abort"], "abort"),
        (["start", "undo", "pause"], "abort"),
    ],
    ids=["draft", "running", "paused", "undoing", "aborted", "undoing paused"],
)
def test_row_28_an_abort_in_each_state_is_accepted_or_refused_with_a_reason_and_all_ends(
    store: Store, orders: list[str], refused: str | None
) -> None:
    names = [f"d{i}" for i in range(12)]
    enrol(store, *names)
    for name in names:
        store.devices.heard(name, birth(1), NOW)
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    for word in orders:
        store.rollouts.order("r1", word, now=NOW, actor="ann")
        store.rollouts.tick("r1", NOW)
    if refused is None:
        store.rollouts.order("r1", "abort", now=NOW, actor="ann")
    else:
        with pytest.raises(FleetError, match=f"{refused} r1: ") as caught:
            store.rollouts.order("r1", "abort", now=NOW, actor="ann")
        assert caught.value.reason == "refused"
    if orders[-1:] == ["pause"] and refused:
        store.rollouts.order("r1", "resume", now=NOW, actor="ann")
    now = NOW
    while store.rollouts.get("r1").state not in ("aborted", "undone"):
        now += 3600
        store.rollouts.tick("r1", now)
        assert now < NOW + 10 * 86400
    assert store.rollouts.tick("r1", now + 60) == []


def test_row_29_an_end_that_is_reported_late_is_the_truth(store: Store) -> None:
    """The server has given up on the device, and counts it as failed, until its report comes."""
    names = [f"d{i}" for i in range(12)]
    enrol(store, *names)
    settle_down(store, names, 0, NOW)
    store.rollouts.create(make_plan(), now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    made = store.rollouts.tick("r1", NOW)
    late = next(d.device for d in made if isinstance(d, Assign))
    told = [d.device for d in made if isinstance(d, Assign) and d.device != late]
    # It took notice, and then its broker was away.
    take(store, late, report(1, 5, OLD, state="downloading"))
    settle_down(store, told, 6, NOW + 60)
    after = NOW + 3 * 3600
    store.rollouts.tick("r1", after)
    assert store.rollouts.get("r1").state == "running"
    take(store, late, report(1, 6, NEW, state="committed"), now=after)
    # What was underway and comes even later changes nothing.
    take(store, late, report(1, 4, OLD, state="verified"), now=after + 1)
    made = store.rollouts.tick("r1", after + 60)
    assert [d for d in made if isinstance(d, Assign | Undo)] == []
    reported = store.devices.get(late).view.reported
    assert reported is not None
    assert reported.models["m"].active == NEW


def test_row_30_whatever_parses_can_be_kept(store: Store) -> None:
    """Bytes of real messages, changed at random: refused as no message, or kept; nothing in between."""
    enrol(store, "d1")
    rng, kept = random.Random(30), list[Message]()
    words = ["", "\0", "\ud800", "\u202e", "x" * 64, "ÿ" * 30, "'; DROP TABLE devices; --"]
    event = DeviceEvent(boot_epoch=1, boot_id="b", seq=0, at=NOW, kind="crash", model="m", detail="d" * 9)
    sources: list[Message] = [birth(1), report(1, 1, OLD), telemetry(0, window([1.0])), event]
    for i in range(400):
        source = sources[i % 4]
        data = bytearray(source.to_bytes())
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if isinstance(source, DeviceEvent):
            source = replace(source, seq=i, detail=rng.choice(words[:2] + words[3:]))
            data = bytearray(source.to_bytes().replace(b"dd", rng.choice(words).encode("utf-8", "replace")))
        try:
            message = type(source).from_bytes(bytes(data))
        except ProtocolError:
            continue
        kept.append(message)
    assert len(kept) > 50
    for first in range(0, len(kept), 20):
        take(store, "d1", *kept[first : first + 20])
    assert store.devices.get("d1").id == "d1"
