"""A device with a disk, a server with artifacts, and updates between them: for tests that break things.

Everything on the disk is done by the agent's own code; the judgements (self-test, shadow, probation) say
what a test wants them to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from edgec.artifact import atomic_write
from edgec.device_agent._actions import Context, WorkFailedError
from edgec.device_agent._events import Acknowledged, Desired, Event, Work
from edgec.device_agent._runner import Runner
from edgec.device_agent._slot_work import SlotWork
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import Moment, Report, State, Wanted
from edgec.device_agent._store import Store
from edgec.device_agent._turn import Limits

MODEL = "digits"
# What artifacts are made of here; none of these bytes matters.
CONTENT = {name: (name * 4000).encode()[:9000] for name in ("v1", "v2", "v3")}
DIGEST = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
NAMES = {digest: name for name, digest in DIGEST.items()}
LIMITS = Limits(backoff_s=1.0, backoff_limit_s=4.0)
ENDS = {"committed", "unchanged", "removed", "refused", "failed", "rolled_back", "aborted", "superseded"}


def wanted(epoch: int, name: str | None, *, retry: bool = False, prepare: bool = False) -> Wanted:
    """Return a wish for one of the versions, or for none."""
    if name is None:
        return Wanted(epoch=epoch)
    digest, length = DIGEST[name], len(CONTENT[name])
    return Wanted(
        epoch=epoch,
        digest=digest,
        length=length,
        target=name,
        retry=epoch if retry else 0,
        prepare=prepare,
    )


class World(SlotWork):
    """Actions over a real disk.

    Args:
        root: Of the device.
        bad: Names of versions, and the piece of work that finds them bad: ``{"v2": "watch"}``.
        hook: Called before every piece of work.
    """

    def __init__(
        self, root: Path, bad: dict[str, str] | None = None, hook: Callable[[Work], None] | None = None
    ) -> None:
        super().__init__(root / "models")
        self.root = root
        self.bad = bad or {}
        self.hook = hook
        self.told: list[Report] = []

    def _judge(self, work: Work, context: Context) -> None:
        if self.hook is not None:
            self.hook(work)
        context.check()
        if work.wanted is not None and self.bad.get(work.wanted.target) == work.name:
            raise WorkFailedError("poison", f"{work.name} finds {work.wanted.target} bad")

    admit = confirm = self_test = shadow = watch = _judge

    def fetch(self, work: Work, context: Context) -> None:
        self._judge(work, context)
        path = self.located(work)
        if self.here(work) or path.exists():
            return
        with atomic_write(path) as file:
            file.write(CONTENT[self.candidate(work).target])

    def verify(self, work: Work, context: Context) -> None:
        self._judge(work, context)
        content = self.located(work).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.candidate(work).digest:
            self.located(work).unlink()
            raise WorkFailedError("digest", "what was fetched is something else", passing=True)

    def report(self, model: str, report: Report) -> None:
        """Append to a file, as the outbox would: durable on return."""
        line = f"{report.seq} {report.result} {report.epoch} {report.reason}\n".encode()
        descriptor = os.open(self.root / "reports.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        self.told.append(report)


class Device:
    """One start of an agent: in this process, in one thread, with a clock of its own."""

    started: ClassVar[list[Device]] = []

    def __init__(
        self,
        root: Path,
        actions: World,
        *,
        wall: Callable[[], float] = lambda: 1_700_000_000.0,
        spawn: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self.seconds = 0.0
        self.wall = wall
        self.root = root
        self.store = Store(root / "agent", root / "models")
        self.actions = actions
        self.runner = Runner(
            MODEL,
            self.store,
            actions,
            self.now,
            limits=LIMITS,
            state=self.store.load().get(MODEL) or Slots(root / "models", MODEL).found(),
            spawn=spawn,
        )
        self.runner.start()
        self.started.append(self)

    def now(self) -> Moment:
        """Return the moment; time passes only where `settle` lets it."""
        return Moment(mono_s=self.seconds, wall_s=self.wall())

    @property
    def state(self) -> State:
        """What the agent has written down."""
        return self.runner.state

    def settle(self, *events: Event, rounds: int = 400) -> State:
        """Take events in, and let time pass until nothing is under way; the server acknowledges all."""
        for event in events:
            self.runner.post(event)
        for _ in range(rounds):
            busy = self.runner.poll()
            state = self.runner.state
            if state.phase == "cleaned" and state.reports:
                told = max((report.seq for report in self.actions.told), default=0)
                self.runner.post(Acknowledged(now=self.now(), seq=told))
                self.seconds += 1.0
            elif (state.phase in ("idle", "cleaned") or state.verdict == "prepared") and not (
                busy or state.work or self.runner.degraded
            ):
                return state
            if not busy:
                self.seconds += 1.0
        return self.runner.state

    def want(
        self,
        epoch: int,
        name: str | None,
        *,
        retry: bool = False,
        prepare: bool = False,
        rounds: int = 400,
    ) -> State:
        """Let the fleet want a version, and wait for what comes of it."""
        wish = wanted(epoch, name, retry=retry, prepare=prepare)
        return self.settle(Desired(now=self.now(), wanted=wish), rounds=rounds)

    def close(self) -> None:
        """End without a word, as a crash would."""
        self.store.close()
        if self in self.started:
            self.started.remove(self)


def serves(root: Path) -> str | None:
    """Return the version that an application in another process would get; it must be a whole one."""
    link = root / "models" / MODEL / "current.edgec"
    if not link.is_symlink():
        return None
    assert link.exists(), f"{link} leads nowhere"
    content = link.read_bytes()
    assert hashlib.sha256(content).hexdigest() in NAMES, f"{link} leads to half an artifact"
    return NAMES[hashlib.sha256(content).hexdigest()]


def reported(root: Path, epoch: int) -> list[str]:
    """Return how an epoch ended, by the reports that have left the device."""
    path = root / "reports.log"
    lines = path.read_text().splitlines() if path.exists() else []
    fields = [line.split(" ") for line in lines]
    return [f[1] for f in fields if len(f) == 4 and f[2] == str(epoch) and f[1] in ENDS]


def agrees(root: Path, state: State) -> str | None:
    """Check that state, slots and link say the same; return the version that serves."""
    slots, name = Slots(root / "models", MODEL), serves(root)
    assert (state.active and state.active.digest) == (DIGEST[name] if name else None)
    if state.active is not None:
        assert slots.current() == state.active.slot
        assert slots.whole(state.active)
    if state.previous is not None:
        assert slots.whole(state.previous)
    strays = [*slots.directory.glob(".edgec-*"), *slots.directory.glob("?/.edgec-*")]
    assert strays == [] or state.phase != "idle"
    return name
