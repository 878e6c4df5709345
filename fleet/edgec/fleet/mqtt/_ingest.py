"""Messages of devices, gathered into transactions; acknowledged, to broker and device, once they are kept."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from edgec.errors import LinkError, ProtocolError
from edgec.fleet.mqtt._counters import Counters
from edgec.fleet.mqtt._settings import MqttSettings
from edgec.fleet.store import Store
from edgec.fleet.store._hearing import Said
from edgec.fleet.store._telemetry import Told
from edgec.protocol import (
    CommandReply,
    DeviceEvent,
    Inbound,
    Message,
    MqttLink,
    Outgoing,
    Presence,
    Reported,
    Telemetry,
    TelemetryAck,
    Topics,
)

_log = logging.getLogger(__name__)
_KINDS: Mapping[str, type[Message]] = {
    "state": Presence,
    "reported": Reported,
    "tele": Telemetry,
    "event": DeviceEvent,
    "rsp": CommandReply,
}
# The database is away, full, or writes nothing: nothing is acknowledged, and the broker keeps what comes.
_RETRY_S = (0.1, 5.0)
_MOST_UNSENT = 20_000


@dataclass(kw_only=True)
class _Batch:
    """What is kept together."""

    inbound: list[Inbound] = field(default_factory=list)
    said: list[tuple[str, Said]] = field(default_factory=list)
    told: list[tuple[str, Told]] = field(default_factory=list)
    replies: list[tuple[str, CommandReply]] = field(default_factory=list)
    began: float = 0.0


class Ingest:
    """Takes what devices send; `run` is a thread's. A message is acknowledged when it is committed."""

    def __init__(
        self,
        link: MqttLink,
        topics: Topics,
        store: Store,
        counters: Counters,
        settings: MqttSettings,
        *,
        clock: Callable[[], float],
        heard: Callable[[], None],
        reply: Callable[[str, CommandReply], None],
    ) -> None:
        """Take in what a link receives.

        Args:
            link: Subscribed to all that devices say.
            topics: Of the tenant.
            store: Of the fleet.
            counters: Are counted up.
            settings: Of batches.
            clock: Seconds since 1970.
            heard: Called after devices said something new of themselves.
            reply: Called with device and reply to a command.
        """
        self._link, self._topics, self._store, self._counters = link, topics, store, counters
        self._settings, self._clock = settings, clock
        self._heard, self._reply = heard, reply
        self._unsent: dict[tuple[str, str], TelemetryAck] = {}
        self._stop = threading.Event()
        self._kept_s = 0.0

    def stop(self) -> None:
        """Let `run` return after the batch in hand."""
        self._stop.set()
        self._link.nudge()

    def run(self) -> None:
        """Take messages in until `stop`."""
        while not self._stop.is_set():
            batch = self._gather()
            if batch.inbound:
                self._keep(batch)
            self._flush()

    def _gather(self) -> _Batch:
        """Wait for a message, and a moment for others."""
        batch = _Batch()
        inbound = self._link.get(timeout_s=0.1 if self._unsent else 1.0)
        batch.began = time.monotonic()
        settings = self._settings
        patience = max(settings.batch_s, min(2 * self._kept_s, settings.slow_batch_s))
        while inbound is not None:
            self._sort(batch, inbound)
            left = batch.began + patience - time.monotonic()
            if len(batch.inbound) >= self._settings.batch_messages or self._stop.is_set():
                break
            inbound = self._link.get(timeout_s=max(left, 0.0))
        return batch

    def _sort(self, batch: _Batch, inbound: Inbound) -> None:
        """Put a message where it belongs; what is none is counted, and acknowledged with the others."""
        batch.inbound.append(inbound)
        try:
            address = self._topics.parse(inbound.topic)
            if address is None or not address.up or address.kind not in _KINDS:
                self._counters.count("dropped", "topic")
                return
            # A retained message that was taken away.
            if address.kind == "state" and not inbound.payload:
                return
            message = _KINDS[address.kind].from_bytes(inbound.payload)
        except ProtocolError as e:
            self._counters.count("dropped", "malformed")
            _log.debug("%s sends what is no message: %s", inbound.topic, e)
            return
        self._counters.count("messages", address.kind)
        if isinstance(message, Presence | Reported):
            batch.said.append((address.device, message))
        elif isinstance(message, Telemetry | DeviceEvent):
            batch.told.append((address.device, message))
        elif isinstance(message, CommandReply):
            batch.replies.append((address.device, message))

    def _keep(self, batch: _Batch) -> None:
        began = time.monotonic()
        kept = self._written(batch.said, batch.told)
        if kept is None:
            return
        for inbound in batch.inbound:
            inbound.ack()
        self._count(batch, began)
        for device, ack in kept[1]:
            # A newer one says what an older one would have said.
            self._unsent[device, ack.boot_id] = ack
        for device, reply in batch.replies:
            self._reply(device, reply)
        if kept[0]:
            self._heard()

    def _count(self, batch: _Batch, began: float) -> None:
        now = time.monotonic()
        self._kept_s = now - began
        self._counters.count("batches")
        self._counters.count("records", by=sum(_records(message) for _, message in batch.told))
        self._counters.spend("batch_seconds", now - began)
        self._counters.spend("lag_seconds", (now - batch.began) * len(batch.inbound))

    def _written(
        self, said: Sequence[tuple[str, Said]], told: Sequence[tuple[str, Told]]
    ) -> tuple[set[str], list[tuple[str, TelemetryAck]]] | None:
        """Keep a batch, however long it takes; None where the end came first: nothing may be acknowledged."""
        if not said and not told:
            return set(), []
        wait = _RETRY_S[0]
        while (kept := self._attempt(said, told)) is None:
            if self._stop.wait(wait):
                return None
            wait = min(2 * wait, _RETRY_S[1])
        if isinstance(kept, Exception):
            return self._one_by_one(said, told, kept)
        views, acks = kept
        known = {device for device, _ in acks}
        strangers = sum(d not in views for d, _ in said) + sum(d not in known for d, _ in told)
        self._counters.count("dropped", "unknown_device", by=strangers)
        return views, acks

    def _attempt(
        self, said: Sequence[tuple[str, Said]], told: Sequence[tuple[str, Told]]
    ) -> tuple[set[str], list[tuple[str, TelemetryAck]]] | Exception | None:
        """Keep a batch once; None where the database is away, an error where what is in it is refused."""
        try:
            views, acks = self._store.ingest(said, told, self._clock())
        except (DataError, IntegrityError) as e:
            return e
        except (SQLAlchemyError, OSError, MemoryError) as e:
            self._counters.count("repeated_batches")
            _log.warning("messages cannot be kept, and wait: %s", e)
            return None
        except Exception as e:  # noqa: BLE001
            # What a message provokes beyond what is known: it must not stop those of all other devices.
            return e
        return set(views), acks

    def _one_by_one(
        self, said: Sequence[tuple[str, Said]], told: Sequence[tuple[str, Told]], error: Exception
    ) -> tuple[set[str], list[tuple[str, TelemetryAck]]] | None:
        """Find the message that is refused: one device's must not stop all others."""
        if len(said) + len(told) == 1:
            self._counters.count("dropped", "refused")
            _log.error("a message of %s is refused: %s", [*said, *told][0][0], error, exc_info=error)
            return set(), []
        views: set[str] = set()
        acks: list[tuple[str, TelemetryAck]] = []
        for one in (*said, *told):
            kept = self._written(
                [(one[0], one[1])] if isinstance(one[1], Presence | Reported) else [],
                [(one[0], one[1])] if isinstance(one[1], Telemetry | DeviceEvent) else [],
            )
            if kept is None:
                return None
            views |= kept[0]
            acks += kept[1]
        return views, acks

    def _flush(self) -> None:
        """Send acknowledgements, as many as the link takes now."""
        while self._unsent:
            device, boot = key = next(iter(self._unsent))
            if not self._acknowledge(device, self._unsent[key]):
                break
            del self._unsent[device, boot]
        while len(self._unsent) > _MOST_UNSENT:
            # The device sends again, and is answered again.
            del self._unsent[next(iter(self._unsent))]
            self._counters.count("acknowledgements", "lost")

    def _acknowledge(self, device: str, ack: TelemetryAck) -> bool:
        try:
            payload = ack.to_bytes()
        except ProtocolError as e:
            self._counters.count("acknowledgements", "lost")
            _log.error("%s cannot be told what is kept: %s", device, e)
            return True
        message = Outgoing(topic=self._topics.ack(device), payload=payload, content_type="application/cbor")
        try:
            self._link.publish(message)
        except LinkError:
            return False
        self._counters.count("acknowledgements", "sent")
        return True


def _records(message: Told) -> int:
    return len(message.records) if isinstance(message, Telemetry) else 1
