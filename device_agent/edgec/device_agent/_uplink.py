"""What goes up: presence, reports of what the device has, and the outbox until it is acknowledged."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import OutboxRecord, Priority
from edgec.errors import AgentError, LinkError, ProtocolError
from edgec.protocol import (
    Alert,
    Announcement,
    ChunkRequest,
    CommandReply,
    DeviceEvent,
    ModelReport,
    Outgoing,
    Presence,
    Publication,
    Reported,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
    Topics,
)

if TYPE_CHECKING:
    from edgec.device_agent._seams import Clock, Link
    from edgec.device_agent._state import State

_log = logging.getLogger(__name__)
EVENT_KIND = "event"
# Batches on their way that the fleet has not acknowledged.
_MOST_BATCHES = 4
_BATCH_BYTES = 48 * 1024
# All batches together stay below what a link lets wait.
_BATCH_RECORDS = 50
_FIRST_WAIT_S, _LAST_WAIT_S = 10.0, 600.0
_TELEMETRY_EXPIRY_S = 86_400
_REQUEST_EXPIRY_S = 60
_MAX_DETAIL = 1024
# Phases of an update that are shorter need not be told one by one.
_PASSING_S = 1.0


class Uplink:
    """See the module. `turn` and `acknowledged` are called from one thread; the others from any.

    Args:
        device: Id of the device.
        topics: Of its tenant.
        agent: Name and version of this software.
        hardware: Class of the device.
        boot_epoch: Number of this start.
        outbox: What is to be sent.
        clock: Of the agent.
        boot_id: Of this start.
    """

    def __init__(
        self,
        *,
        device: str,
        topics: Topics,
        agent: str,
        hardware: str,
        boot_epoch: int,
        boot_id: str,
        outbox: Outbox,
        clock: Clock,
    ) -> None:
        self._device, self._topics = device, topics
        self._agent, self._hardware = agent[:64], hardware[:64]
        self._boot_epoch, self._boot_id = boot_epoch, boot_id
        self._outbox, self._clock = outbox, clock
        self._link: Link | None = None
        self._connection = 0
        self._reported: Publication | None = None
        self._last: Reported | None = None
        self._seq = 0
        self._reported_at = 0.0
        self._batches: dict[tuple[str, int], float] = {}
        self._floors: dict[str, int] = {}
        self._wait_s = _FIRST_WAIT_S
        self._paused_until = 0.0

    def use(self, link: Link) -> None:
        """Send over a link."""
        self._link = link

    def announce(self, number: int) -> Announcement:
        """Return birth and will of a connection; called by the link."""
        presence = Presence(
            online=True,
            boot_epoch=self._boot_epoch,
            boot_id=self._boot_id,
            connection=number,
            agent=self._agent,
            sent_at=self._now(),
            hardware=self._hardware,
        )
        topic = self._topics.state(self._device)
        birth, will = (
            Outgoing(topic=topic, payload=p.to_bytes(), retain=True, content_type=p.content_type)
            for p in (presence, presence.as_will())
        )
        return Announcement(birth=birth, will=will)

    def reply(self, reply: CommandReply) -> None:
        """Send what became of a command; the fleet asks again where it does not arrive."""
        self._try_to_send(self._topics.reply(self._device), reply.to_bytes(), reply.content_type)

    def ask(self, request: ChunkRequest) -> None:
        """Send a request for a piece of a file.

        Raises:
            LinkError: There is no connection.
        """
        topic = self._topics.request(self._device, "chunk")
        self._send(topic, request.to_bytes(), request.content_type, _REQUEST_EXPIRY_S)

    def put_event(
        self,
        kind: str,
        *,
        severity: str = "info",
        model: str | None = None,
        reason: str | None = None,
        detail: str = "",
        data: dict[str, str] | None = None,
    ) -> tuple[str, int] | None:
        """Keep an event for the fleet; durable when this returns.

        Returns:
            Its number in the outbox; None where it found no room.

        Raises:
            AgentError: The disk failed.
        """
        event = DeviceEvent(
            boot_epoch=self._boot_epoch,
            boot_id=self._boot_id,
            seq=0,
            at=self._now(),
            kind=kind,
            severity=severity,
            model=model,
            reason=reason or None,
            detail=detail[:4000],
            data=data or {},
        )
        return self._outbox.put(EVENT_KIND, Priority.EVENT, event.to_bytes())

    def turn(self, states: Sequence[State], epoch: int, alerts: Sequence[Alert]) -> None:
        """Send what is to be sent now.

        Args:
            states: Of all models.
            epoch: The greatest one that was believed.
            alerts: About the device as a whole.
        """
        link = self._link
        status = None if link is None else link.status
        if status is None or not status.connected:
            return
        if status.connections != self._connection:
            self._connection = status.connections
            self._reported = self._last = None
            self._begin_anew()
        self._report(states, epoch, alerts)
        self._empty_outbox()

    def acknowledged(self, ack: TelemetryAck) -> None:
        """Forget what the fleet has."""
        up_to = ack.seq
        if up_to is None:
            return
        try:
            self._outbox.ack(ack.boot_id, up_to)
        except AgentError as e:
            _log.warning("an acknowledgement is not noted, and what it is of will be sent again: %s", e)
            return
        self._batches = {
            key: at for key, at in self._batches.items() if key[0] != ack.boot_id or key[1] > up_to
        }
        if ack.boot_id in self._floors:
            self._floors[ack.boot_id] = max(self._floors[ack.boot_id], up_to + 1)
        self._wait_s = _FIRST_WAIT_S

    @property
    def waiting(self) -> bool:
        """Whether something is on its way that the fleet has not acknowledged."""
        return bool(self._batches)

    # -- reports

    def _report(self, states: Sequence[State], epoch: int, alerts: Sequence[Alert]) -> None:
        """Send what the device has, where that has changed or did not arrive."""
        if self._reported is not None and self._reported.done and self._reported.error is not None:
            self._last = None
        message = Reported(
            boot_epoch=self._boot_epoch,
            boot_id=self._boot_id,
            seq=0,
            epoch=epoch,
            models={state.model: _model_report(state) for state in states},
            sent_at=0.0,
            alerts=tuple(alerts[:16]),
        )
        if message == self._last:
            return
        now = self._clock.monotonic()
        if now - self._reported_at < _PASSING_S and self._is_passing(message, states):
            return
        numbered = replace(message, seq=self._seq, sent_at=self._now())
        topic = self._topics.reported(self._device)
        self._reported = self._try_to_send(topic, numbered.to_bytes(), numbered.content_type)
        if self._reported is not None:
            self._seq += 1
            self._last, self._reported_at = message, now

    def _is_passing(self, message: Reported, states: Sequence[State]) -> bool:
        """Whether a report says no more than how far an update is that is just being worked at."""
        last = self._last
        if last is None or not any(state.work for state in states):
            return False
        told, new = (
            (m.epoch, m.alerts, {name: (r.active, r.reason) for name, r in m.models.items()})
            for m in (last, message)
        )
        return told == new

    # -- outbox

    def _begin_anew(self) -> None:
        self._outbox.rewind()
        self._batches.clear()
        self._floors.clear()
        self._paused_until = 0.0

    def _empty_outbox(self) -> None:
        now = self._clock.monotonic()
        if self._batches and now - min(self._batches.values()) > self._wait_s:
            # Go back: what was sent is lost, or the fleet is away.
            self._wait_s = min(2 * self._wait_s, _LAST_WAIT_S)
            self._begin_anew()
        if now < self._paused_until:
            return
        try:
            while len(self._batches) < _MOST_BATCHES:
                records = self._outbox.take(max_records=_BATCH_RECORDS, max_bytes=_BATCH_BYTES)
                if not records:
                    return
                self._send_records(records)
                self._batches[records[-1].boot_id, records[-1].seq] = now
        except LinkError as e:
            _log.info("the outbox waits: %s", e)
            self._begin_anew()
            self._paused_until = now + 5.0
        except AgentError as e:
            _log.warning("the outbox cannot be read: %s", e)
            self._paused_until = now + 60.0

    def _send_records(self, records: Sequence[OutboxRecord]) -> None:
        """Send records that follow each other: events each on its own, the others together."""
        boot_id, first = records[0].boot_id, records[0].seq
        if first and boot_id not in self._floors and _event(records[0]) is not None:
            # Events do not say that none below them will come: without this, a fleet that lacks those (it was
            # restored, or they were dropped here) would wait for them and acknowledge nothing.
            self._send_telemetry(boot_id, first, (), first)
        floor = self._floors.setdefault(boot_id, first)
        together: list[OutboxRecord] = []
        for record in records:
            event = _event(record)
            if event is None:
                together.append(record)
            else:
                self._send_together(together, floor)
                together = []
                self._send(self._topics.event(self._device), event.to_bytes(), event.content_type)
        self._send_together(together, floor)

    def _send_together(self, records: Sequence[OutboxRecord], floor: int) -> None:
        if not records:
            return
        first = records[0]
        self._send_telemetry(first.boot_id, first.seq, records, min(floor, first.seq))

    def _send_telemetry(
        self, boot_id: str, first_seq: int, records: Sequence[OutboxRecord], floor: int
    ) -> None:
        message = Telemetry(
            boot_id=boot_id,
            first_seq=first_seq,
            records=tuple(
                TelemetryRecord(offset=r.seq - first_seq, kind=r.kind, at=max(r.at, 0.0), payload=r.payload)
                for r in records
            ),
            floor=floor,
            sent_at=self._now(),
        )
        topic = self._topics.telemetry(self._device)
        self._send(topic, message.to_bytes(), message.content_type, _TELEMETRY_EXPIRY_S)

    # -- the link

    def _send(
        self, topic: str, payload: bytes, content_type: str, expiry_s: int | None = None
    ) -> Publication:
        if self._link is None:
            raise LinkError("there is no link yet")
        return self._link.publish(
            Outgoing(topic=topic, payload=payload, content_type=content_type, expiry_s=expiry_s)
        )

    def _try_to_send(self, topic: str, payload: bytes, content_type: str) -> Publication | None:
        try:
            return self._send(topic, payload, content_type)
        except LinkError as e:
            _log.info("not sent to %s: %s", topic, e)
            return None

    def _now(self) -> float:
        return max(self._clock.wall(), 0.0)


def new_boot_id(random: Callable[[int], str] = secrets.token_hex) -> str:
    """Return the name of a start."""
    return random(8)


def _event(record: OutboxRecord) -> DeviceEvent | None:
    """Return a record as the event that it is; None where it is something else."""
    if record.kind != EVENT_KIND:
        return None
    try:
        event = DeviceEvent.from_bytes(record.payload)
    except ProtocolError:  # of a newer agent that ran here before
        return None
    return replace(event, boot_id=record.boot_id, seq=record.seq)


def _model_report(state: State) -> ModelReport:
    wanted = state.candidate or state.pending
    return ModelReport(
        state=state.phase,
        active=None if state.active is None else state.active.digest,
        previous=None if state.previous is None else state.previous.digest,
        candidate=None if wanted is None or not wanted.digest else wanted.digest,
        reason=state.reason or None,
        detail=state.detail[:_MAX_DETAIL],
        since=max(state.since_s, 0.0),
    )
