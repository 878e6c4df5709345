"""Kills agents in the middle of updates, again and again, and looks at what is left.

    python -m tests.device_agent.kill_driver --kills 1000

Each agent is a process of its own, forked from this one, and dies by SIGKILL: first once at every
instruction that touches the disk, before and after it, in every kind of update; then at times drawn by
chance, up to three times in one update. After each death the link must lead to a whole artifact, the old or
the new one; after the last, another start must bring the update to its end, with everything on disk agreeing,
no strays, and the end reported.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.device_agent.world import Device, World, agrees, reported, serves

from edgec.device_agent._store import Store

# Neither a SIGKILL nor a simulated power cut needs a real disk.
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
Tap = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """An update, from what to what.

    Attributes:
        before: Versions installed one after the other beforehand.
        want: The version wanted then; None for removal.
        after: What serves in the end.
        result: How the end is reported.
        bad: Who finds which version bad.
        ahead: Whether it is wanted to be fetched first, and to be installed then.
    """

    before: tuple[str, ...]
    want: str | None
    after: str | None
    result: str
    bad: dict[str, str] = field(default_factory=dict)
    ahead: bool = False

    @property
    def epoch(self) -> int:
        """Of the update; the ones before have those before."""
        return len(self.before) + 1 + self.ahead

    @property
    def old(self) -> str | None:
        """What serves at first."""
        return self.before[-1] if self.before else None


SCENARIOS = {
    "update": Scenario(before=("v1",), want="v2", after="v2", result="committed"),
    "third": Scenario(before=("v1", "v2"), want="v3", after="v3", result="committed"),
    "back": Scenario(before=("v1", "v2"), want="v1", after="v1", result="committed"),
    "first": Scenario(before=(), want="v1", after="v1", result="committed"),
    "rollback": Scenario(before=("v1",), want="v2", after="v1", result="rolled_back", bad={"v2": "watch"}),
    "gate": Scenario(before=("v1",), want="v2", after="v1", result="failed", bad={"v2": "self_test"}),
    "first_bad": Scenario(before=(), want="v1", after=None, result="rolled_back", bad={"v1": "watch"}),
    "ahead": Scenario(before=("v1",), want="v2", after="v2", result="committed", ahead=True),
    "remove": Scenario(before=("v1",), want=None, after=None, result="removed"),
}


@contextmanager
def tapped(tap: Tap) -> Iterator[None]:
    """Have `tap` called around everything that changes the disk."""
    originals: list[tuple[Any, str, Any]] = []

    def wrap(owner: Any, name: str, before: str, after: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return original(*args, **kwargs)
            tap(before)
            result = original(*args, **kwargs)
            tap(after)
            return result

        originals.append((owner, name, original))
        setattr(owner, name, wrapped)

    wrap(os, "open", "before write", "file made")
    wrap(os, "fsync", "after write", "after fsync")
    wrap(os, "replace", "before rename", "after rename")
    wrap(os, "symlink", "before link", "link made")
    wrap(os, "unlink", "before unlink", "after unlink")
    wrap(os, "mkdir", "before directory", "directory made")
    wrap(Store, "_write", "before commit", "after commit")
    try:
        yield
    finally:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)


def install(root: Path, scenario: Scenario) -> None:
    """Bring a device to where the update begins."""
    device = Device(root, World(root))
    for epoch, name in enumerate(scenario.before, start=1):
        device.want(epoch, name)
    device.close()


def update(root: Path, scenario: Scenario) -> None:
    """Start an agent, let the fleet want what it wants, and see it through."""
    device = Device(root, World(root, scenario.bad))
    if scenario.ahead:
        device.want(scenario.epoch - 1, scenario.want, prepare=True)
    state = device.want(scenario.epoch, scenario.want)
    assert state.phase == "idle", f"it does not end: {state}"
    agrees(root, state)
    device.store.stop()


def forked(work: Callable[[], None]) -> int:
    """Run in a child process; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    _pid, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def taps_of(root: Path, scenario: Scenario) -> list[str]:
    """Return what an update that is left alone does to the disk, in order."""
    seen: list[str] = []
    with tapped(seen.append):
        update(root, scenario)
    return seen


def die_at(number: int) -> Tap:
    """Return a tap that kills its process at the n-th call."""
    count = 0

    def tap(_label: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return tap


def check_killed(root: Path, scenario: Scenario) -> None:
    """Look at a device whose agent is dead, as an application in another process would."""
    served = serves(root)
    allowed = {scenario.old, scenario.want, scenario.after}
    assert served in allowed, f"{served} serves, instead of one of {allowed}"


def check_ended(root: Path, scenario: Scenario, deaths: int) -> None:
    """Look at a device whose update is over."""
    served, ends = serves(root), set(reported(root, scenario.epoch))
    if deaths <= 1 or served == scenario.after:
        assert served == scenario.after, f"{served} serves in the end, not {scenario.after}"
        assert ends == {scenario.result} or deaths > 1, f"reported as {ends}, not as {scenario.result}"
    # Who dies again and again during one piece of work blames the candidate: back to the old one.
    assert served in (scenario.old, scenario.after), f"{served} serves in the end"
    assert len(ends) == 1, f"reported as {ends}"


def update_with_deaths(root: Path, scenario: Scenario, deaths: list[Callable[[], int]]) -> int:
    """Run an update that is killed; return how often it was."""
    killed = 0
    for death in deaths:
        status = ended(death())
        assert status in (0, -signal.SIGKILL), f"the agent failed with {status}"
        killed += status != 0
        check_killed(root, scenario)
    assert ended(forked(lambda: update(root, scenario))) == 0, "the agent does not come back"
    check_ended(root, scenario, killed)
    return killed


def at_tap(root: Path, scenario: Scenario, number: int) -> Callable[[], int]:
    """Return a start of an agent that dies at its n-th touch of the disk."""

    def run() -> None:
        with tapped(die_at(number)):
            update(root, scenario)

    return lambda: forked(run)


def at_time(root: Path, scenario: Scenario, seconds: float) -> Callable[[], int]:
    """Return a start of an agent that is killed some time later, wherever it is then."""

    def start() -> int:
        pid = forked(lambda: update(root, scenario))
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        return pid

    return start


def _once(name: str, number: int, root: Path) -> list[Callable[[], int]]:
    return [at_tap(root, SCENARIOS[name], number)]


@dataclass
class Driver:
    """Where it works, and what it has seen."""

    directory: Path
    chance: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _templates: dict[str, tuple[Path, list[str], float]] = field(default_factory=dict)

    def template(self, name: str) -> tuple[Path, list[str], float]:
        """Return a device ready for a scenario, the taps of its update, and how long that takes."""
        if name not in self._templates:
            root = self.directory / f"template-{name}"
            install(root, SCENARIOS[name])
            trial = self.copy(root)
            taps = taps_of(trial, SCENARIOS[name])
            shutil.rmtree(trial)
            trial, began = self.copy(root), time.perf_counter()
            update(trial, SCENARIOS[name])
            self._templates[name] = (root, taps, time.perf_counter() - began)
            shutil.rmtree(trial)
        return self._templates[name]

    def copy(self, template: Path) -> Path:
        """Return a copy of a device."""
        root = Path(tempfile.mkdtemp(dir=self.directory))
        return Path(shutil.copytree(template, root, symlinks=True, dirs_exist_ok=True))

    def attempt(self, name: str, label: str, deaths: Callable[[Path], list[Callable[[], int]]]) -> None:
        """Run one update with deaths, and count them."""
        root = self.copy(self.template(name)[0])
        try:
            self.kills[label] += update_with_deaths(root, SCENARIOS[name], deaths(root))
        except AssertionError as e:
            self.problems.append(f"{name}, {label}: {e} (see {root})")
            return
        shutil.rmtree(root)

    def at_points(self, budget: int) -> None:
        """Die once at every point, or at some of each kind spread over all updates."""
        points = [
            (name, n, tap) for name in SCENARIOS for n, tap in enumerate(self.template(name)[1], start=1)
        ]
        if len(points) > budget:
            self.chance.shuffle(points)
            points.sort(key=lambda point: self._turn(point))
        for name, number, tap in points[:budget]:
            self.attempt(name, tap, partial(_once, name, number))

    def _turn(self, point: tuple[str, int, str]) -> int:
        """Return when a point has its turn, so that every kind comes before the second of any."""
        name, _number, tap = point
        self._seen[name, tap] += 1
        return self._seen[name, tap]

    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def at_random(self, budget: int) -> None:
        """Die at points and times drawn by chance, up to three times in one update."""
        target = self.kills.total() + budget
        while self.kills.total() < target and not self.problems:
            name = self.chance.choice(list(SCENARIOS))
            times = self.chance.randint(1, 3)
            plan = [(self.chance.random() < 0.5, self.chance.random()) for _ in range(times)]
            self.attempt(name, "by chance", partial(self.deaths, name, plan))

    def deaths(self, name: str, plan: list[tuple[bool, float]], root: Path) -> list[Callable[[], int]]:
        """Return deaths at shares of the time, or of the touches of the disk, that an update takes."""
        _root, taps, seconds = self.template(name)
        return [
            at_time(root, SCENARIOS[name], share * seconds)
            if timed
            else at_tap(root, SCENARIOS[name], 1 + int(share * len(taps)))
            for timed, share in plan
        ]


def main() -> int:
    """Run, and say what was seen; 1 where a device was not what it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many, about half of them by chance")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn by chance")
    parser.add_argument("--directory", type=Path, default=MEMORY, help="where devices are made")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.directory, ignore_cleanup_errors=True) as directory:
        driver = Driver(Path(directory), random.Random(options.seed))
        driver.at_points(options.kills * 3 // 4)
        driver.at_random(options.kills - driver.kills.total())
    for label, count in sorted(driver.kills.items()):
        print(f"{count:6} killed {label}")
    seconds = time.perf_counter() - began
    print(f"{driver.kills.total():6} killed in {seconds:.0f} s, {len(driver.problems)} problems")
    print(*driver.problems, sep="\n", file=sys.stderr)
    return 1 if driver.problems else 0


if __name__ == "__main__":
    sys.exit(main())
