"""Runner, store and slots together, with actions that fail, hang, and die, in any order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.device_agent.kill_driver import MEMORY
from tests.device_agent.world import Device, World, agrees, reported, serves, wanted

from edgec.device_agent._actions import Context, PostponedError, WorkFailedError
from edgec.device_agent._events import Abort, Crashed, Desired, Linked, Work


class Faulty(World):
    """Actions that do what they are told to, once."""

    next: str = ""

    def _judge(self, work: Work, context: Context) -> None:
        context.check()
        order, self.next = self.next, ""
        if order == "fail":
            raise WorkFailedError("poison", "found bad")
        if order == "pass":
            raise WorkFailedError("away", "no link", passing=True)
        if order == "later":
            raise PostponedError("power", "on battery")
        if order == "full":
            raise OSError(28, "No space left on device")

    admit = confirm = self_test = shadow = watch = _judge

    def switch(self, work: Work, context: Context) -> None:
        if self.next == "late":
            # It has switched, and fails all the same.
            self.next = "fail"
            super().switch(work, context)
        self._judge(work, context)
        super().switch(work, context)

    def roll_back(self, work: Work, context: Context) -> None:
        self._judge(work, context)
        super().roll_back(work, context)

    def clean(self, work: Work, context: Context) -> None:
        self._judge(work, context)
        super().clean(work, context)


class Updates(RuleBasedStateMachine):
    """A device that lives through anything."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY))
        self.epoch = 0
        self.wish: str | None = None
        self.removed = False
        self.begun: list[Callable[[], None]] = []
        self.world = Faulty(self.root)
        self.device = Device(self.root, self.world, spawn=self.begun.append)

    @rule(name=st.sampled_from(["v1", "v2", "v3"]), retry=st.booleans())
    def want(self, name: str, retry: bool) -> None:
        self.epoch += 1
        self.wish = name
        self.device.runner.post(Desired(now=self.device.now(), wanted=wanted(self.epoch, name, retry=retry)))

    @rule()
    def want_nothing(self) -> None:
        self.epoch += 1
        self.removed, self.wish = True, None
        self.device.runner.post(Desired(now=self.device.now(), wanted=wanted(self.epoch, None)))

    @rule()
    def want_again_what_is_old(self) -> None:
        self.device.runner.post(Desired(now=self.device.now(), wanted=wanted(max(self.epoch - 1, 0), "v1")))

    @rule(fault=st.sampled_from(["", "", "", "fail", "pass", "later", "full", "late"]))
    def work(self, fault: str) -> None:
        self.device.runner.poll()
        self.world.next = fault
        for begun in self.begun[:]:
            self.begun.remove(begun)
            begun()
        self.device.runner.poll()

    @rule(times=st.integers(1, 12))
    def go_on(self, times: int) -> None:
        for _ in range(times):
            self.work("")

    @precondition(lambda self: self.begun)
    @rule()
    def hang(self) -> None:
        self.begun.clear()
        self.device.seconds += 200_000.0
        self.device.runner.poll()

    @rule(seconds=st.sampled_from([0.5, 5.0, 2000.0]))
    def pass_time(self, seconds: float) -> None:
        self.device.seconds += seconds
        self.device.runner.poll()

    @rule()
    def abort(self) -> None:
        self.device.runner.post(Abort(now=self.device.now()))
        self.device.runner.poll()

    @rule()
    def crash_of_the_application(self) -> None:
        self.device.runner.post(Crashed(now=self.device.now()))

    @rule()
    def link_comes_back(self) -> None:
        self.device.runner.post(Linked(now=self.device.now()))

    @rule(clean=st.booleans(), database=st.sampled_from(["kept", "kept", "lost", "garbled"]))
    def restart(self, clean: bool, database: str) -> None:
        self.begun.clear()
        if clean:
            self.device.store.stop()
        self.device.close()
        path = self.root / "agent" / "updates.db"
        if database == "lost":
            shutil.rmtree(self.root / "agent")
        elif database == "garbled":
            path.write_bytes(bytes(255 - b for b in path.read_bytes()))
        self.world = Faulty(self.root)
        self.device = Device(self.root, self.world, spawn=self.begun.append)

    @invariant()
    def something_whole_serves(self) -> None:
        name = serves(self.root)
        state = self.device.state
        if name is None:
            assert state.active is None or state.phase in ("removing", "rolling_back", "switched", "failed")
            assert state.active is None or self.removed or state.fallback is None

    def check_end(self) -> None:
        """The newest wish has come to an end, which was reported and is what serves."""
        served, ends = serves(self.root), reported(self.root, self.epoch)
        assert ends
        if ends[-1] in ("committed", "unchanged", "removed"):
            assert served == self.wish
        else:
            assert ends[-1] in ("failed", "rolled_back", "refused", "aborted")
            # A wish for what serves anyway may be stopped before it is begun.
            assert served != self.wish or self.wish is None or ends[-1] == "aborted"

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.device.close()
            shutil.rmtree(self.root)

    def come_to_an_end(self) -> None:
        """Let all that is under way succeed, and look at what has become of it."""
        self.world.next = ""
        self.device.runner._spawn = lambda work: work()
        state = self.device.settle(rounds=20_000)
        for _ in range(2):
            while self.begun:
                self.begun.pop(0)()
            state = self.device.settle(rounds=20_000)
        assert state.phase == "idle", f"it does not end: {state}"
        agrees(self.root, state)
        if self.epoch and state.epoch == self.epoch:
            self.check_end()


@pytest.mark.slow
def test_runner_store_and_slots_live_through_anything() -> None:
    run_state_machine_as_test(
        Updates,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
        ),
    )
