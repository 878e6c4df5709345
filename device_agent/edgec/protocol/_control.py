"""What a fleet wants of a device, and what the device says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgec.errors import ProtocolError
from edgec.protocol._kinds import (
    COUNT,
    FILE_NAME,
    ID,
    PATH,
    SHA256,
    TIME,
    WORD,
    Choice,
    Flag,
    ListOf,
    MapOf,
    Maybe,
    Text,
)
from edgec.protocol._message import MAX_MESSAGE_BYTES, Fields, Message, Record, wire

MAX_MODELS = 64
_BOOT_EPOCH_DOC = "Starts of the agent on this device, kept on its disk: one more at each start."
_BOOT_ID_DOC = "Made at random at each start."


@dataclass(frozen=True, kw_only=True)
class Presence(Message):
    """A device is there, or no longer. Retained, and the will of the device's connection.

    A will may arrive long after the device came back. The greater of (boot_epoch, connection) is the newer;
    of one connection, what says offline is the newer, since a connection ends once.
    """

    online: bool = wire(Flag())
    boot_epoch: int = wire(COUNT, doc=_BOOT_EPOCH_DOC)
    boot_id: str = wire(ID, doc=_BOOT_ID_DOC)
    connection: int = wire(
        COUNT, doc="Connections, and attempts at one, since that start, this one included."
    )
    agent: str = wire(Text(64), doc="Name and version of the agent's software.")
    sent_at: float = wire(TIME, doc="Seconds since 1970 by the device's clock; of a will, of the connection.")
    hardware: str = wire(Text(64), default="", doc="Class of hardware, as targets of updates name it.")

    def as_will(self) -> Presence:
        """Return the will of the connection that this birth is about."""
        return replace(self, online=False)


@dataclass(frozen=True, kw_only=True)
class Patch(Fields):
    """A shorter way from a file that the device has. Only the digest of the whole result is trusted."""

    source_sha256: str = wire(SHA256, doc="Of the file it applies to.")
    path: str = wire(PATH)
    length: int = wire(COUNT)
    sha256: str = wire(SHA256, doc="Of the patch itself.")


@dataclass(frozen=True, kw_only=True)
class DesiredModel(Fields):
    """The artifact that a model is to have."""

    path: str = wire(PATH, doc="Of the target in the image repository.")
    length: int = wire(COUNT, doc="Bytes of the whole artifact.")
    sha256: str = wire(SHA256, doc="Of the whole artifact.")
    patches: tuple[Patch, ...] = wire(ListOf(Record(Patch), 16), default=())


@dataclass(frozen=True, kw_only=True)
class Metadata(Fields):
    """Signed metadata of both repositories, by file name, as its text."""

    director: Mapping[str, str] = wire(MapOf(FILE_NAME, Text(MAX_MESSAGE_BYTES), 32), default={})
    image: Mapping[str, str] = wire(MapOf(FILE_NAME, Text(MAX_MESSAGE_BYTES), 64), default={})


@dataclass(frozen=True, kw_only=True)
class Desired(Message):
    """What a device is to have. Retained; it says nothing that signed metadata does not confirm."""

    epoch: int = wire(COUNT, doc="Greater each time something else is wanted; a device never goes back.")
    revision: int = wire(
        COUNT, default=0, doc="Greater each time metadata or sources of the epoch are newer."
    )
    models: Mapping[str, DesiredModel] = wire(
        MapOf(ID, Record(DesiredModel), MAX_MODELS), doc="By the name the device's applications use."
    )
    metadata: Metadata | None = wire(
        Maybe(Record(Metadata)), default=None, doc="So that no other request is needed."
    )
    sources: tuple[str, ...] = wire(ListOf(Text(512), 8), default=(), doc="Base URLs of repositories.")


@dataclass(frozen=True, kw_only=True)
class ModelReport(Fields):
    """What a device has of one model, and how far an update of it is."""

    state: str = wire(WORD, doc="Of the update: idle, downloading, shadow, probation, committed ...")
    active: str | None = wire(Maybe(SHA256), default=None, doc="The artifact that serves.")
    previous: str | None = wire(Maybe(SHA256), default=None, doc="The one to fall back to.")
    candidate: str | None = wire(Maybe(SHA256), default=None, doc="The one an update is about.")
    reason: str | None = wire(Maybe(WORD), default=None, doc="Why it is in this state, for programs.")
    detail: str = wire(Text(1024), default="", doc="The same for people.")
    since: float = wire(TIME, doc="Seconds since 1970 by the device's clock.")


@dataclass(frozen=True, kw_only=True)
class Alert(Fields):
    """Something about the device as a whole that a person should know."""

    reason: str = wire(WORD, doc="For programs: desired_conflict, regressed, state_lost, disk_full ...")
    detail: str = wire(Text(1024), default="")


@dataclass(frozen=True, kw_only=True)
class Reported(Message):
    """What a device has. With `epoch` it acknowledges the `Desired` of that epoch, done or not."""

    boot_epoch: int = wire(COUNT, doc=_BOOT_EPOCH_DOC)
    boot_id: str = wire(ID, doc=_BOOT_ID_DOC)
    seq: int = wire(COUNT, doc="One more with each report since that start.")
    epoch: int = wire(COUNT, doc="The greatest epoch of `Desired` that it has taken notice of; 0 for none.")
    models: Mapping[str, ModelReport] = wire(MapOf(ID, Record(ModelReport), MAX_MODELS))
    sent_at: float = wire(TIME)
    alerts: tuple[Alert, ...] = wire(ListOf(Record(Alert), 16), default=())


SEVERITIES = ("info", "warning", "error", "security")


@dataclass(frozen=True, kw_only=True)
class DeviceEvent(Message):
    """Something that happened on a device; kept there until a `TelemetryAck` names its sequence number."""

    boot_epoch: int = wire(COUNT, doc=_BOOT_EPOCH_DOC)
    boot_id: str = wire(ID, doc=_BOOT_ID_DOC)
    seq: int = wire(COUNT, doc="Among all records of that start, those of telemetry included.")
    at: float = wire(TIME)
    kind: str = wire(WORD, doc="What happened: update_failed, crash, fallback, command ...")
    severity: str = wire(Choice(SEVERITIES), default="info")
    model: str | None = wire(Maybe(ID), default=None)
    reason: str | None = wire(Maybe(WORD), default=None)
    detail: str = wire(Text(4096), default="")
    data: Mapping[str, str] = wire(MapOf(WORD, Text(1024), 32), default={})


@dataclass(frozen=True, kw_only=True)
class Poke(Message):
    """Look for news now, all devices of a group."""

    reason: str = wire(WORD, default="refresh")


@dataclass(frozen=True, kw_only=True)
class Command(Message):
    """Do something once. The broker's word alone authorises nothing: the envelope is signed."""

    id: str = wire(ID, doc="The same when it is sent again; the reply has it too.")
    name: str = wire(WORD, doc="As in the topic.")
    issued_at: float = wire(TIME)
    expires_at: float = wire(TIME, doc="It is neither sent nor begun later than this.")
    envelope: str = wire(
        Text(96 * 1024), doc="A DSSE envelope, as its JSON text, that names device and command."
    )

    def check(self, where: str) -> None:
        """Refuse one that expires before it was issued."""
        if self.expires_at < self.issued_at:
            raise ProtocolError(f"{where} expires before it is issued: check the clock of what sent it")


REPLY_STATES = ("accepted", "done", "failed", "refused", "expired")


@dataclass(frozen=True, kw_only=True)
class CommandReply(Message):
    """What became of a command. ``accepted`` acknowledges it; every other state is the last."""

    id: str = wire(ID)
    name: str = wire(WORD)
    state: str = wire(Choice(REPLY_STATES))
    boot_id: str = wire(ID, doc=_BOOT_ID_DOC)
    sent_at: float = wire(TIME)
    reason: str | None = wire(Maybe(WORD), default=None)
    detail: str = wire(Text(4096), default="")
    result: str = wire(
        Text(96 * 1024), default="", doc="What the command returns, JSON as its text; or nothing."
    )

    @property
    def final(self) -> bool:
        """Whether no other reply follows."""
        return self.state != "accepted"
