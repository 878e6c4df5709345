"""A server in miniature: what a device says is kept once and acknowledged; files go over the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgec.errors import LinkError, ProtocolError
from edgec.protocol import (
    ChunkServer,
    DeviceEvent,
    DeviceView,
    Inbound,
    LinkOptions,
    ModelReport,
    ModelWindow,
    MqttLink,
    Outgoing,
    Presence,
    Received,
    Reported,
    Subscription,
    Telemetry,
    Topics,
)
from edgec.protocol.brokers import FLEET, Broker


class Fleet:
    """Hears one device over a broker.

    Attributes:
        view: What is believed of the device.
        events: That came, each once.
        windows: That came, each once.
        records: How many came, each counted once.
        repeated: How many came again; they are counted nowhere else.
    """

    def __init__(self, broker: Broker, topics: Topics, device: str, repository: Path) -> None:
        options = LinkOptions(
            host=broker.host,
            port=broker.port,
            client_id=FLEET,
            tls=broker.authority.client(FLEET).client_context(),
            subscriptions=tuple(Subscription(filter=f) for f in topics.for_fleet()),
            first_retry_s=0.2,
            last_retry_s=0.5,
        )
        self.view = DeviceView()
        self.events: list[DeviceEvent] = []
        self.windows: list[ModelWindow] = []
        self.records = self.repeated = 0
        self._topics, self._device = topics, device
        self._ledgers: dict[str, Received] = {}
        self._link = MqttLink(options)
        self._files = ChunkServer(self._link, topics, repository)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Fleet:
        self._link.start()
        self._link.wait_connected(20)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._link.close()
        self._thread.join()

    @property
    def gaps(self) -> int:
        """How many sequence numbers are missing between those that came."""
        return sum(
            later[0] - earlier - 1
            for ledger in self._ledgers.values()
            for earlier, later in zip(
                (ledger.up_to, *(last for _, last in ledger.ranges)), ledger.ranges, strict=False
            )
        )

    def report(self, model: str) -> ModelReport | None:
        """Return the newest report of a model."""
        reported = self.view.reported
        return None if reported is None else reported.models.get(model)

    def event(self, kind: str, epoch: int | None = None) -> DeviceEvent | None:
        """Return the first event of a kind, and of an epoch if one is given."""
        found = (e for e in list(self.events) if e.kind == kind)
        return next((e for e in found if epoch is None or e.data.get("epoch") == str(epoch)), None)

    def wait(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Wait until a condition holds, looked at with every message; return whether it does."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.25))
        return True

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish as whoever may write to devices."""
        self._link.publish(Outgoing(topic=topic, payload=payload, retain=retain)).wait(10)

    def _listen(self) -> None:
        while not self._stopping:
            inbound = self._link.get(timeout_s=1)
            if inbound is None:
                continue
            with self._changed:
                try:
                    self._take(inbound)
                except ProtocolError as e:
                    print(f"   the fleet heard what is no message: {e}")
                self._changed.notify_all()
            inbound.ack()

    def _take(self, inbound: Inbound) -> None:
        address = self._topics.parse(inbound.topic)
        if address is None or address.device != self._device or self._files.take(inbound):
            return
        if address.kind == "state":
            self.view = self.view.apply(Presence.from_bytes(inbound.payload), time.time())
        elif address.kind == "reported":
            self.view = self.view.apply(Reported.from_bytes(inbound.payload), time.time())
        elif address.kind == "event":
            event = DeviceEvent.from_bytes(inbound.payload)
            if self._keep(event.boot_id, [event.seq]):
                self.events.append(event)
        elif address.kind == "tele":
            telemetry = Telemetry.from_bytes(inbound.payload)
            numbers = [seq for seq, _ in telemetry.numbered()]
            new = self._keep(telemetry.boot_id, numbers, telemetry.floor)
            self.windows += [
                ModelWindow.from_bytes(record.payload)
                for seq, record in telemetry.numbered()
                if seq in new and record.kind == "window"
            ]

    def _keep(self, boot_id: str, numbers: list[int], floor: int = 0) -> tuple[int, ...]:
        """Count what is new, acknowledge all; return the numbers of what is new."""
        ledger, new = self._ledgers.get(boot_id, Received(boot_id=boot_id)).take(numbers, floor=floor)
        self._ledgers[boot_id] = ledger
        self.records += len(new)
        self.repeated += len(numbers) - len(new)
        # Where it gets lost, the device sends again, and is answered again.
        with suppress(LinkError):
            self._link.publish(
                Outgoing(topic=self._topics.ack(self._device), payload=ledger.ack().to_bytes())
            )
        return new
