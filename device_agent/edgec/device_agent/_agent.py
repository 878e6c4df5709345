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

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.device_agent._audit import AuditLog
from edgec.device_agent._config import AgentConfig
from edgec.device_agent._device_status import AgentStatus, status_of, write_status
from edgec.device_agent._durable import make_directory, read_json, write_json
from edgec.device_agent._events import Abort, Acknowledged, Crashed
from edgec.device_agent._events import Desired as Wish
from edgec.device_agent._links import link_options, mqtt_link
from edgec.device_agent._local import LocalSessions
from edgec.device_agent._orders import Orders
from edgec.device_agent._outbox import Outbox, OutboxState
from edgec.device_agent._policy import TelemetryPolicy
from edgec.device_agent._runner import Runner
from edgec.device_agent._seams import (
    Applications,
    Clock,
    Link,
    LinkFactory,
    NoLink,
    Operations,
    OrderRefusedError,
    Trial,
)
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import Moment, Report, State, Wanted
from edgec.device_agent._store import Entry, Store
from edgec.device_agent._supply import ChunkRequests, sources_of
from edgec.device_agent._telemetry import Telemetry, system_state
from edgec.device_agent._turn import Limits
from edgec.device_agent._uplink import Uplink, new_boot_id
from edgec.device_agent._windows import WindowTap
from edgec.device_agent._wishes import Wishes
from edgec.device_agent._work import AgentActions
from edgec.errors import AgentError, OutputError, ProtocolError
from edgec.protocol import (
    Alert,
    Chunk,
    Command,
    CommandReply,
    Desired,
    Inbound,
    TelemetryAck,
    Topics,
)

if TYPE_CHECKING:
    from edgec.runtime import ObserveOptions, Session
    from edgec.trust import AssignedTarget, Assignment, DeviceTrust, SignedCommand

_log = logging.getLogger(__name__)
_LIMITS = Limits()
_IDLE_S, _BUSY_S = 5.0, 1.0
_STATUS_S = 10.0
_STALE_S = 300.0
_MOST_INBOUND = 64
_POLICY = "telemetry.json"
_SEVERITY: Mapping[str, str] = {
    "failed": "error",
    "rolled_back": "error",
    "aborted": "warning",
    "refused": "warning",
    "degraded": "warning",
}


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
        self._limits = limits
        self._trial = trial
        self._heartbeat = heartbeat or (lambda: None)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._running = False
        self._link: Link = NoLink()
        self._runners: dict[str, Runner] = {}
        self._taps: dict[str, WindowTap] = {}
        self._told: dict[tuple[str, int], tuple[str, int]] = {}
        self._stale: tuple[float, float | None] = (float("-inf"), None)
        self._status_due = 0.0
        self._telemetry_due = 0.0
        self._written: AgentStatus | None = None

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
            self._open(options is None)
        except BaseException:
            self._store.close()
            raise
        if options is not None:
            self._link = self._make_link(options, self._uplink.announce)
        self._uplink.use(self._link)
        self._running = True
        self._begin()
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
        for runner in self._runners.values():
            runner.stop()
        self._telemetry.flush()
        self._uplink.turn(self._states(), self._wishes.epoch, self._alerts())
        self._link.close()
        for application in reversed(self._applications):
            application.stop()
        self._write_status(final=True)
        self._outbox.close()
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
        return tuple(sorted(self._runners))

    @property
    def epoch(self) -> int:
        """Of the newest assignment that was believed; 0 before the first."""
        return self._wishes.epoch

    def restart(self, model: str) -> None:
        """Load what serves anew, wherever it is used.

        Raises:
            EdgecError: It cannot be loaded somewhere; what ran before goes on there.
        """
        for application in self._applications:
            application.restart(model)

    def crashed(self, model: str, detail: str) -> None:
        """Take note that an application that runs a model has died, or was killed; the fleet hears of it."""
        runner = self._runners.get(model)
        if runner is None:
            return
        runner.post(Crashed(now=self._moment(), detail=detail))
        active = runner.state.active
        try:
            self._uplink.put_event(
                "crashed",
                severity="error",
                model=model,
                detail=detail[:400],
                data={} if active is None else {"digest": active.digest},
            )
        except AgentError as e:
            _log.warning("a crash of %s is not kept for the fleet: %s", model, e)
        self._link.nudge()

    def flush(self) -> None:
        """Let the fleet have what was observed until now, without waiting for the end of a window."""
        self._telemetry.flush()
        self._link.nudge()

    def note(self, source: str, text: str | bytes) -> None:
        """Let the fleet have words for people; durable when this returns.

        Raises:
            AgentError: The disk failed.
        """
        self._telemetry.note(source, text)

    def outbox_state(self) -> OutboxState:
        """Return what the fleet has not acknowledged, and what was lost."""
        return self._outbox.state()

    @property
    def telemetry(self) -> Telemetry:
        """What may leave, and what does."""
        return self._telemetry

    def set_telemetry_policy(self, policy: TelemetryPolicy) -> TelemetryPolicy:
        """Let leave what a fleet asks for, as far as the owner permits it; kept over restarts.

        Returns:
            What holds now.

        Raises:
            OutputError: It cannot be kept; what held before does.
        """
        allowed = policy.within(self.config.telemetry)
        write_json(self.config.state_dir / _POLICY, policy.to_dict())
        self._telemetry.set_policy(allowed)
        return allowed

    def history(self, model: str | None = None, limit: int = 100) -> list[Entry]:
        """Return the last lines of the history of updates and commands, oldest first."""
        return self._store.history(model, limit)

    def status(self) -> AgentStatus:
        """Return what runs, since when, and why not the newest."""
        link, outbox = self._link.status, self._outbox.state()
        word = "connected" if link.connected else "not_connected"
        alive = self._running and not self._stopping.is_set()
        return AgentStatus(
            device=self.config.device,
            running=alive,
            pid=_pid() if alive else None,
            started=self._started,
            boot=self._store.boot,
            agent=_software(),
            link=word if self.config.broker is not None else "no_broker",
            link_error="" if link.error is None else str(link.error)[:400],
            epoch=self._wishes.epoch,
            alerts=tuple((alert.reason, alert.detail) for alert in self._alerts()),
            waiting=sum(outbox.records.values()),
            lost=sum(loss.records for loss in outbox.losses),
            models=status_of(self._states(), self.config.models_dir),
        )

    # -- one round

    def turn(self, timeout_s: float | None = None) -> None:
        """Take in what has come, do what is due, and send what is to be sent.

        Args:
            timeout_s: How long to wait for something to come; None for as long as there is nothing to do.
        """
        inbound = self._link.get(self._patience() if timeout_s is None else timeout_s)
        for _ in range(_MOST_INBOUND):
            if inbound is None:
                break
            self._take(inbound)
            inbound = self._link.get(0.0)
        for outcome in self._wishes.turn():
            if outcome.assignment is not None:
                self._want(outcome.assignment)
            self._stale = (float("-inf"), None)
        for runner in list(self._runners.values()):
            runner.poll()
        self._orders.turn()
        if self.clock.monotonic() >= self._telemetry_due:
            self._telemetry_due = self.clock.monotonic() + self._telemetry.tick()
        self._uplink.turn(self._states(), self._wishes.epoch, self._alerts())
        self._write_status()
        self._heartbeat()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.turn()

    def _patience(self) -> float:
        busy = self._wishes.busy or self._uplink.waiting or any(r.busy for r in self._runners.values())
        return _BUSY_S if busy else _IDLE_S

    # -- opening

    def _open(self, alone: bool) -> None:
        """Make all parts; the store is open."""
        config, state_dir = self.config, self.config.state_dir
        self._alone = alone
        self._started = self.clock.wall()
        self._boot_id = new_boot_id()
        self._trust = _open_trust(config, self.clock)
        self._outbox = Outbox(
            state_dir / "outbox.db",
            boot_id=self._boot_id,
            max_bytes=config.outbox_bytes,
            clock=self.clock.wall,
        )
        self._topics = Topics(config.tenant)
        self._uplink = Uplink(
            device=config.device,
            topics=self._topics,
            agent=_software(),
            hardware=config.hardware[0],
            boot_epoch=self._store.boot,
            boot_id=self._boot_id,
            outbox=self._outbox,
            clock=self.clock,
        )
        self._chunks = None if alone else ChunkRequests(self._uplink.ask)
        self._wishes = Wishes(
            trust=self._trust,
            device=config.device,
            sources=config.sources,
            allow_http=config.updates.allow_http,
            refresh_s=config.updates.refresh_s,
            path=state_dir / "desired.json",
            clock=self.clock,
            spawn=self._spawn,
        )
        self._audits = AuditLog(state_dir / "audit.jsonl")
        self._orders = Orders(
            trust=self._trust,
            boot_id=self._boot_id,
            path=state_dir / "replies.json",
            clock=self.clock,
            spawn=self._spawn,
            reply=self._uplink.reply,
            audit=self._audit,
        )
        self._actions = AgentActions(
            config.models_dir,
            settings=config.updates,
            clock=self.clock,
            trust=self._trust,
            target=lambda model: self._wishes.targets.get(model),
            files=self._files,
            chunks=None if self._chunks is None else self._chunks.source,
            metadata=self._wishes.metadata,
            applications=self._applications,
            tap=self._tap,
            report=self._report,
            cache_dir=state_dir / "engines",
            trial=self._trial,
        )
        self._telemetry = Telemetry(
            self._outbox,
            self._policy(),
            monotonic=self.clock.monotonic,
            system=lambda: system_state(state_dir),
        )

    def _begin(self) -> None:
        """Let all parts go on where they were."""
        for application in self._applications:
            application.start(self)
        for model in sorted({*self._store.load(), *_found(self.config.models_dir)}):
            self._runner(model)
        known = self._wishes.recall()
        if known is not None:
            self._want(known)
        self._orders.offer("abort", self._abort, at_once=True)
        self._orders.offer("refresh", self._refresh, at_once=True)
        for operations in self._operations:
            for name in operations.names:
                self._orders.offer(name, partial(operations.carry_out, agent=self))
        self._orders.start()

    def _spawn(self, work: Callable[[], None]) -> None:
        """Run a piece of work, and let the agent's own thread look at what came of it."""

        def noticed() -> None:
            try:
                work()
            finally:
                self._link.nudge()

        self._spawn_work(noticed)

    def _runner(self, model: str) -> Runner:
        if model not in self._runners:
            state = self._store.load().get(model) or Slots(self.config.models_dir, model).found()
            runner = Runner(
                model,
                self._store,
                self._actions,
                self._moment,
                limits=self._limits,
                state=state,
                spawn=self._spawn,
            )
            self._runners[model] = runner
            runner.start()
            self._telemetry.watch(model, self._tap(model))
            self._telemetry_due = 0.0
        return self._runners[model]

    def _tap(self, model: str) -> WindowTap:
        if model not in self._taps:

            def take() -> list[Any]:
                return [window for a in self._applications for window in a.take(model)]

            self._taps[model] = WindowTap(take)
        return self._taps[model]

    def _policy(self) -> TelemetryPolicy:
        """Return what may leave: what the fleet asked for last, as far as the owner permits it."""
        plain = read_json(self.config.state_dir / _POLICY)
        try:
            return (
                TelemetryPolicy.from_dict(plain).within(self.config.telemetry)
                if plain
                else self.config.telemetry
            )
        except AgentError:  # damaged, or of a newer agent
            return TelemetryPolicy().within(self.config.telemetry)

    # -- what comes in

    def _take(self, inbound: Inbound) -> None:
        """Take a message in; what is no message of the protocol is passed over, whoever sent it."""
        try:
            self._understand(inbound)
        except ProtocolError as e:
            _log.warning("a message on %s is passed over: %s", inbound.topic, e)
        inbound.ack()

    def _understand(self, inbound: Inbound) -> None:
        address = self._topics.parse(inbound.topic)
        if address is None:
            self._wishes.look()
        elif address.device != self.config.device or address.up:
            raise ProtocolError("it is for somebody else")
        elif address.kind == "desired":
            if inbound.payload:
                self._wishes.hear(Desired.from_bytes(inbound.payload), retained=inbound.retained)
        elif address.kind == "cmd":
            command = Command.from_bytes(inbound.payload)
            if command.name != address.name:
                raise ProtocolError(f"command {command.name!r} came as {address.name!r}")
            self._orders.hear(command)
        elif address.kind == "ack":
            self._acknowledged(TelemetryAck.from_bytes(inbound.payload))
        elif self._chunks is not None:
            self._chunks.answer(Chunk.from_bytes(inbound.payload))

    def _acknowledged(self, ack: TelemetryAck) -> None:
        self._uplink.acknowledged(ack)
        for (model, seq), (boot, number) in sorted(self._told.items()):
            if boot == ack.boot_id and ack.covers(number):
                del self._told[model, seq]
                self._runners[model].post(Acknowledged(now=self._moment(), seq=seq))

    def _want(self, assignment: Assignment) -> None:
        """Let each model know what is wanted of it."""
        updates = self.config.updates
        for target in assignment.targets:
            self._runner(target.model).post(
                Wish(now=self._moment(), wanted=_wanted(assignment, target, updates))
            )
        assigned = {target.model for target in assignment.targets}
        for model, runner in self._runners.items():
            state = runner.state
            if model not in assigned and (state.active or state.candidate or state.pending):
                runner.post(Wish(now=self._moment(), wanted=Wanted(epoch=assignment.epoch)))

    def _files(self, location: str) -> list[Any]:
        return sources_of(
            location,
            self._wishes.bases(),
            allow_http=self.config.updates.allow_http,
        )

    # -- what goes out

    def _report(self, model: str, report: Report) -> None:
        """Put a report into the outbox, once per start; the runner hears when the fleet has it."""
        if report.seq and (model, report.seq) in self._told:
            return
        number = self._uplink.put_event(
            f"update_{report.result}",
            severity=_SEVERITY.get(report.result, "info"),
            model=model,
            reason=report.reason,
            detail=report.detail,
            data={"epoch": str(report.epoch), "digest": report.digest, "report": str(report.seq)},
        )
        if number is None:
            raise AgentError(f"the outbox has no room for report {report.seq} of {model}")
        if report.seq and self._alone:
            # Nobody will ever acknowledge it.
            self._runners[model].post(Acknowledged(now=self._moment(), seq=report.seq))
        elif report.seq:
            self._told[model, report.seq] = number

    def _audit(self, reply: CommandReply) -> None:
        """Write down what became of a command, here, where changes of it show, and for the fleet."""
        severity = "security" if reply.state == "refused" else "info"
        detail = f"{reply.name} {reply.id}: {reply.state} {reply.reason or ''} {reply.detail}".strip()
        self._store.note(self.clock.wall(), "", f"command_{reply.state}", detail[:400])
        line = {"at": self.clock.wall(), "id": reply.id, "command": reply.name, "state": reply.state,
                "reason": reply.reason, "detail": reply.detail}  # fmt: skip
        try:
            head = self._audits.append(line)
        except OutputError as e:
            _log.warning("the audit of command %s is not kept here: %s", reply.id, e)
            head = ""
        try:
            self._uplink.put_event(
                "command",
                severity=severity,
                reason=reply.reason,
                detail=detail,
                data={"command": reply.name, "id": reply.id, "state": reply.state, "audit": head},
            )
        except AgentError as e:
            _log.warning("the audit of command %s is not kept for the fleet: %s", reply.id, e)

    def _alerts(self) -> list[Alert]:
        found = self._wishes.alerts()
        if self._store.trouble is not None:
            found.append(Alert(reason="degraded", detail=f"the agent's database: {self._store.trouble}"))
        if self._store.rebuilt:
            found.append(Alert(reason="state_lost", detail="the agent's database was damaged and made anew"))
        stale = self._stale_since()
        if stale is not None:
            found.append(
                Alert(reason="stale", detail=f"no fresh metadata since {stale:.0f}; nothing new is accepted")
            )
        return found

    def _stale_since(self) -> float | None:
        looked, since = self._stale
        now = self.clock.monotonic()
        if now - looked > _STALE_S:
            # Before the first metadata there is nothing that could be out of date.
            since = self._trust.stale_since if self._trust.epoch else None
            self._stale = (now, since)
        return since

    def _write_status(self, *, final: bool = False) -> None:
        now = self.clock.monotonic()
        if now < self._status_due and not final:
            return
        self._status_due = now + _STATUS_S
        status = self.status()
        if status != self._written:
            write_status(self.config.state_dir, status)
            self._written = status

    # -- commands of every agent

    def _abort(self, command: SignedCommand) -> dict[str, Any]:
        """Stop the update of a model, or of all; answered with accepted or refused, and why."""
        model, epoch = command.args.get("model"), command.args.get("epoch")
        if (model is not None and model not in self._runners) or not isinstance(epoch, int | None):
            raise OrderRefusedError("args", f"expected a model of {', '.join(self.models)} and an epoch")
        answers = {}
        for name in self.models if model is None else (str(model),):
            runner = self._runners[name]
            before = runner.state.report_seq
            runner.post(Abort(now=self._moment(), epoch=epoch))
            runner.poll()
            told = [r for r in runner.state.reports if r.seq > before and r.result.startswith("abort_")]
            result = told[0].result.removeprefix("abort_") if told else "refused"
            answers[name] = {"answer": result, "reason": told[0].reason if told else "degraded"}
        return {"models": answers}

    def _refresh(self, command: SignedCommand) -> dict[str, Any]:
        """Look for what is wanted now."""
        self._wishes.look()
        return {}

    # -- small things

    def _states(self) -> list[State]:
        return [runner.state for runner in self._runners.values()]

    def _moment(self) -> Moment:
        return Moment(mono_s=self.clock.monotonic(), wall_s=self.clock.wall())


def _wanted(assignment: Assignment, target: AssignedTarget, updates: Any) -> Wanted:
    return Wanted(
        epoch=assignment.epoch,
        digest=target.sha256,
        length=target.length,
        target=target.path,
        shadow_s=updates.shadow_s,
        probation_s=updates.probation_s,
        probation_calls=updates.probation_calls,
    )


def _open_trust(config: AgentConfig, clock: Clock) -> DeviceTrust:
    from edgec.trust import DeviceTrust

    try:
        roots = [path.read_bytes() for path in (config.image_root, config.director_root)]
    except OSError as e:
        raise AgentError(
            f"the root {e.filename} cannot be read: {e.strerror}; get it from the publisher's repository"
        ) from e
    make_directory(config.state_dir / "trust")
    return DeviceTrust(
        config.state_dir / "trust",
        device_id=config.device,
        hardware=config.hardware,
        image_root=roots[0],
        director_root=roots[1],
        groups=config.groups,
        clock=clock.wall,
    )


def _found(models: Path) -> list[str]:
    """Return names of models that lie in slots, for where the database is lost."""
    try:
        return [path.name for path in models.iterdir() if (path / "current.edgec").is_symlink()]
    except OSError:
        return []


def _software() -> str:
    return f"edgec {version('edgec')}"


def _pid() -> int:
    import os

    return os.getpid()


def _thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="edgec-work", daemon=True).start()
