"""What the fleet is told in events: ends of updates, commands, crashes, and what shadows saw."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from edgec.device_agent._rates import Rate, TokenBucket
from edgec.errors import AgentError, OutputError
from edgec.protocol import CommandReply, TelemetryAck

if TYPE_CHECKING:
    from edgec.device_agent._audit import AuditLog
    from edgec.device_agent._findings import Verdict
    from edgec.device_agent._models import Models
    from edgec.device_agent._seams import Clock
    from edgec.device_agent._state import Report
    from edgec.device_agent._store import Store
    from edgec.device_agent._turn import Limits
    from edgec.device_agent._uplink import Uplink

_log = logging.getLogger(__name__)
_SEVERITY: Mapping[str, str] = {
    "failed": "error",
    "rolled_back": "error",
    "aborted": "warning",
    "refused": "warning",
    "degraded": "warning",
}
# Of one model: an application that dies all day must not use up what a device may send in one.
_CRASH_RATE = Rate(burst=10, every_s=900.0)
_ON_TRIAL = ("switched", "probation")


class Reports:
    """Puts events into the outbox. `report` and `acknowledged` are the agent's thread's; others anybody's.

    Args:
        uplink: Takes events.
        store: Keeps the history.
        audits: Of commands.
        models: Of the device.
        clock: Of the agent.
        limits: How many deaths in which time are a loop.
        alone: Whether there is no fleet that could acknowledge anything.
    """

    def __init__(
        self,
        uplink: Uplink,
        store: Store,
        audits: AuditLog,
        models: Models,
        clock: Clock,
        *,
        limits: Limits,
        alone: bool,
    ) -> None:
        self._uplink, self._store, self._audits, self._models = uplink, store, audits, models
        self._clock, self._limits, self._alone = clock, limits, alone
        self._told: dict[tuple[str, int], tuple[str, int]] = {}
        # Reports of earlier starts, whose loops were told of then.
        self._before = {model: state.report_seq for model, state in store.load().items()}
        self._lock = Lock()
        self._rates: dict[str, TokenBucket] = {}
        self._untold: dict[str, int] = {}
        self._deaths: dict[str, deque[float]] = {}

    def restarted(self) -> None:
        """Note for models on trial that the agent before this one was not stopped: they may be to blame."""
        for model, state in self._store.load().items():
            if state.phase in _ON_TRIAL and not self._store.stopped:
                self.crashed(model, "the agent or the device started again", reason="restarted")

    def report(self, model: str, report: Report) -> None:
        """Put a report into the outbox, once per start; the runner hears when the fleet has it.

        Raises:
            AgentError: There is no room for it, or the disk failed.
        """
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
            self._models.acknowledged(model, report.seq)
        elif report.seq:
            self._told[model, report.seq] = number
        if report.reason == "crash_loop" and report.seq > self._before.get(model, 0):
            self._event("crash_loop", model, report.digest, report.reason, report.detail)

    def acknowledged(self, ack: TelemetryAck) -> None:
        """Let runners know which of their reports the fleet has."""
        for (model, seq), (boot, number) in sorted(self._told.items()):
            if boot == ack.boot_id and ack.covers(number):
                del self._told[model, seq]
                self._models.acknowledged(model, seq)

    def crashed(self, model: str, detail: str, *, reason: str = "crashed") -> None:
        """Tell that what runs a model has died; and that it does so again and again, where it does."""
        digest, now = self._models.digest(model), self._clock.monotonic()
        with self._lock:
            deaths = self._deaths.setdefault(model, deque(maxlen=self._limits.crashes))
            deaths.append(now)
            loop = len(deaths) == deaths.maxlen and now - deaths[0] <= self._limits.calm_s
            if loop:
                deaths.clear()
            rate = self._rates.setdefault(model, TokenBucket(_CRASH_RATE, self._clock.monotonic))
            untold = self._untold.pop(model, 0)
            if rate.take() > 0:
                self._untold[model] = untold + 1
                return
        more = {"untold": str(untold)} if untold else {}
        self._event("crash", model, digest, reason, detail, **more)
        state = self._store.load().get(model)
        if loop and (state is None or state.phase not in _ON_TRIAL):
            # On trial, the update falls back, and says so.
            self._event("crash_loop", model, digest, "crash_loop", detail)

    def shadowed(self, model: str, digest: str, verdicts: Sequence[Verdict]) -> None:
        """Tell what a candidate answered beside what serves, of all applications that run it."""
        if not verdicts:
            return
        sums = {
            name: round(sum(verdict.figures.get(name, 0.0) for verdict in verdicts))
            for name in ("compared", "disagreed", "failed", "bad")
        }
        words = [finding.word for verdict in verdicts for finding in verdict.findings]
        figures = {name: str(value) for name, value in sums.items()}
        seconds = max(verdict.figures.get("seconds", 0.0) for verdict in verdicts)
        self._event(
            "shadow",
            model,
            digest,
            next(iter(words), ""),
            "; ".join(f.message for v in verdicts for f in v.findings),
            severity="warning" if words else "info",
            seconds=f"{seconds:.1f}",
            **figures,
        )

    def audit(self, reply: CommandReply) -> None:
        """Write down what became of a command, here, where changes of it show, and for the fleet."""
        severity = "security" if reply.state == "refused" else "info"
        detail = f"{reply.name} {reply.id}: {reply.state} {reply.reason or ''} {reply.detail}".strip()
        self._store.note(self._clock.wall(), "", f"command_{reply.state}", detail[:400])
        line = {"at": self._clock.wall(), "id": reply.id, "command": reply.name, "state": reply.state,
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

    def _event(
        self,
        kind: str,
        model: str,
        digest: str,
        reason: str,
        detail: str,
        *,
        severity: str = "error",
        **data: str,
    ) -> None:
        try:
            self._uplink.put_event(
                kind,
                severity=severity,
                model=model,
                reason=reason,
                detail=detail,
                data={"digest": digest, **data} if digest else data,
            )
        except AgentError as e:
            _log.warning("%s of %s is not kept for the fleet: %s", kind, model, e)
