"""What each side believes of the other cannot be made wrong by the order of messages."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.protocol import (
    Desired,
    DesiredModel,
    DesiredView,
    DeviceView,
    ModelReport,
    Presence,
    Received,
    Reported,
)

A, B = "a" * 64, "b" * 64


def birth(epoch: int, connection: int, *, boot: str = "") -> Presence:
    return Presence(
        online=True,
        boot_epoch=epoch,
        boot_id=boot or f"boot{epoch}",
        connection=connection,
        agent="",
        sent_at=1.0,
    )


def report(epoch: int, seq: int, *, boot: str = "", desired: int = 0) -> Reported:
    models = {"kws": ModelReport(state="idle", active=A, detail=f"{epoch}.{seq}", since=1.0)}
    boot = boot or f"boot{epoch}"
    return Reported(boot_epoch=epoch, boot_id=boot, seq=seq, epoch=desired, models=models, sent_at=1.0)


def desired(epoch: int, sha256: str = A, revision: int = 0) -> Desired:
    model = DesiredModel(path="kws.edgec", length=1, sha256=sha256)
    return Desired(epoch=epoch, revision=revision, models={"kws": model})


def seen(*messages: Presence | Reported, now: float = 0.0, view: DeviceView | None = None) -> DeviceView:
    view = view or DeviceView()
    for message in messages:
        view = view.apply(message, now)
    return view


SESSION: list[Presence | Reported] = [
    birth(1, 1),
    report(1, 0),
    report(1, 1, desired=3),
    birth(1, 1).as_will(),
    birth(1, 2),
    report(1, 2, desired=4),
    birth(1, 2).as_will(),
    birth(2, 1),
    report(2, 0, desired=4),
    birth(2, 1).as_will(),
    birth(2, 3),
    report(2, 1, desired=5),
]


@pytest.mark.parametrize("ways", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_row_19_duplicates_and_reordering_leave_the_same_state(ways: int) -> None:
    wanted = seen(*SESSION)
    assert wanted.online
    assert (wanted.presence, wanted.reported) == (SESSION[-2], SESSION[-1])
    orders = random.Random(19)
    for _ in range(ways):
        shuffled = orders.choices(SESSION, k=4) + SESSION
        orders.shuffle(shuffled)
        assert seen(*shuffled) == wanted


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=30), st.randoms(use_true_random=False))
def test_row_19_counters_are_exact(seqs: list[int], order: random.Random) -> None:
    sent = seqs * 2
    order.shuffle(sent)
    ledger, counted = Received(boot_id="b"), 0
    for seq in sent:
        ledger, new = ledger.take([seq])
        counted += len(new)
    assert counted == len(set(seqs))
    assert {seq for seq in range(62) if ledger.ack().covers(seq)} == set(seqs)


def test_records_that_were_dropped_leave_no_gap_for_ever() -> None:
    ledger, new = Received(boot_id="b").take([0, 1, 5, 6])
    assert (ledger.up_to, ledger.ranges, new) == (1, ((5, 6),), (0, 1, 5, 6))
    ledger, new = ledger.take([6, 7], floor=5)
    assert (ledger.up_to, ledger.ranges, new) == (7, (), (7,))
    ledger, new = ledger.take([3])
    assert new == ()


def test_a_ledger_stays_small_and_drains() -> None:
    """A device whose every second record was dropped sends what is not acknowledged again."""
    waiting, ledger, counted = list(range(1, 600, 2)), Received(boot_id="b"), 0
    while waiting:
        ledger, new = ledger.take(waiting, floor=waiting[0])
        assert len(ledger.ranges) <= 256
        assert ledger.up_to >= waiting[0]
        assert all(ledger.ack().covers(seq) for seq in new)
        counted += len(new)
        # As agents do: only what has no gap before it is forgotten.
        waiting = [seq for seq in waiting if seq > ledger.up_to]
    assert counted == 300


def test_a_full_ledger_takes_what_fills_its_gaps() -> None:
    full, _ = Received(boot_id="b").take(range(10, 2000, 3))
    assert len(full.ranges) == 256
    beyond = full.ranges[-1][1] + 100
    ledger, new = full.take([beyond, 0, 11])
    assert new == (0, 11)
    assert (ledger.up_to, ledger.ranges[0], len(ledger.ranges)) == (0, (10, 11), 256)
    ledger, new = ledger.take([12])
    assert (ledger.ranges[0], len(ledger.ranges)) == ((10, 13), 255)
    ledger, new = ledger.take([beyond])
    assert new == (beyond,)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_row_20_a_will_that_overtakes_or_comes_late_does_not_lie(late: int) -> None:
    old, new = birth(1, 1), birth(1, 2)
    messages: list[Presence | Reported] = [old, new]
    messages.insert(late, old.as_will())
    assert seen(*messages).online
    # That of the connection itself counts, even before its birth.
    assert not seen(*messages, new.as_will()).online
    assert not seen(new.as_will(), *messages).online


def test_row_20_a_will_of_an_earlier_boot_changes_nothing() -> None:
    assert seen(birth(1, 9), birth(2, 1), birth(1, 9).as_will()).online


def test_a_report_of_a_newer_boot_stands_for_a_birth_on_its_way() -> None:
    view = seen(birth(1, 1), birth(1, 1).as_will())
    assert not view.online
    assert seen(report(2, 0), view=view).online
    assert not DeviceView().online


def test_row_21_a_server_restored_from_a_backup_downgrades_nobody() -> None:
    device = DesiredView().apply(desired(9)).apply(desired(10, B))
    # The server is back at 7, and believes that 8 is next.
    device = device.apply(desired(8, A), retained=True)
    assert (device.epoch, device.regressed_to, device.conflict) == (10, 8, False)
    view = seen(report(1, 0, desired=device.epoch))
    assert view.ahead_of(8)
    assert view.acknowledges(8)
    assert view.next_epoch(8) == 11
    device = device.apply(desired(view.next_epoch(8), A), retained=True)
    assert (device.epoch, device.regressed_to) == (11, None)
    assert not seen(report(1, 1, desired=11), view=view).ahead_of(11)


def test_row_21_a_late_message_is_no_regression() -> None:
    assert DesiredView().apply(desired(2)).apply(desired(1)).regressed_to is None


@settings(max_examples=60, deadline=None)
@given(st.permutations([desired(3, A), desired(3, B), desired(2), desired(3, A), desired(3, B, 1)]))
def test_row_21_two_servers_with_one_epoch_are_a_conflict_everywhere_alike(order: list[Desired]) -> None:
    view = DesiredView()
    for message in order:
        view = view.apply(message)
    assert view == DesiredView(desired=desired(3, B, 1), conflict=True)
    assert not view.apply(desired(4)).conflict


def test_newer_metadata_of_the_same_epoch_is_no_conflict() -> None:
    newer = replace(desired(3, revision=1), sources=("https://mirror.example",))
    view = DesiredView().apply(newer).apply(desired(3))
    assert view == DesiredView(desired=newer)


def test_row_22_two_boots_of_one_epoch_are_clones() -> None:
    one, two = report(6, 0, boot="one"), report(6, 0, boot="two")
    assert not seen(report(5, 0), one).fenced
    view = seen(report(5, 0), one, two)
    assert view.clones == ("one", "two")
    assert seen(two, one, report(5, 0)) == view
    # It stays so, though each has gone on.
    assert seen(report(7, 0, boot="one"), report(6, 1, boot="two"), view=view).fenced


def test_row_22_two_boots_that_alternate_are_clones() -> None:
    view = seen(report(40, 0), now=0)
    view = seen(birth(3, 1), view=view, now=5)
    assert not view.fenced
    view = seen(report(40, 1), view=view, now=100_000)
    view = seen(birth(3, 2), view=view, now=100_005)
    assert view.clones == ("boot3", "boot40")


def test_row_22_what_was_under_way_at_a_restart_is_no_clone() -> None:
    view = seen(birth(1, 1), report(1, 0), birth(2, 1), now=0)
    view = seen(report(1, 1), view=view, now=30)
    # A duplicate, and the will, may be a day late.
    view = seen(report(1, 1), birth(1, 1).as_will(), view=view, now=86_400)
    assert not view.fenced


def test_row_22_a_person_picks_one() -> None:
    view = seen(report(6, 0, boot="one"), birth(6, 1, boot="two"), report(6, 4, boot="two"))
    settled = view.settled("one")
    assert not settled.fenced
    assert settled.reported is None
    settled = seen(report(6, 1, boot="one"), view=settled)
    assert (settled.fenced, settled.reported) == (False, report(6, 1, boot="one"))
    # The other one speaks on, and is not believed.
    assert seen(report(6, 5, boot="two"), birth(6, 2, boot="two"), now=1e6, view=settled) == settled
    # Its next start is another boot, which may be a clone again.
    assert seen(report(6, 0, boot="three"), view=settled).clones == ("one", "three")
    with pytest.raises(ValueError, match="one, two"):
        view.settled("three")


def test_row_22_a_person_who_has_picked_the_wrong_one_picks_again() -> None:
    view = seen(report(6, 0, boot="one"), report(6, 4, boot="two")).settled("one")
    again = view.settled("two")
    assert again.put_out == ("one",)
    assert seen(report(6, 1, boot="one"), report(6, 5, boot="two"), view=again).reported == report(
        6, 5, boot="two"
    )


def test_row_22_of_one_that_has_started_anew_the_newest_boot_is_picked() -> None:
    view = seen(report(4, 0, boot="past"), report(5, 0, boot="one"), report(5, 0, boot="two"))
    view = seen(report(6, 0, boot="anew"), view=view)
    assert view.clones == ("anew", "one", "two")
    with pytest.raises(ValueError, match="none of the boots"):
        view.settled("past")
    view = seen(report(5, 1, boot="two"), now=1e6, view=view.settled("anew"))
    assert (view.fenced, view.reported) == (False, report(6, 0, boot="anew"))


def test_a_view_stays_small() -> None:
    view = seen(*(birth(epoch, 1) for epoch in range(500)))
    assert len(view.boots) == 64
    for epoch in range(500):
        view = seen(birth(epoch, 1, boot=f"again-{epoch}"), now=1e6, view=view)
    assert view.fenced
    assert len(view.alive_after) == 64
