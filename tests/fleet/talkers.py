"""Devices that only talk: many over one connection, each as obedient and as forgetful as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgec.errors import LinkError
from edgec.protocol import (
    Desired,
    DesiredView,
    DeviceEvent,
    LinkOptions,
    Message,
    ModelReport,
    ModelWindow,
    MqttLink,
    Outgoing,
    Presence,
    Reported,
    Subscription,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
    Topics,
)
from edgec.protocol.brokers import Broker
from edgec.sketch import QuantileSketch


@dataclass
class Talker:
    """One device.

    Attributes:
        obedient: Whether it does what it is told, at once.
        view: What it believes that it is to have.
        history: Every document that came, in order.
        kept: What the fleet has acknowledged, by boot.
    """

    name: str
    boot: str = "b1"
    boot_epoch: int = 1
    obedient: bool = True
    view: DesiredView = field(default_factory=DesiredView)
    history: list[Desired] = field(default_factory=list)
    kept: dict[str, TelemetryAck] = field(default_factory=dict)
    connection: int = 0
    seq: int = 0

    def presence(self, *, online: bool = True) -> Presence:
        return Presence(
            online=online, boot_epoch=self.boot_epoch, boot_id=self.boot, connection=self.connection,
            agent="talker", sent_at=time.time(),
        )  # fmt: skip

    def report(self, **more: Any) -> Reported:
        self.seq += 1
        desired = self.view.desired
        has = desired.models.items() if desired else ()
        return Reported(
            boot_epoch=self.boot_epoch, boot_id=self.boot, seq=self.seq, epoch=self.view.epoch,
            models={name: ModelReport(state="idle", active=m.sha256, since=0.0) for name, m in has},
            sent_at=time.time(), **more,
        )  # fmt: skip


class Talkers:
    """Many of them, over one connection of the fleet's own identity, which may say anything."""

    def __init__(self, broker: Broker, names: Iterable[str] = (), client_id: str = "talkers") -> None:
        self.topics = Topics("default")
        self.devices = {name: Talker(name) for name in names}
        root = self.topics.desired("x").removesuffix("/d/x/dn/desired")
        self.link = MqttLink(
            LinkOptions(
                host=broker.host, port=broker.port, client_id=client_id,
                tls=broker.authority.client("fleet").client_context(),
                subscriptions=(Subscription(filter=f"{root}/d/+/dn/#"),),
                first_retry_s=0.1, last_retry_s=0.5, inbound_messages=4096, outbound_messages=4096,
            )
        )  # fmt: skip
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Talkers:
        self.link.start()
        self.link.wait_connected(60)
        self._thread.start()
        for name in self.devices:
            self.join(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self.link.nudge()
        self._thread.join()
        self.link.close()

    def join(self, name: str) -> Talker:
        """Let a device connect: it says that it is there, and what it has."""
        device = self.devices.setdefault(name, Talker(name))
        device.connection += 1
        self.say(name, device.presence())
        self.say(name, device.report())
        return device

    def say(self, name: str, message: Message, *, wait_s: float = 60.0) -> None:
        """Say something as a device; where there is no connection, once there is one."""
        end = time.monotonic() + wait_s
        topic = {
            Presence: self.topics.state, Reported: self.topics.reported, Telemetry: self.topics.telemetry,
            DeviceEvent: self.topics.event,
        }[type(message)](name)  # fmt: skip
        outgoing = Outgoing(topic=topic, payload=message.to_bytes(), retain=isinstance(message, Presence))
        while not self._said(outgoing):
            assert time.monotonic() < end, "there is no broker"

    def _said(self, outgoing: Outgoing) -> bool:
        try:
            self.link.wait_connected(10)
            self.link.publish(outgoing).wait(10)
        except LinkError:
            return False
        return True

    def raw(self, topic: str, payload: bytes) -> None:
        """Say anything."""
        self.link.publish(Outgoing(topic=topic, payload=payload)).wait(30)

    def tell_until_kept(self, name: str, message: Telemetry, timeout_s: float = 90.0) -> None:
        """Send records as an outbox does: until every one is acknowledged by the fleet."""
        end = time.monotonic() + timeout_s
        device, last = self.devices[name], message.first_seq + message.records[-1].offset
        while True:
            self.say(name, message)
            if self._wait(lambda: self._covered(device, message.boot_id, last), 1.5):
                return
            assert time.monotonic() < end, f"{name}: {last} was never acknowledged"

    def wait(self, holds: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Wait until something holds of what was heard."""
        assert self._wait(holds, timeout_s), {
            d.name: (d.view.epoch, len(d.history)) for d in self.devices.values()
        }

    def _wait(self, holds: Callable[[], Any], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        with self._changed:
            while not holds():
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.2))
        return True

    @staticmethod
    def _covered(device: Talker, boot: str, seq: int) -> bool:
        return boot in device.kept and device.kept[boot].covers(seq)

    def _listen(self) -> None:
        while not self._over:
            inbound = self.link.get(timeout_s=1.0)
            if inbound is None:
                continue
            address = self.topics.parse(inbound.topic)
            device = self.devices.get(address.device) if address else None
            answer = None
            with self._changed:
                if device is not None and address is not None and inbound.payload:
                    answer = self._take(device, address.kind, inbound.payload)
                self._changed.notify_all()
            if answer is not None and device is not None:
                with suppress(LinkError):
                    self.link.publish(
                        Outgoing(topic=self.topics.reported(device.name), payload=answer.to_bytes())
                    )
            inbound.ack()

    def _take(self, device: Talker, kind: str, payload: bytes) -> Reported | None:
        if kind == "ack":
            ack = TelemetryAck.from_bytes(payload)
            device.kept[ack.boot_id] = ack
        elif kind == "desired":
            desired = Desired.from_bytes(payload)
            device.history.append(desired)
            if device.obedient:
                before, device.view = device.view, device.view.apply(desired)
                if device.view.epoch != before.epoch:
                    return device.report()
        return None


def window(calls: int, *, model: str = "m", digest: str = "a" * 64, since: float = 0.0) -> ModelWindow:
    """Return a window of calls that took one millisecond each."""
    sketch = QuantileSketch()
    sketch.add_many(np.ones(calls))
    return ModelWindow(
        model=model, digest=bytes.fromhex(digest)[:8], since=since or time.time(), seconds=60.0, calls=calls,
        sampled=calls, latency_ms=sketch.to_bytes(), classes={1: calls},
    )  # fmt: skip


def telemetry(first: int, *windows: ModelWindow, boot: str = "b1") -> Telemetry:
    """Return a message with windows, numbered from `first` on."""
    return Telemetry(
        boot_id=boot,
        first_seq=first,
        sent_at=time.time(),
        records=tuple(
            TelemetryRecord(offset=i, kind="window", at=w.since, payload=w.to_bytes())
            for i, w in enumerate(windows)
        ),
    )


def again(message: Telemetry, boot: str) -> Telemetry:
    """Return the same records as of another boot."""
    return replace(message, boot_id=boot)
