"""The agent: brings what the fleet wants to this device, and tells the fleet what came of it.

One thread of its own and one of the link do everything but the work of updates and commands, which have
threads while they last. `Agent.turn` is one round; whoever simulates a fleet calls it in place of the thread.

What others add:

- `Applications`: those who use the models: they follow a switch, say what was observed of calls, and
  let a candidate see live inputs. Sessions of this process are one (`Agent.session`), always there; programs
  over a socket are another. Given to the constructor; started by `Agent.start`, stopped by `Agent.stop`.
- `Operations`: remote commands beside ``abort`` and ``refresh``. They get a `SignedCommand` that was
  verified, and the agent, whose public methods are what they may use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.device_agent._config import AgentConfig
from edgec.device_agent._device_status import AgentStatus
from edgec.device_agent._durable import make_directory, write_json
from edgec.device_agent._events import Crashed
from edgec.device_agent._links import link_options, mqtt_link
from edgec.device_agent._local import LocalSessions
from edgec.device_agent._own_status import OwnStatus
from edgec.device_agent._parts import POLICY, begin, make_parts
from edgec.device_agent._policy import TelemetryPolicy
from edgec.device_agent._seams import Applications, Clock, Link, LinkFactory, NoLink, Operations, Trial
from edgec.device_agent._slots import Slots
from edgec.device_agent._store import Entry, Store
from edgec.device_agent._telemetry import Telemetry
from edgec.device_agent._turn import Limits
from edgec.errors import AgentError

if TYPE_CHECKING:
    from edgec.device_agent._outbox_records import OutboxState
    from edgec.runtime import ObserveOptions, Session

_LIMITS = Limits()
_IDLE_S, _BUSY_S = 5.0, 1.0
_MOST_INBOUND = 64


class Agent:
    """The agent of one device; see the module. Many may live in one process, each on its own directory."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Clock | None = None,
        link: LinkFactory | None = None,
        applications: Sequence[Applications] = (),
        operations: Sequence[Operations] = (),
        spawn: Callable[[Callable[[], None]], None] | None = None,
        spawn_check: Callable[[Callable[[], None]], None] | None = None,
        limits: Limits = _LIMITS,
        heartbeat: Callable[[], None] | None = None,
        observe: ObserveOptions | None = None,
        trial: Trial | None = None,
    ) -> None:
        """Prepare an agent; `start` starts it.

        Args:
            config: Of the device.
            clock: Its time.
            link: Makes the link to the broker; None for MQTT.
            applications: Who uses the models, beside sessions of this process.
            operations: Remote commands, beside ``abort`` and ``refresh``.
            spawn: Runs a piece of work; None for a thread for each.
            spawn_check: Runs a check of what the fleet asks for, which takes milliseconds of computing and
                at times a request; None for `spawn`. Hundreds of agents of one process take turns with it.
            limits: How patient updates are.
            observe: What is looked at in calls of sessions of this process; None for the defaults.
            heartbeat: Called in every round, at least every few seconds, for a watchdog.
            trial: Tries a model before it may serve; None for `check_health`, in a process of its own.
        """
        self.config = config
        self.clock = Clock() if clock is None else clock
        self._make_link = mqtt_link if link is None else link
        self._sessions = LocalSessions(observe)
        self._applications: tuple[Applications, ...] = (self._sessions, *applications)
        self._operations = tuple(operations)
        self._spawn_work = spawn or _thread
        self._spawn_check = spawn_check or self._spawn_work
        self._limits = limits
        self._trial = trial
        self._heartbeat = heartbeat or (lambda: None)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._running = False
        self._link: Link = NoLink()
        self._telemetry_due = 0.0
        self._watched = 0

    # -- beginning and end

    def start(self, *, thread: bool = True) -> None:
        """Start: what serves goes on, whatever the network says, and updates go on where they were.

        Args:
            thread: Whether a thread calls `turn`; otherwise the caller does.

        Raises:
            AgentError: Another agent runs on the directory, or it cannot be used.
            TrustError: The roots are not to be used.
            LinkError: Certificate or key cannot be read.
        """
        if self._running:
            raise AgentError("this agent runs already")
        if self._stopping.is_set():
            raise AgentError("this agent was stopped: make another one")
        config = self.config
        options = None if config.broker is None else link_options(config)
        make_directory(config.state_dir)
        self._store = Store(config.state_dir, config.models_dir)
        try:
            self._parts = make_parts(
                config,
                self._store,
                self.clock,
                applications=self._applications,
                limits=self._limits,
                spawn=partial(self._spawn, self._spawn_work),
                spawn_check=partial(self._spawn, self._spawn_check),
                trial=self._trial,
            )
        except BaseException:
            self._store.close()
            raise
        if options is not None:
            self._link = self._make_link(options, self._parts.uplink.announce)
        self._parts.uplink.use(self._link)
        self._status = OwnStatus(config, self._store, self._parts, self.clock, lambda: self._link.status)
        self._running = True
        begin(self._parts, self, self._applications, self._operations)
        self._link.start()
        if thread:
            self._thread = threading.Thread(
                target=self._run, name=f"edgec-agent-{config.device}", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End in order: what is under way goes on at the next start."""
        if not self._running:
            return
        self._stopping.set()
        self._link.nudge()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._running = False
        self._parts.models.stop()
        self._parts.telemetry.flush()
        self._send()
        self._link.close()
        for application in reversed(self._applications):
            application.stop()
        self._status.write(running=False, at_once=True)
        self._parts.outbox.close()
        self._store.stop()

    @property
    def alive(self) -> bool:
        """Whether it runs; False where its thread has died, which only a bug in it does."""
        return self._running and (self._thread is None or self._thread.is_alive())

    def __enter__(self) -> Agent:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what applications and operations use

    def session(self, model: str) -> Session:
        """Return the session of a model in this process; it follows updates, and is the same for all who ask.

        Raises:
            AgentError: Nothing of the model is installed.
            EdgecError: As of `edgec.runtime.load`.
        """
        return self._sessions.session(model)

    def serving(self, model: str) -> Path | None:
        """Return the path of the artifact that serves; None for none."""
        slots = Slots(self.config.models_dir, model)
        slot = slots.current()
        return None if slot is None else slots.artifact(slot)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models that this agent knows of, sorted."""
        return self._parts.models.names

    @property
    def epoch(self) -> int:
        """Of the newest assignment that was believed; 0 before the first."""
        return self._parts.wishes.epoch

    def restart(self, model: str) -> None:
        """Load what serves anew, wherever it is used.

        Raises:
            EdgecError: It cannot be loaded somewhere; what ran before goes on there.
        """
        for application in self._applications:
            application.restart(model)

    def crashed(self, model: str, detail: str) -> None:
        """Take note that an application that runs a model has died, or was killed; the fleet hears of it."""
        runner = self._parts.models.runners.get(model)
        if runner is None:
            return
        self._parts.reports.crashed(model, detail)
        runner.post(Crashed(now=self._parts.models.moment(), detail=detail))
        self._link.nudge()

    def flush(self) -> None:
        """Let the fleet have what was observed until now, without waiting for the end of a window."""
        self._parts.telemetry.flush()
        self._link.nudge()

    def note(self, source: str, text: str | bytes) -> None:
        """Let the fleet have words for people; durable when this returns.

        Raises:
            AgentError: The disk failed.
        """
        self._parts.telemetry.note(source, text)

    def outbox_state(self) -> OutboxState:
        """Return what the fleet has not acknowledged, and what was lost."""
        return self._parts.outbox.state()

    @property
    def telemetry(self) -> Telemetry:
        """What may leave, and what does."""
        return self._parts.telemetry

    def set_telemetry_policy(self, policy: TelemetryPolicy) -> TelemetryPolicy:
        """Let leave what a fleet asks for, as far as the owner permits it; kept over restarts.

        Returns:
            What holds now.

        Raises:
            OutputError: It cannot be kept; what held before does.
        """
        allowed = policy.within(self.config.telemetry)
        write_json(self.config.state_dir / POLICY, policy.to_dict())
        self._parts.telemetry.set_policy(allowed)
        return allowed

    def history(self, model: str | None = None, limit: int = 100) -> list[Entry]:
        """Return the last lines of the history of updates and commands, oldest first."""
        return self._store.history(model, limit)

    def status(self) -> AgentStatus:
        """Return what runs, since when, and why not the newest."""
        return self._status.now(running=self._running and not self._stopping.is_set())

    # -- one round

    def turn(self, timeout_s: float | None = None) -> None:
        """Take in what has come, do what is due, and send what is to be sent.

        Args:
            timeout_s: How long to wait for something to come; None for as long as there is nothing to do.
        """
        parts = self._parts
        wait_s = self.patience_s if timeout_s is None else timeout_s
        for _ in range(_MOST_INBOUND):
            inbound = self._link.get(wait_s)
            if inbound is None:
                break
            parts.inbox.take(inbound)
            wait_s = 0.0
        else:
            # There may be more, which nobody tells of again.
            self._link.nudge()
        for outcome in parts.wishes.turn():
            if outcome.assignment is not None:
                parts.models.want(outcome.assignment)
            parts.alerts.refreshed()
        parts.models.poll()
        parts.orders.turn()
        now = self.clock.monotonic()
        if now >= self._telemetry_due or self._watched != len(parts.models.names):
            self._watched = len(parts.models.names)
            self._telemetry_due = now + parts.telemetry.tick()
        self._send()
        self._status.write(running=not self._stopping.is_set())
        self._heartbeat()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.turn()

    @property
    def patience_s(self) -> float:
        """For how long there is nothing to do for `turn`, unless something comes."""
        busy = self._parts.wishes.busy or self._parts.uplink.waiting or self._parts.models.busy
        return _BUSY_S if busy else _IDLE_S

    def _spawn(self, run: Callable[[Callable[[], None]], None], work: Callable[[], None]) -> None:
        """Run a piece of work, and let the agent's own thread look at what came of it."""

        def noticed() -> None:
            try:
                work()
            finally:
                self._link.nudge()

        run(noticed)

    def _send(self) -> None:
        parts = self._parts
        parts.uplink.turn(parts.models.states(), parts.wishes.epoch, parts.alerts.all())


def _thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="edgec-work", daemon=True).start()
