"""The models of a device: the update of each, and what is observed of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.device_agent._events import Acknowledged
from edgec.device_agent._events import Desired as Wish
from edgec.device_agent._runner import Runner
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import Moment, State, Wanted
from edgec.device_agent._windows import FileDigests, WindowTap

if TYPE_CHECKING:
    from edgec.device_agent._actions import Actions
    from edgec.device_agent._config import AgentConfig, UpdateSettings
    from edgec.device_agent._seams import Applications, Clock
    from edgec.device_agent._store import Store
    from edgec.device_agent._telemetry import Telemetry
    from edgec.device_agent._turn import Limits
    from edgec.trust import AssignedTarget, Assignment


class Models:
    """Keeps a runner and a tap for each model. Called from the agent's thread, but for `tap` and `digest`.

    Args:
        config: Of the device.
        store: Where states are written.
        clock: Of the agent.
        limits: How patient updates are.
        spawn: Runs a piece of work.
        applications: Who uses the models.
    """

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        clock: Clock,
        *,
        limits: Limits,
        spawn: Callable[[Callable[[], None]], None],
        applications: Sequence[Applications],
    ) -> None:
        self._config, self._store, self._clock = config, store, clock
        self._limits, self._spawn, self._applications = limits, spawn, applications
        self._actions: Actions | None = None
        self._telemetry: Telemetry | None = None
        self._taps: dict[str, WindowTap] = {}
        self._files = FileDigests(config.models_dir)
        self.runners: dict[str, Runner] = {}

    def use(self, actions: Actions, telemetry: Telemetry) -> None:
        """Have work done by these, and windows taken by that."""
        self._actions, self._telemetry = actions, telemetry

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models, sorted."""
        return tuple(sorted(self.runners))

    @property
    def busy(self) -> bool:
        """Whether work is under way for any."""
        return any(runner.busy for runner in self.runners.values())

    def states(self) -> list[State]:
        """Return how far the update of each is."""
        return [runner.state for runner in self.runners.values()]

    def begin(self) -> None:
        """Go on with all that the store or the slots know of."""
        for model in sorted({*self._store.load(), *_found(self._config.models_dir)}):
            self.runner(model)

    def poll(self) -> None:
        """Take in what has happened to each."""
        for runner in list(self.runners.values()):
            runner.poll()

    def stop(self) -> None:
        """Ask all work to stop, and wait for that."""
        for runner in self.runners.values():
            runner.stop()

    def runner(self, model: str) -> Runner:
        """Return the runner of a model; it is started when it is asked for first."""
        assert self._actions is not None
        assert self._telemetry is not None
        if model not in self.runners:
            state = self._store.load().get(model) or Slots(self._config.models_dir, model).found()
            runner = Runner(
                model,
                self._store,
                self._actions,
                self.moment,
                limits=self._limits,
                state=state,
                spawn=self._spawn,
            )
            self.runners[model] = runner
            runner.start()
            self._telemetry.watch(model, self.tap(model))
        return self.runners[model]

    def tap(self, model: str) -> WindowTap:
        """Return what was observed of a model, of all applications that use it."""
        if model not in self._taps:

            def take() -> list[Any]:
                return [window for a in self._applications for window in a.take(model)]

            self._taps[model] = WindowTap(take, lambda content: self._files.of(model, content))
        return self._taps[model]

    def digest(self, model: str) -> str:
        """Return the digest of the file that serves; empty for none."""
        slots = Slots(self._config.models_dir, model)
        slot = slots.current()
        installed = None if slot is None else slots.installed(slot)
        return "" if installed is None else installed.digest

    def acknowledged(self, model: str, seq: int) -> None:
        """Let a model's update know that the fleet has a report."""
        self.runners[model].post(Acknowledged(now=self.moment(), seq=seq))

    def want(self, assignment: Assignment) -> None:
        """Let each model know what is wanted of it."""
        updates = self._config.updates
        for target in assignment.targets:
            wanted = wanted_of(assignment, target, updates)
            self.runner(target.model).post(Wish(now=self.moment(), wanted=wanted))
        assigned = {target.model for target in assignment.targets}
        for model, runner in self.runners.items():
            state = runner.state
            if model not in assigned and (state.active or state.candidate or state.pending):
                runner.post(Wish(now=self.moment(), wanted=Wanted(epoch=assignment.epoch)))

    def moment(self) -> Moment:
        """Return the time by both clocks."""
        return Moment(mono_s=self._clock.monotonic(), wall_s=self._clock.wall())


def wanted_of(assignment: Assignment, target: AssignedTarget, updates: UpdateSettings) -> Wanted:
    """Return what is wanted of a model: by the director's word, and where it says nothing, by the owner's."""
    terms = target.terms
    calls = updates.probation_calls if terms.probation_calls is None else terms.probation_calls
    return Wanted(
        epoch=assignment.epoch,
        digest=target.sha256,
        length=target.length,
        target=target.path,
        retry=terms.retry,
        prepare=terms.prepare,
        shadow_s=updates.shadow_s if terms.shadow_s is None else float(terms.shadow_s),
        probation_s=updates.probation_s if terms.probation_s is None else float(terms.probation_s),
        probation_calls=calls,
    )


def _found(models: Path) -> list[str]:
    """Return names of models that lie in slots, for where the database is lost."""
    try:
        return [path.name for path in models.iterdir() if (path / "current.edgec").is_symlink()]
    except OSError:
        return []
