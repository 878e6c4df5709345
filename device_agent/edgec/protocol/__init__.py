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
from edgec.protocol._views import Boot, DesiredView, DeviceView

__all__ = [
    "CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "Address",
    "Alert",
    "Boot",
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
    "Issued",
    "Message",
    "Metadata",
    "ModelReport",
    "ModelWindow",
    "Patch",
    "Poke",
    "Presence",
    "Received",
    "Reported",
    "SeqRange",
    "Telemetry",
    "TelemetryAck",
    "TelemetryRecord",
    "Topics",
]
