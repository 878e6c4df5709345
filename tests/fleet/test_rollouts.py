"""The planner at every threshold: stages, rings, soak, gate, orders, late devices, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

pytest.importorskip("scipy", reason="rollouts need the extra 'fleet'")

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleet.world import HEALTHY, POISONS, World

from edgec.fleet.rollouts import (
    ORDERS,
    Assign,
    Begin,
    Decision,
    DeviceFacts,
    Facts,
    Finish,
    Hold,
    Look,
    OpenIncident,
    Order,
    Plan,
    Quarantine,
    Rollout,
    Soak,
    Stage,
    State,
    Stop,
    Undo,
    Undone,
    advance,
    cutoff,
    decision_from_dict,
    look_due,
    place,
    plan,
    refusal,
)
from edgec.fleet.store import LoggedDecision
from edgec.fleet.verdicts import Evidence, Limits

T = TypeVar("T", bound=Decision)
OLD, NEW = "a" * 64, "b" * 64
GOOD = World(1).evidence(HEALTHY, candidates=20, controls=20)
BAD = World(2).evidence(POISONS["nan"], candidates=20, controls=20)
SILENT = replace(GOOD, candidate=tuple(replace(d, calls=0) for d in GOOD.candidate))


def make_plan(**more: Any) -> Plan:
    return Plan(**{"id": "r1", "name": "r", "model": "m", "version": "2", "artifacts": {"cpu": NEW}, **more})


class Fleet:
    """Devices that do what a rollout's decisions say, as soon as they are told to."""

    def __init__(self, size: int, **more: Any) -> None:
        self.rollout = Rollout(plan=make_plan(**more))
        self.devices = {f"d{i}": self.new(f"d{i}") for i in range(size)}
        self.now = 1000.0
        self.decisions: list[Decision] = []
        self.fails: set[str] = set()
        self.offline: set[str] = set()
        self.slow: set[str] = set()
        self.deaf: set[str] = set()
        self.evidence: Evidence = GOOD
        self.quarantined: set[str] = set()
        self.order("start")

    def new(self, name: str, hardware: str = "cpu") -> DeviceFacts:
        return DeviceFacts(id=name, hardware=hardware, active=OLD, wanted=OLD)

    def order(self, word: str) -> str | None:
        refused = refusal(self.rollout, word)
        if refused is None:
            self.rollout = Order(word=word, by="ann").apply(self.rollout, self.now)
        return refused

    def step(self, seconds: float = 0.0) -> list[Decision]:
        self.now += seconds
        evidence = self.evidence if look_due(self.rollout, self.now) else None
        facts = Facts(
            devices=tuple(replace(d, reachable=d.id not in self.offline) for d in self.devices.values()),
            evidence=evidence,
            quarantined=frozenset(self.quarantined),
        )
        made = plan(self.rollout, facts, self.now)
        self.rollout = advance(self.rollout, made, self.now)
        self.decisions += made
        for decision in made:
            self.do(decision)
        return made

    def do(self, decision: Decision) -> None:
        if isinstance(decision, Assign):
            self.devices[decision.device] = replace(
                self.devices[decision.device], assigned=decision.digest, previous=decision.previous,
                wanted=decision.digest, assigned_at=self.now, attempts=decision.attempt, phase="assigned",
                noticed=False,
            )  # fmt: skip
            self.work(decision.device)
        elif isinstance(decision, Undo):
            device = replace(self.devices[decision.device], undone=True, wanted=decision.digest)
            if device.id not in self.offline | self.deaf:
                device = replace(device, confirmed=True, active=decision.digest, seen_at=self.now)
            self.devices[device.id] = device
        elif isinstance(decision, Quarantine):
            self.quarantined.add(decision.digest)

    def work(self, name: str) -> None:
        device = self.devices[name]
        if name in self.offline:
            return
        device = replace(device, noticed=True, seen_at=self.now, phase="working")
        if name in self.fails:
            device = replace(device, phase="failed", reason="digest", phase_at=self.now)
        elif name not in self.slow:
            device = replace(device, phase="installed", active=device.assigned, phase_at=self.now)
        self.devices[name] = device

    def ring(self, count: int) -> list[str]:
        return sorted(self.devices, key=lambda d: place("r1", d))[:count]

    def run(self, hours: float = 24, step_s: float = 1200.0) -> list[Decision]:
        begin = len(self.decisions)
        for _ in range(int(hours * 3600 / step_s)):
            self.step(step_s)
        return self.decisions[begin:]

    @property
    def installed(self) -> int:
        return sum(d.active == NEW for d in self.devices.values())


def of(kind: type[T], decisions: Iterable[Decision]) -> list[T]:
    return [d for d in decisions if isinstance(d, kind)]


# Rings and stages


def test_places_are_spread_evenly_and_differ_between_rollouts() -> None:
    devices = [f"dev{i}" for i in range(10_000)]
    for percent in (1, 5, 25):
        share = sum(place("r1", d) < percent * 100 for d in devices)
        assert share == pytest.approx(percent * 100, rel=0.15)
    first = [{d for d in devices if place(salt, d) < 100} for salt in ("r1", "r2")]
    assert len(first[0] & first[1]) < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "stages"),
    [
        (1, [1]),
        (10, [1, 3, 10]),
        (49, [1, 3, 13, 49]),
        (50, [50]),
        (51, [50, 51]),
        (400, [50, 100, 400]),
    ],
)
def test_a_stage_is_fifty_devices_or_all_and_small_fleets_go_by_percent(size: int, stages: list[int]) -> None:
    fleet = Fleet(size)
    fleet.run(hours=12)
    assert fleet.rollout.state == "finished"
    begun = [b.devices for b in of(Begin, fleet.decisions)]
    # Of 400, a quarter is by place in the ring, so about 100.
    assert begun == [pytest.approx(n, rel=0.25 if n == 100 else 0) for n in stages]
    assert fleet.installed == size


def test_stages_of_a_large_fleet_are_its_percentages() -> None:
    fleet = Fleet(10_000)
    sizes = []
    for percent in (1, 5, 25, 100):
        below = cutoff("r1", fleet.devices, percent, 50)
        sizes.append(sum(place("r1", d) < below for d in fleet.devices))
    assert sizes[0] == pytest.approx(100, abs=30)
    assert sizes[1:3] == [pytest.approx(500, rel=0.1), pytest.approx(2500, rel=0.05)]
    assert sizes[3] == 10_000


@pytest.mark.slow
def test_a_stage_contains_the_one_before() -> None:
    fleet = Fleet(300)
    fleet.step()
    first = {a.device for a in of(Assign, fleet.decisions)}
    assert first == set(fleet.ring(len(first)))
    fleet.run(hours=2)
    assert not first & {a.device for a in of(Assign, fleet.decisions[len(first) + 1 :])}


@pytest.mark.slow
def test_other_hardware_is_left_alone() -> None:
    fleet = Fleet(60)
    fleet.devices["npu"] = fleet.new("npu", hardware="npu")
    fleet.run()
    assert fleet.devices["npu"].assigned is None
    assert fleet.rollout.state == "finished"


@pytest.mark.slow
def test_a_fleet_without_eligible_devices_holds_and_tells_a_person() -> None:
    fleet = Fleet(0)
    assert [h.reason for h in of(Hold, fleet.step())] == ["no_devices"]
    told = of(OpenIncident, fleet.run(hours=48))
    assert len(told) == 1
    assert "no device is eligible" in told[0].detail


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": ()},
        {"stages": (Stage(percent=50),)},
        {"stages": (Stage(percent=50), Stage(percent=5), Stage(percent=100))},
        {"stages": (Stage(percent=0), Stage(percent=100))},
        {"artifacts": {}},
        {"quorum": 0},
        {"attempts": 0},
        {"install_s": 0},
    ],
)
def test_a_plan_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stages|artifacts|quorum|attempts|install_s"):
        make_plan(**wrong)


# Quorum, soak and gate


def test_the_soak_begins_with_the_quorum() -> None:
    fleet = Fleet(200)
    fleet.slow = set(fleet.ring(27))
    fleet.step()
    made = fleet.step(60)
    assert not of(Soak, made)
    assert fleet.rollout.held == "installing"
    fleet.slow = set()
    for name in fleet.ring(2):
        fleet.work(name)
    # Two devices have the same place in the ring, so the stage has 51.
    assert of(Soak, fleet.step(60)) == [Soak(ended=26, devices=51)]


def test_the_quorum_of_a_stage_is_of_the_devices_that_it_has_told() -> None:
    """Those of the stage before have ended, and would be a quorum as long as few others were heard of."""
    fleet = Fleet(50, least_devices=10, stages=(Stage(percent=20, soak_s=10), Stage(percent=100, soak_s=10)))
    first = fleet.ring(10)
    fleet.slow = set(fleet.ring(50)) - set(first)
    fleet.offline = set(fleet.ring(50)[13:])
    fleet.step()
    for _ in range(20):
        fleet.step(5)
    assert fleet.rollout.stage == 1
    assert (fleet.rollout.held, fleet.rollout.soaking_since) == ("installing", None)
    fleet.slow, fleet.offline = set(), set()
    for name in fleet.ring(50)[10:]:
        fleet.work(name)
    assert of(Soak, fleet.step(1)) == [Soak(ended=40, devices=40)]


@pytest.mark.slow
def test_looks_come_at_doubling_times_and_at_the_end_of_the_soak() -> None:
    fleet = Fleet(200)
    fleet.step()
    begin = fleet.now
    for _ in range(370):
        fleet.step(10)
        if fleet.rollout.stage:
            break
    looks = of(Look, fleet.decisions)
    assert [look.look for look in looks] == list(range(1, 8))
    assert fleet.now - begin == pytest.approx(3600, abs=30)


@pytest.mark.slow
def test_nothing_goes_on_before_the_soak_is_over() -> None:
    fleet = Fleet(200)
    fleet.run(hours=3590 / 3600, step_s=10)
    assert len(of(Begin, fleet.decisions)) == 1
    fleet.step(60)
    fleet.step(60)
    assert len(of(Begin, fleet.decisions)) == 2


def test_a_bad_release_is_stopped_quarantined_and_undone() -> None:
    fleet = Fleet(400)
    fleet.step()
    fleet.evidence = BAD
    fleet.run(hours=4)
    assert fleet.rollout.state == "undone"
    kinds = [d.kind for d in fleet.decisions if d.kind not in ("assign", "hold")]
    assert kinds == ["begin", "soak", "look", "stop", "quarantine", "incident", *["undo"] * 50, "undone"]
    assert of(Stop, fleet.decisions)[0].reason == "non_finite"
    incident = of(OpenIncident, fleet.decisions)[0]
    assert any(f["metric"] == "non_finite" and f["n"] == 20 for f in incident.evidence["findings"])
    assert {u.digest for u in of(Undo, fleet.decisions)} == {OLD}
    assert fleet.installed == 0


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "state"), [(2, "finished"), (3, "undone")])
def test_three_failed_installs_of_fifty_stop_and_two_do_not(failing: int, state: State) -> None:
    fleet = Fleet(51)
    fleet.fails = set(fleet.ring(50)[:failing])
    fleet.run(hours=12)
    assert fleet.rollout.state == state


def test_failed_installs_are_the_evidence_of_the_stage_that_they_stop() -> None:
    """Also where they stop it before the soak, and so before any look of the gate that was due."""
    views = pytest.importorskip("edgec.fleet.api._views", reason="views need the extra 'fleet'")
    fleet = Fleet(51)
    fleet.slow, fleet.fails = set(fleet.devices), set(fleet.ring(3))
    fleet.step()
    for _ in range(3):
        fleet.step(1)
    assert not of(Soak, fleet.decisions)
    assert fleet.rollout.state == "undone"
    logged = [LoggedDecision(id=i, at=1.0, decision=d) for i, d in enumerate(fleet.decisions)]
    stage = views.view_stages(fleet.rollout, logged)[0]
    assert (stage.state, stage.held, stage.look.outcome, stage.look.reason) == (
        "stopped", "", "fail", "installs",
    )  # fmt: skip
    found = stage.look.findings[0]
    assert (found.metric, found.outcome, found.figure, found.n) == ("installs", "fail", 1, 3)
    assert found.low > found.limit == 0.02
    assert found.detail == "3 of 3 installations failed or never ended"


def test_texts_name_installs_that_failed_without_stopping_it() -> None:
    fleet = Fleet(12, least_devices=1, limits=Limits(install_failures=0.9))
    fleet.fails, fleet.evidence = set(fleet.devices), Evidence()
    fleet.step()
    fleet.step(1)
    assert of(Soak, fleet.decisions) == [Soak(ended=1, devices=1, failed=1)]
    fleet.step(1)
    failed = "1 of 1 installations failed or never ended"
    assert of(Hold, fleet.decisions)[-1].detail == f"3600 s of soak have begun; {failed}"
    look = of(Look, fleet.step(60))[0]
    assert [f["detail"] for f in look.verdict["findings"]] == [failed, f"no device has the release: {failed}"]


def test_failures_that_come_in_while_a_stage_holds_are_told() -> None:
    fleet = Fleet(200)
    fleet.slow = set(fleet.devices)
    fleet.step()
    fleet.step(1)
    fleet.fails = set(fleet.ring(1))
    fleet.work(*fleet.fails)
    words = "1 of 51 devices that were heard of have ended their update"
    told = of(Hold, fleet.step(1))[0]
    assert told.detail == f"{words}; 1 of 1 installations failed or never ended"
    assert fleet.step(1) == []


@pytest.mark.slow
def test_what_never_ends_counts_as_failed_when_its_time_is_over() -> None:
    fleet = Fleet(400)
    fleet.slow = set(fleet.ring(10))
    fleet.step()
    fleet.run(hours=3590 / 3600, step_s=10)
    assert not of(Stop, fleet.decisions)
    fleet.run(hours=2)
    assert fleet.rollout.state == "undone"
    assert of(Stop, fleet.decisions)[0].reason == "installs"


@pytest.mark.slow
def test_missing_data_holds_and_is_never_silent() -> None:
    fleet = Fleet(400)
    fleet.evidence = SILENT
    fleet.rollout = replace(
        fleet.rollout,
        plan=replace(fleet.rollout.plan, limits=replace(fleet.rollout.plan.limits, silent_devices=1)),
    )
    made = fleet.run(hours=60)
    assert len(of(Begin, made)) == 1
    assert [h.reason for h in of(Hold, made)][-1] == "inconclusive"
    assert len(of(Hold, made)) < 5, "the same reason is told once"
    assert [i.reason for i in of(OpenIncident, made)] == ["held"]
    fleet.evidence = GOOD
    fleet.run(hours=300)
    assert fleet.rollout.state == "finished"


@pytest.mark.slow
def test_a_quarantined_digest_stops_its_rollout_wherever_it_is() -> None:
    fleet = Fleet(400)
    fleet.step()
    fleet.quarantined = {NEW}
    assert of(Stop, fleet.step(1))[0].reason == "quarantined"
    fleet.run(hours=1)
    assert fleet.rollout.state == "undone"


@pytest.mark.slow
def test_decisions_are_values_that_survive_the_log() -> None:
    fleet = Fleet(400)
    fleet.run(hours=2)
    fleet.evidence = BAD
    fleet.run(hours=4)
    for decision in fleet.decisions:
        assert decision_from_dict(decision.to_dict()) == decision
    assert Rollout.from_dict(fleet.rollout.to_dict()) == fleet.rollout
    with pytest.raises(ValueError, match="expected a decision"):
        decision_from_dict({"kind": "dance"})


# Late devices


@pytest.mark.slow
def test_a_device_that_joins_late_gets_what_its_place_says() -> None:
    fleet = Fleet(400)
    fleet.run(hours=1)
    stage = fleet.rollout.cutoff
    names = [f"late{i}" for i in range(2000)]
    early = next(n for n in names if place("r1", n) < stage)
    late = next(n for n in names if place("r1", n) > 9000)
    fleet.devices |= {n: fleet.new(n) for n in (early, late)}
    made = fleet.step(1)
    assert early in {a.device for a in of(Assign, made)}
    assert late not in {a.device for a in of(Assign, made)}
    fleet.run(hours=12)
    assert fleet.rollout.state == "finished"
    fleet.devices["after"] = fleet.new("after")
    assert [a.device for a in of(Assign, fleet.step(86400 * 30))] == ["after"]


@pytest.mark.slow
def test_devices_that_never_report_neither_hold_nor_count() -> None:
    fleet = Fleet(400)
    fleet.offline = set(fleet.ring(400)[::3])
    fleet.run(hours=12)
    assert fleet.rollout.state == "finished"
    finish = of(Finish, fleet.decisions)[0]
    assert (finish.installed, finish.devices) == (400 - len(fleet.offline), 400)


@pytest.mark.slow
def test_a_stage_of_devices_that_are_all_away_holds_and_says_so() -> None:
    fleet = Fleet(400)
    fleet.offline = set(fleet.devices)
    made = fleet.run(hours=48)
    assert [h.reason for h in of(Hold, made)] == ["unreached"]
    assert [i.reason for i in of(OpenIncident, made)] == ["held"]
    fleet.offline = set()
    for name in fleet.ring(50):
        fleet.work(name)
    fleet.run(hours=12)
    assert fleet.rollout.state == "finished"


@pytest.mark.slow
def test_a_report_that_comes_days_later_corrects_a_timeout() -> None:
    fleet = Fleet(51)
    late = fleet.ring(1)[0]
    fleet.slow = {late}
    fleet.run(hours=12)
    assert of(Finish, fleet.decisions)[0].installed == 50
    fleet.devices[late] = replace(fleet.devices[late], phase="installed", active=NEW)
    assert fleet.step(86400 * 3) == []
    assert fleet.installed == 51


@pytest.mark.slow
def test_a_device_that_installs_days_after_the_undo_is_told_to_go_back() -> None:
    fleet = Fleet(400)
    fleet.step()
    away = fleet.ring(50)[-1]
    fleet.offline = {away}
    fleet.devices[away] = replace(
        fleet.devices[away], phase="assigned", noticed=False, active=OLD, seen_at=0.0
    )
    fleet.evidence = BAD
    fleet.run(hours=4)
    undone = of(Undone, fleet.decisions)[0]
    assert (undone.confirmed, undone.waiting) == (49, 1)
    # The order waits for it: what it is told to have is what it had.
    assert fleet.devices[away].wanted == OLD
    assert fleet.step(86400 * 5) == []


def shown(fleet: Fleet) -> tuple[str, str]:
    """Return state and hold of the first stage, as the API has them."""
    views = pytest.importorskip("edgec.fleet.api._views", reason="views need the extra 'fleet'")
    logged = [LoggedDecision(id=i, at=1.0, decision=d) for i, d in enumerate(fleet.decisions)]
    stage = views.view_stages(fleet.rollout, logged)[0]
    return stage.state, stage.held


def test_an_undo_waits_for_connected_devices_only_and_says_so() -> None:
    fleet = Fleet(50)
    fleet.step()
    first = fleet.ring(20)
    fleet.offline, fleet.deaf = set(first[:15]), set(first[15:])
    fleet.order("undo")
    (told,) = of(Hold, fleet.step(1))
    assert (told.reason, told.figures) == ("undoing", {"waiting": 35, "away": 15})
    assert fleet.step(180) == []
    assert fleet.rollout.held == "undoing"
    assert shown(fleet) == ("stopped", told.detail)
    for name in fleet.deaf:
        fleet.devices[name] = replace(fleet.devices[name], confirmed=True, active=OLD)
    assert fleet.step(1) == [Undone(confirmed=len(fleet.devices) - 15, waiting=15)]
    assert fleet.rollout.state == "undone"
    assert shown(fleet) == ("stopped", "")
    assert all(fleet.devices[name].wanted == OLD for name in fleet.offline)
    # Who comes back is told nothing else any more.
    fleet.offline = set()
    assert fleet.step(86400) == []


def test_an_undo_waits_two_minutes_for_devices_that_are_away() -> None:
    fleet = Fleet(50)
    fleet.step()
    fleet.offline = set(fleet.devices)
    fleet.order("undo")
    assert [hold.reason for hold in of(Hold, fleet.step(1))] == ["undoing"]
    assert fleet.step(118) == []
    assert fleet.step(1) == [Undone(confirmed=0, waiting=len(fleet.devices))]


def test_a_device_that_is_connected_and_silent_is_waited_for_as_long_as_for_an_update() -> None:
    fleet = Fleet(50)
    fleet.step()
    fleet.deaf = set(fleet.ring(1))
    fleet.now += 1
    fleet.order("undo")
    fleet.step(1)
    assert not of(Undone, fleet.step(3598))
    assert of(Undone, fleet.step(2))[0].waiting == 1


@pytest.mark.slow
@pytest.mark.parametrize("told", [False, True])
def test_an_undo_that_devices_do_not_confirm_ends_and_says_so(told: bool) -> None:
    fleet = Fleet(400)
    fleet.step()
    stuck = fleet.ring(1)[0]
    fleet.order("undo")
    # As after a stop by the gate, of which a person was told.
    fleet.rollout = replace(fleet.rollout, told_long=told)
    fleet.step(1)
    fleet.devices[stuck] = replace(fleet.devices[stuck], confirmed=False, seen_at=fleet.now + 1)
    fleet.rollout = replace(fleet.rollout, state="undoing")
    made = fleet.run(hours=48)
    assert [i.reason for i in of(OpenIncident, made)] == ["not_undone"]
    assert of(OpenIncident, made)[0].evidence == {"devices": [stuck]}
    assert fleet.rollout.state == "undone"


# Orders


@pytest.mark.slow
def test_a_pause_stops_everything_and_a_resume_goes_on() -> None:
    fleet = Fleet(400)
    fleet.step()
    assert fleet.order("pause") is None
    assert fleet.run(hours=10) == []
    assert fleet.order("resume") is None
    fleet.run(hours=12)
    assert fleet.rollout.state == "finished"


def test_an_abort_leaves_what_is_installed() -> None:
    fleet = Fleet(400)
    fleet.step()
    assert fleet.order("abort") is None
    assert fleet.run(hours=10) == []
    assert fleet.installed == 50
    assert fleet.order("undo") is None
    fleet.run(hours=2)
    assert (fleet.rollout.state, fleet.installed) == ("undone", 0)


@pytest.mark.slow
def test_a_retry_tells_devices_that_failed_once_more() -> None:
    fleet = Fleet(51)
    fleet.fails = set(fleet.ring(2))
    fleet.run(hours=0.5, step_s=300)
    assert not [a for a in of(Assign, fleet.decisions) if a.attempt > 1]
    fleet.fails = set()
    assert fleet.order("retry") is None
    assert {(a.device, a.attempt, a.previous) for a in of(Assign, fleet.step(1))} == {
        (d, 2, OLD) for d in fleet.ring(2)
    }
    assert not of(Assign, fleet.step(1))


@pytest.mark.slow
def test_attempts_of_the_plan_are_made_without_an_order() -> None:
    fleet = Fleet(51, attempts=3)
    fleet.fails = set(fleet.ring(1))
    fleet.run(hours=0.5, step_s=300)
    assert [a.attempt for a in of(Assign, fleet.decisions) if a.device in fleet.fails] == [1, 2, 3]


STATES: Sequence[State] = ("draft", "running", "paused", "aborted", "undoing", "undone", "finished")
ACCEPTED = {
    "start": {"draft"},
    "pause": {"running", "undoing"},
    "resume": {"paused"},
    "abort": {"draft", "running", "paused"},
    "undo": {"running", "paused", "aborted", "finished"},
    "retry": {"running", "paused"},
}


@pytest.mark.parametrize("word", ORDERS)
@pytest.mark.parametrize("state", STATES)
def test_every_order_in_every_state_is_accepted_or_refused_with_a_reason(word: str, state: State) -> None:
    rollout = Rollout(plan=make_plan(), state=state, cutoff=100)
    refused = refusal(rollout, word)
    assert (refused is None) == (state in ACCEPTED[word]), refused
    assert refused is None or len(refused) > 10


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of start"):
        refusal(Rollout(plan=make_plan()), "dance")


def test_a_paused_undoing_cannot_be_aborted_half_way() -> None:
    rollout = Rollout(plan=make_plan(), state="paused", resumes="undoing")
    assert refusal(rollout, "abort") == "it is being undone, and that is never left half-way"


@pytest.mark.slow
@given(
    orders=st.lists(st.tuples(st.sampled_from(ORDERS), st.floats(0, 30_000)), max_size=8),
    poison=st.booleans(),
    offline=st.integers(0, 60),
)
@settings(max_examples=25, deadline=None)
def test_whatever_is_ordered_a_rollout_that_is_left_alone_ends(
    orders: list[tuple[str, float]], poison: bool, offline: int
) -> None:
    fleet = Fleet(60, stages=(Stage(percent=50, soak_s=600), Stage(percent=100, soak_s=600)))
    fleet.offline = set(fleet.ring(offline))
    for word, wait in orders:
        fleet.order(word)
        fleet.step(wait)
    fleet.evidence = BAD if poison else GOOD
    fleet.order("resume")
    fleet.run(hours=60, step_s=3000)
    held = fleet.rollout.held == "unreached" and fleet.rollout.told_long
    assert fleet.rollout.state in ("finished", "undone", "aborted", "draft") or held
    if fleet.rollout.state == "undone":
        assert all(d.wanted == OLD for d in fleet.devices.values())
