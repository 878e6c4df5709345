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
from edgec.protocol._message import MAX_MESSAGE_BYTES, Message
from edgec.protocol._telemetry import (
    CHUNK_BYTES,
    Chunk,
    ChunkRequest,
    ModelWindow,
    SeqRange,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
)
from edgec.protocol._topics import Address, Topics

__all__ = [
    "CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "Address",
    "Alert",
    "Chunk",
    "ChunkRequest",
    "Command",
    "CommandReply",
    "Desired",
    "DesiredModel",
    "DeviceEvent",
    "Message",
    "Metadata",
    "ModelReport",
    "ModelWindow",
    "Patch",
    "Poke",
    "Presence",
    "Reported",
    "SeqRange",
    "Telemetry",
    "TelemetryAck",
    "TelemetryRecord",
    "Topics",
]
