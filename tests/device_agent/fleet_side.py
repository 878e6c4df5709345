"""The other side of an agent, for tests: a publisher on a directory, and a server that acknowledges."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from edgec.delta import ChunkMap, make_delta
from edgec.device_agent import AgentConfig, BrokerSettings, UpdateSettings
from edgec.errors import LinkError
from edgec.protocol import (
    Announcement,
    Command,
    CommandReply,
    DeviceEvent,
    DeviceView,
    LinkOptions,
    MqttLink,
    Outgoing,
    Presence,
    Received,
    Reported,
    Subscription,
    Telemetry,
    Topics,
    desired_of,
)
from edgec.protocol._chunks import ChunkServer
from edgec.protocol.brokers import Broker
from edgec.trust import (
    DirectorRepository,
    ImageRepository,
    KeyRing,
    generate_key,
    open_repositories,
    publish_artifact,
    sign_command,
)

DEVICE = "dev1"
HARDWARE = "cpu-x86_64"
KEYS = (
    ("root-1", "root"), ("root-2", "root"), ("targets-1", "targets"), ("online", "online"),
    ("director", "director"),
)  # fmt: skip


class Publisher:
    """Repositories and all keys, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repo = folder, folder / "repo"
        for name, role in KEYS:
            generate_key(folder / "keys", name, role)
        self.ring = KeyRing([folder / "keys"])
        image, director = self.open()
        image.initialise()
        director.initialise()
        image.release()
        director.release()

    def open(self) -> tuple[ImageRepository, DirectorRepository]:
        return open_repositories(self.repo, self.ring)

    def publish(self, artifact: Path) -> str:
        """Publish an artifact, with a patch, and put it in force; return its path as a target."""
        image, _ = self.open()
        target = publish_artifact(
            image, artifact, make_delta=make_delta, make_map=lambda path: ChunkMap.of_file(path).to_bytes()
        )
        image.release()
        return target.path

    def file(self, path: str) -> Path:
        """Return where a published artifact lies."""
        return self.repo / self.open()[0].targets()[path].location

    def command(self, name: str, args: Mapping[str, Any] | None = None, **more: Any) -> Command:
        """Return a signed command for the device, as it goes over the broker."""
        options: dict[str, Any] = {"issued_at": time.time(), "device": DEVICE, "command_id": None, **more}
        signers = self.ring.signers([key.keyid for key in self.ring.of_role("director")])
        envelope = sign_command(signers, name, args, **options)
        signed = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        return Command(
            id=signed["id"],
            name=name,
            issued_at=signed["issued_at"],
            expires_at=signed["expires_at"],
            envelope=envelope.decode(),
        )


@dataclass
class Heard:
    """What a server has of one device."""

    view: DeviceView = field(default_factory=DeviceView)
    events: dict[tuple[str, int], DeviceEvent] = field(default_factory=dict)
    records: dict[tuple[str, int], bytes] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    ledgers: dict[str, Received] = field(default_factory=dict)
    replies: list[CommandReply] = field(default_factory=list)
    repeated: int = 0


class Server:
    """Listens to all devices over a broker, acknowledges what they keep, and sends pieces of files."""

    def __init__(self, broker: Broker, repo: Path | None = None, tenant: str = "default") -> None:
        self.topics = Topics(tenant)
        tls = broker.authority.client("fleet").client_context()
        filters = tuple(Subscription(filter=f) for f in self.topics.for_fleet())
        self.link = MqttLink(
            LinkOptions(
                host=broker.host, port=broker.port, client_id="fleet", tls=tls, subscriptions=filters,
                first_retry_s=0.2, last_retry_s=1.0,
            )
        )  # fmt: skip
        self.chunks = None if repo is None else ChunkServer(self.link, self.topics, repo)
        self.acknowledges = True
        self.messages = 0
        self.devices: dict[str, Heard] = {}
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Server:
        self.link.start()
        self.link.wait_connected(60)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self.link.nudge()
        self._thread.join()
        self.link.close()

    def heard(self, device: str = DEVICE) -> Heard:
        return self.devices.setdefault(device, Heard())

    def want(self, publisher: Publisher, models: dict[str, str], device: str = DEVICE, **more: Any) -> int:
        """Assign, and tell the device; return the epoch. `more` is for ``DirectorRepository.assign``."""
        _, director = publisher.open()
        bundle = director.assign(device, models, **more)
        self.tell(desired_of(bundle).to_bytes(), device)
        return bundle.epoch

    def tell(self, payload: bytes, device: str = DEVICE) -> None:
        """Send what may be no document of what is wanted at all."""
        self.link.wait_connected(60)
        self.link.publish(Outgoing(topic=self.topics.desired(device), payload=payload, retain=True)).wait(60)

    def order(self, command: Command, device: str = DEVICE) -> None:
        topic = self.topics.command(device, command.name)
        self.link.publish(Outgoing(topic=topic, payload=command.to_bytes())).wait(60)

    def wait(self, holds: Callable[[Heard], Any], timeout_s: float = 90.0, device: str = DEVICE) -> Heard:
        """Wait until something holds of what was heard."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not holds(self.heard(device)):
                left = end - time.monotonic()
                assert left > 0, f"it did not come to pass: {self.heard(device)}"
                self._changed.wait(left)
            return self.heard(device)

    def ended(
        self, epoch: int, model: str = "digits", timeout_s: float = 90.0, device: str = DEVICE
    ) -> DeviceEvent:
        """Wait for the event that an update has ended; return it."""
        ends = {f"update_{r}" for r in ("committed", "failed", "rolled_back", "refused", "aborted", "removed",
                                        "unchanged", "superseded", "prepared")}  # fmt: skip

        def found(heard: Heard) -> list[DeviceEvent]:
            return [
                e for e in heard.events.values()
                if e.kind in ends and e.data["epoch"] == str(epoch) and e.model == model
            ]  # fmt: skip

        return found(self.wait(found, timeout_s, device))[0]

    def _listen(self) -> None:
        while not self._over:
            inbound = self.link.get(timeout_s=1.0)
            if inbound is None:
                continue
            address = self.topics.parse(inbound.topic)
            assert address is not None
            self.messages += 1
            with self._changed:
                self._take(self.heard(address.device), address.device, address.kind, inbound.payload)
                self._changed.notify_all()
            if self.chunks is not None and address.kind == "req":
                self.chunks.take(inbound)
            inbound.ack()

    def _take(self, heard: Heard, device: str, kind: str, payload: bytes) -> None:
        if kind == "state":
            heard.view = heard.view.apply(Presence.from_bytes(payload), time.time())
        elif kind == "reported":
            heard.view = heard.view.apply(Reported.from_bytes(payload), time.time())
        elif kind == "rsp":
            heard.replies.append(CommandReply.from_bytes(payload))
        elif kind == "event":
            event = DeviceEvent.from_bytes(payload)
            heard.repeated += (event.boot_id, event.seq) in heard.events
            heard.events[event.boot_id, event.seq] = event
            ledger = heard.ledgers.get(event.boot_id, Received(boot_id=event.boot_id))
            self._acknowledge(heard, device, ledger.take([event.seq])[0])
        elif kind == "tele":
            telemetry = Telemetry.from_bytes(payload)
            for seq, record in telemetry.numbered():
                # One kind to each record, in their order: what comes again is none.
                if (telemetry.boot_id, seq) not in heard.records:
                    heard.kinds.append(record.kind)
                heard.records[telemetry.boot_id, seq] = record.payload
            ledger = heard.ledgers.get(telemetry.boot_id, Received(boot_id=telemetry.boot_id))
            self._acknowledge(heard, device, ledger.take_telemetry(telemetry)[0])

    def _acknowledge(self, heard: Heard, device: str, ledger: Received) -> None:
        heard.ledgers[ledger.boot_id] = ledger
        if not self.acknowledges:
            return
        with suppress(LinkError):  # it comes again
            self.link.publish(Outgoing(topic=self.topics.ack(device), payload=ledger.ack().to_bytes()))


def config(
    folder: Path, publisher: Publisher, broker: Broker | None, device: str = DEVICE, **more: Any
) -> AgentConfig:
    """Return settings of a device below a folder."""
    settings = None
    if broker is not None:
        files = broker.authority.client(device)
        settings = BrokerSettings(
            host=broker.host, port=broker.port, authority=files.authority, certificate=files.certificate,
            key=files.key, keepalive_s=10,
        )  # fmt: skip
    options: dict[str, Any] = {
        "updates": UpdateSettings(probation_s=0.3, refresh_s=0, health_timeout_s=60),
        "sources": (str(publisher.repo),),
        **more,
    }
    return AgentConfig(
        device=device,
        hardware=(HARDWARE,),
        state_dir=folder / device,
        image_root=publisher.repo / "image/1.root.json",
        director_root=publisher.repo / "director/1.root.json",
        broker=settings,
        **options,
    )


def quick_link(options: LinkOptions, announce: Callable[[int], Announcement]) -> MqttLink:
    """Return a link that does not wait long before it connects again."""
    return MqttLink(replace(options, first_retry_s=0.1, last_retry_s=0.5), announce=announce)
