"""What a device and its fleet say to each other over MQTT: topics, messages and the link."""

from edgec.protocol._control import (
    Alert,
    Command,
    CommandReply,
    Desired,
    DesiredModel,
    DeviceEvent,
    Metadata,
    ModelReport,
    Patch,
    Poke,
    Presence,
    Reported,
)
from edgec.protocol._ledgers import Handled, Issued, Received
from edgec.protocol._link import MqttLink
from edgec.protocol._losses import LossCount, decode_losses, encode_losses
from edgec.protocol._message import MAX_MESSAGE_BYTES, Message
from edgec.protocol._schema import asyncapi, schemas
from edgec.protocol._settings import (
    Announcement,
    Capabilities,
    Inbound,
    LinkOptions,
    LinkStatus,
    Outgoing,
    Publication,
    Subscription,
)
from edgec.protocol._telemetry import (
    CHUNK_BYTES,
    Chunk,
    ChunkRequest,
    SeqRange,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
)
from edgec.protocol._topics import Address, Topics
from edgec.protocol._views import Boot, DesiredView, DeviceView
from edgec.protocol._window import ModelSample, ModelWindow, Note, SystemState, make_note

__all__ = [
    "CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "Address",
    "Alert",
    "Announcement",
    "Boot",
    "Capabilities",
    "Chunk",
    "ChunkRequest",
    "Command",
    "CommandReply",
    "Desired",
    "DesiredModel",
    "DesiredView",
    "DeviceEvent",
    "DeviceView",
    "Handled",
    "Inbound",
    "Issued",
    "LinkOptions",
    "LinkStatus",
    "LossCount",
    "Message",
    "Metadata",
    "ModelReport",
    "ModelSample",
    "ModelWindow",
    "MqttLink",
    "Note",
    "Outgoing",
    "Patch",
    "Poke",
    "Presence",
    "Publication",
    "Received",
    "Reported",
    "SeqRange",
    "Subscription",
    "SystemState",
    "Telemetry",
    "TelemetryAck",
    "TelemetryRecord",
    "Topics",
    "asyncapi",
    "decode_losses",
    "encode_losses",
    "make_note",
    "schemas",
]
