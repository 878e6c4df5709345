"""What devices in the field go through, by rows of the fault matrix; kills are in `test_kill`."""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.device_agent.kill_driver import MEMORY, tapped
from tests.device_agent.test_update_states import events, seeds
from tests.device_agent.updates import NOW, QUICK
from tests.device_agent.world import DIGEST, LIMITS, MODEL, Device, World, agrees, reported, serves, wanted

from edgec.device_agent._courses import BEFORE_SWITCH
from edgec.device_agent._events import (
    Abort,
    Acknowledged,
    Crashed,
    Desired,
    Event,
    Linked,
    Tick,
    Work,
)
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import State
from edgec.device_agent._store import Store
from edgec.device_agent._turn import WORK
from edgec.device_agent._update import ABORT_REFUSED, step
from edgec.errors import AgentError

BEFORE = ("admit", "reserve", "fetch", "verify", "stage", "confirm", "self_test", "switch", "watch")
ALL_WORK = (*BEFORE, "commit", "clean", "roll_back", "remove")


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a directory of its own, in memory where there is room for that."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)
        for device in list(Device.started):
            device.close()


def device_with(root: Path, *versions: str, world: World | None = None) -> Device:
    """Return a device that has installed versions one after the other."""
    device = Device(root, world or World(root))
    for epoch, name in enumerate(versions, start=1):
        assert device.want(epoch, name).phase == "idle"
    return device


def meanwhile(name: str, act: Callable[[], object]) -> Callable[[Work], None]:
    """Return a hook that does something once, when a piece of work begins."""
    done: list[str] = []

    def hook(work: Work) -> None:
        if work.name == name and not done:
            done.append(name)
            act()

    return hook


@pytest.mark.parametrize("wall_s", [0.0, 4_102_444_800.0, -1e9])
def test_row_15_the_wall_clock_decides_nothing(wall_s: float) -> None:
    for state in seeds():
        for event in events(state):
            there = replace(event, now=replace(event.now, wall_s=wall_s))
            (one, effects), (other, others) = step(state, event, QUICK), step(state, there, QUICK)
            assert timeless(one) == timeless(other)
            assert len(effects) == len(others)


def timeless(state: State) -> State:
    """Return a state without times of the wall clock."""
    return replace(
        state,
        since_s=0.0,
        reports=tuple(replace(r, at_s=0.0) for r in state.reports),
        quarantine=tuple(replace(q, at_s=0.0) for q in state.quarantine),
    )


def test_row_15_a_wall_clock_that_jumps_all_the_time_changes_no_end(root: Path) -> None:
    times = iter([0.0, 4_102_444_800.0, 1_700_000_000.0, 1_699_996_400.0] * 1000)
    device = Device(root, World(root, bad={"v3": "watch"}), wall=lambda: next(times))
    assert [device.want(1, "v1").verdict, device.want(2, "v2").verdict] == ["committed", "committed"]
    assert agrees(root, device.want(3, "v3")) == "v2"
    assert reported(root, 3) == ["rolled_back"]


def test_row_16_what_cannot_fit_is_refused_before_anything_is_fetched(root: Path) -> None:
    device = device_with(root, "v1", "v2")
    huge = replace(wanted(3, "v3"), length=2**50)
    state = device.settle(Desired(now=device.now(), wanted=huge))
    assert (state.verdict, state.reason, state.phase) == ("failed", "disk_full", "idle")
    assert "free" in state.detail
    assert agrees(root, state) == "v2"
    assert state.previous is not None, "the way back was not given up for space"
    assert reported(root, 3) == ["failed"]


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [1, 40])
def test_row_16_a_disk_that_is_full_at_any_write_costs_no_model(root: Path, lasting: int) -> None:
    before = device_with(root / "template", "v1")
    before.store.stop()
    every: list[str] = []
    trial(root, every.append)
    assert len(every) > 100
    for first in range(0, len(every), 1 if lasting == 1 else 5):
        trial(root, full_from(first, first + lasting))


def trial(root: Path, tap: Callable[[str], None]) -> None:
    """Run an update on a copy of a device; it must end with the old or the new one, and be reported."""
    copy = Path(shutil.copytree(root / "template", root / "copy", symlinks=True))
    with tapped(tap):
        device = Device(copy, World(copy))
        state = device.want(2, "v2", rounds=1500)
    assert state.phase == "idle", f"it does not end: {state}"
    assert state.active is not None
    assert serves(copy) == state.active.target
    (end,) = reported(copy, 2)
    assert end in ({"committed"} if serves(copy) == "v2" else {"failed", "rolled_back"})
    device.close()
    shutil.rmtree(copy)


def full_from(first: int, until: int) -> Callable[[str], None]:
    """Return a tap that lets touches of the disk fail from one number on."""
    count = 0

    def tap(label: str) -> None:
        nonlocal count
        count += 1
        writes = label.startswith("before") and label not in ("before unlink", "before commit")
        if writes and first < count <= until:
            raise OSError(errno.ENOSPC, "No space left on device")

    return tap


def test_row_17_a_damaged_database_is_made_anew_from_the_mirrors(root: Path) -> None:
    device = device_with(root, "v1", "v2")
    before = device.state
    device.close()
    path = root / "agent" / "updates.db"
    for content in (b"", b"SQLite format 3\0" + b"\xff" * 8000, bytes(4096), garbled(path.read_bytes())):
        path.write_bytes(content)
        world = World(root)
        device = Device(root, world)
        assert device.state == before
        assert device.store.trouble is None
        assert agrees(root, device.settle()) == "v2"
        before = device.state
        assert device.store.boot > 1, "starts are counted on"
        device.close()
    device = Device(root, World(root))
    assert agrees(root, device.want(3, "v1")) == "v1"


def garbled(content: bytes) -> bytes:
    """Return a file with its header, and pages that say something else."""
    return content[:100] + bytes(255 - b for b in content[100:])


def test_row_17_a_log_that_is_rolled_back_does_not_roll_the_device_back(root: Path) -> None:
    device = device_with(root, "v1")
    backup = {p: p.read_bytes() for p in (root / "agent").glob("updates.db*")}
    device.want(2, "v2")
    device.close()
    for path in (root / "agent").glob("updates.db*"):
        path.unlink()
    for path, content in backup.items():
        path.write_bytes(content)
    device = Device(root, World(root))
    assert device.state.epoch == 2
    assert agrees(root, device.settle()) == "v2"


def test_row_17_with_every_note_lost_the_slots_tell_what_is_there(root: Path) -> None:
    device_with(root, "v1", "v2").close()
    shutil.rmtree(root / "agent")
    (root / "models" / MODEL / "update.json").write_text("{")
    device = Device(root, World(root))
    assert agrees(root, device.state) == "v2"
    assert device.state.previous is not None
    assert device.want(7, "v2").verdict == "unchanged"
    assert agrees(root, device.want(8, "v1")) == "v1"


def test_row_17_a_database_that_cannot_be_written_keeps_serving_and_refuses_what_is_new(root: Path) -> None:
    world = World(root)
    device = device_with(root, "v1", world=world)
    make_read_only(device.store)
    state = device.settle(Desired(now=device.now(), wanted=wanted(2, "v2")), rounds=2)
    assert state.epoch in (1, 2)
    assert agrees(root, state) in ("v1", "v2")
    assert device.runner.degraded == "read_only"
    make_read_only(device.store)
    device.runner.post(Desired(now=device.now(), wanted=wanted(3, "v3")))
    device.runner.poll()
    assert [r.result for r in world.told if r.reason == "degraded"] == ["refused"]
    assert [r.reason for r in world.told if r.result == "degraded"] == ["read_only"]
    # A new connection can write again: what was refused is taken up.
    state = device.settle()
    assert agrees(root, state) == "v3"
    assert "recovered" in [r.result for r in world.told]
    assert device.runner.degraded is None


def test_row_17_an_update_under_way_ends_through_the_mirror(root: Path) -> None:
    world = World(root, bad={"v2": "watch"})
    device = device_with(root, "v1", world=world)
    world.hook = meanwhile("self_test", lambda: make_read_only(device.store))
    # Not written in the database, and so refused afterwards; but not left half done.
    for _ in range(30):
        device.runner.post(Tick(now=device.now()))
        if device.state.epoch == 1:
            device.runner.post(Desired(now=device.now(), wanted=wanted(2, "v2")))
        device.runner.poll()
    assert device.runner.degraded == "read_only"
    assert device.state.phase == "cleaned"
    assert agrees(root, device.state) == "v1"
    device.close()
    device = Device(root, World(root))
    assert device.state.quarantined(DIGEST["v2"]) is not None
    assert agrees(root, device.settle()) == "v1"


def make_read_only(store: Store) -> None:
    """Let SQLite refuse every write of a connection, as on a disk that was mounted read-only."""
    assert store._database is not None
    store._database.execute("PRAGMA query_only = ON")


def test_row_16_and_17_a_database_that_is_full_is_said_to_be(root: Path) -> None:
    device = device_with(root, "v1")
    store = device.store
    assert store._database is not None
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(200):
        store.note(0.0, MODEL, "filler", "x" * 4000)
        if store.trouble:
            break
    assert store.trouble == "full"
    device.runner.poll()
    assert device.runner.degraded == "full"
    assert agrees(root, device.settle()) == "v1"


def test_an_agent_has_its_directory_for_itself(root: Path) -> None:
    device = device_with(root, "v1")
    with pytest.raises(AgentError, match="another agent"):
        Store(root / "agent", root / "models")
    device.close()
    Store(root / "agent", root / "models").close()


@pytest.mark.parametrize("name", ["verify", "self_test", "switch", "watch"])
def test_row_23_a_candidate_that_kills_the_agent_again_and_again_is_given_up(root: Path, name: str) -> None:
    device_with(root, "v1").close()
    deaths = 0
    while True:
        world = World(root)
        listen(world, name, meanwhile(name, suicide))
        device = Device(root, world)
        try:
            device.want(2, "v2", rounds=60)
            break
        except Died:
            deaths += 1
            device.close()
    assert deaths == (LIMITS.crashes if name == "watch" else LIMITS.interruptions)
    assert agrees(root, device.state) == "v1"
    assert device.state.reason == "crash_loop"
    assert reported(root, 2) == ["rolled_back" if name in ("switch", "watch") else "failed"]
    assert device.want(3, "v2").reason == "quarantined"
    assert reported(root, 3) == ["refused"]
    device.close()
    device = Device(root, World(root))
    assert agrees(root, device.want(4, "v2", retry=True)) == "v2"


class Died(BaseException):
    """The process is gone."""


def suicide() -> None:
    """Die."""
    raise Died


def test_row_23_crashes_of_the_application_in_probation_count_unless_they_are_rare() -> None:
    state = seeds()[5]
    assert state.phase == "probation"
    for gap_s, expected in ((QUICK.calm_s + 1, "probation"), (1.0, "rolling_back")):
        now = NOW
        after = state
        for _ in range(QUICK.crashes):
            now = replace(now, mono_s=now.mono_s + gap_s)
            after = step(step(after, Tick(now=now), QUICK)[0], Crashed(now=now), QUICK)[0]
            after = replace(after, deadline_s=None)
        assert after.phase == expected


@pytest.mark.parametrize("name", [w for w in ALL_WORK if w not in ("clean", "commit")])
def test_row_27_work_that_hangs_ends_in_a_failure_that_is_reported(root: Path, name: str) -> None:
    bad = {"v2": "watch"} if name == "roll_back" else {}
    device_with(root, "v1").close()
    device = Device(root, World(root, bad), spawn=lambda work: work())
    device.runner._spawn = hanging(device, name)
    epoch, version = 2, None if name == "remove" else "v2"
    state = device.want(epoch, version, rounds=900)
    assert state.phase in ("idle", "cleaned"), state.phase
    assert agrees(root, state) == ("v2" if name == "roll_back" else "v1")
    (end,) = set(reported(root, epoch))
    assert end == ("rolled_back" if name in ("switch", "watch") else "failed")
    device.close()
    # And a rollback that was given up is taken up at the next start.
    device = Device(root, World(root))
    assert agrees(root, device.settle()) == "v1"


def hanging(device: Device, name: str) -> Callable[[Callable[[], None]], None]:
    """Return what starts all work but one kind, of which nothing is ever heard; time flies meanwhile."""

    def spawn(work: Callable[[], None]) -> None:
        if device.runner.state.work and name == piece(device.runner.state):
            device.seconds += 100_000.0
        else:
            work()

    return spawn


def piece(state: State) -> str:
    """Return the work that a state is at."""
    return WORK[state.phase][state.done]


def test_row_27_a_switch_that_wakes_up_late_decides_nothing(root: Path) -> None:
    device_with(root, "v1").close()
    asleep, wake = threading.Event(), threading.Event()

    def sleep() -> None:
        asleep.set()
        assert wake.wait(30)

    world = World(root)
    threads: list[threading.Thread] = []

    def spawn(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        if piece(device.runner.state) != "switch":
            threads[-1].join()

    slow = meanwhile("switch", sleep)
    plain = world.switch
    world.switch = lambda work, context: (slow(work), plain(work, context))[1]  # type: ignore[method-assign]
    device = Device(root, world, spawn=spawn)
    device.runner.post(Desired(now=device.now(), wanted=wanted(2, "v2")))
    while not asleep.is_set():
        device.runner.poll(0.01)
    device.seconds += 1000.0
    state = device.settle(rounds=3000)
    assert agrees(root, state) == "v1"
    assert reported(root, 2) == ["rolled_back"]
    wake.set()
    for thread in threads:
        thread.join()
    assert agrees(root, device.settle()) == "v1"


@pytest.mark.parametrize("name", [w for w in ALL_WORK if w not in ("reserve", "stage")])
def test_row_28_an_order_to_stop_is_answered_and_ends(root: Path, name: str) -> None:
    world = World(root, bad={"v2": "watch"} if name == "roll_back" else {})
    device = device_with(root, "v1", world=world)
    hook = meanwhile(name, lambda: device.runner.post(Abort(now=device.now())))
    listen(world, name, hook)
    phase_of = {
        "clean": "committed",
        "commit": "committed",
        "roll_back": "rolling_back",
        "remove": "removing",
    }
    state = device.want(2, None if name == "remove" else "v2")
    (answer,) = [r for r in world.told if r.result.startswith("abort_")]
    if name in phase_of:
        assert (answer.result, answer.reason) == ("abort_refused", ABORT_REFUSED[phase_of[name]])  # type: ignore[index]
        assert agrees(root, state) == {"roll_back": "v1", "remove": None}.get(name, "v2")
    else:
        assert answer.result == "abort_accepted"
        assert agrees(root, state) == "v1"
        assert reported(root, 2) == ["aborted"]
        assert state.quarantined(DIGEST["v2"]) is None


def listen(world: World, name: str, hook: Callable[[Work], None]) -> None:
    """Have a hook called when a piece of work begins, whoever does it."""
    plain = getattr(world, name)

    def heard(work: Work, context: object) -> None:
        hook(work)
        plain(work, context)

    setattr(world, name, heard)


@pytest.mark.slow
@pytest.mark.parametrize("name", [w for w in ALL_WORK if w != "remove"])
@pytest.mark.parametrize("newest", ["v1", "v2", "v3", None])
def test_a_newer_wish_in_the_middle_of_anything_is_what_comes_about(
    root: Path, name: str, newest: str | None
) -> None:
    world = World(root, bad={"v2": "watch"} if name == "roll_back" else {})
    device = device_with(root, "v1", world=world)
    wish = Desired(now=device.now(), wanted=wanted(3, newest))
    listen(world, name, meanwhile(name, lambda: device.runner.post(wish)))
    state = device.want(2, "v2")
    refused = name == "roll_back" and newest == "v2"
    assert agrees(root, state) == ("v1" if refused else newest)
    (end,) = reported(root, 3)
    assert end in ({"refused"} if refused else {"committed", "unchanged", "removed"})
    if newest != "v2":
        assert len(reported(root, 2)) == 1, "the one before has an end too"


def test_row_29_an_end_that_cannot_be_reported_is_kept_and_sent_later(root: Path) -> None:
    device_with(root, "v1").close()
    world = World(root)
    device = Device(root, world)
    run_until(device, "cleaned", Desired(now=device.now(), wanted=wanted(2, "v2")))
    for _start in range(3):
        device.close()
        world = World(root)
        device = Device(root, world)
        device.runner.poll()
        assert [(r.result, r.epoch) for r in world.told] == [("committed", 2)]
        device.runner.post(Linked(now=device.now()))
        device.runner.poll()
        assert [r.epoch for r in world.told] == [2, 2]
        assert device.state.phase == "cleaned"
    (report,) = device.state.reports
    device.runner.post(Acknowledged(now=device.now(), seq=report.seq))
    device.runner.poll()
    assert device.state.phase == "idle"
    assert device.state.reports == ()


def test_row_29_a_report_that_cannot_be_put_away_is_put_away_later(root: Path) -> None:
    class Stubborn(World):
        refusals = 3

        def report(self, model: str, report: object) -> None:
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
            super().report(model, report)  # type: ignore[arg-type]

    device = Device(root, Stubborn(root))
    run_until(device, "cleaned", Desired(now=device.now(), wanted=wanted(1, "v1")))
    for _ in range(20):
        device.seconds += 1.0
        device.runner.poll()
    assert reported(root, 1) == ["committed"]


def run_until(device: Device, phase: str, *posted: Event) -> None:
    """Take events in until a phase is reached, without a server that acknowledges."""
    for event in posted:
        device.runner.post(event)
    for _ in range(60):
        device.runner.poll()
        if device.state.phase == phase and not device.state.work:
            return
    raise AssertionError(f"{phase} is not reached; it stays {device.state.phase}")


def test_every_phase_has_an_answer_to_an_order_to_stop() -> None:
    assert not BEFORE_SWITCH & ABORT_REFUSED.keys()


def test_slots_that_were_changed_by_hand_are_not_taken_for_what_they_were(root: Path) -> None:
    device = device_with(root, "v1", "v2")
    assert device.state.previous is not None
    Slots(root / "models", MODEL).artifact(device.state.previous.slot).write_bytes(b"x" * 9000)
    state = device.want(3, "v1")
    assert agrees(root, state) == "v1"
    assert reported(root, 3) == ["committed"], "it was fetched again"


def test_a_slot_that_is_damaged_before_the_switch_is_not_blamed_on_the_artifact(root: Path) -> None:
    world = World(root)
    device = device_with(root, "v1", world=world)
    path = Slots(root / "models", MODEL).artifact("b")
    world.hook = meanwhile("self_test", lambda: path.write_bytes(b"half"))
    state = device.want(2, "v2")
    assert (agrees(root, state), state.verdict, state.reason) == ("v1", "rolled_back", "slot_damaged")
    assert state.quarantined(DIGEST["v2"]) is None
    assert agrees(root, device.want(3, "v2")) == "v2"


def test_updates_that_fail_for_now_are_given_up_and_only_so_often_begun(root: Path) -> None:
    def away(work: Work) -> None:
        if work.name == "fetch":
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    world = World(root, hook=away)
    device = device_with(root, "v1")
    device.close()
    device = Device(root, world)
    last = LIMITS.tries + 1
    for epoch in range(2, last + 1):
        state = device.want(epoch, "v2")
        assert (state.verdict, state.reason) == ("failed", "link")
        assert "given up after 5 attempts" in state.detail
    assert device.want(last + 1, "v2").reason == "too_many_tries"
    world.hook = None
    assert agrees(root, device.want(last + 2, "v2", retry=True)) == "v2"
    assert device.state.tries == ()
