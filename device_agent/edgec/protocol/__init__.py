"""What a device and its fleet say to each other over MQTT: topics, messages and the link."""

from edgec.protocol._address import broker_address, client_context, fleet_address, tls_context
from edgec.protocol._announcer import Announcer, desired_of
from edgec.protocol._answers import ENDS, Answer, Told
from edgec.protocol._chunks import ChunkServer
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
    "ENDS",
    "MAX_MESSAGE_BYTES",
    "Address",
    "Alert",
    "Announcement",
    "Announcer",
    "Answer",
    "Boot",
    "Capabilities",
    "Chunk",
    "ChunkRequest",
    "ChunkServer",
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
    "Told",
    "Topics",
    "asyncapi",
    "broker_address",
    "client_context",
    "decode_losses",
    "desired_of",
    "encode_losses",
    "fleet_address",
    "make_note",
    "schemas",
    "tls_context",
]
