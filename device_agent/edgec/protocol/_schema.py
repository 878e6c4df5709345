"""The protocol described for machines: JSON Schemas of all messages, and an AsyncAPI document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgec.protocol._control import (
    Command,
    CommandReply,
    Desired,
    DeviceEvent,
    Poke,
    Presence,
    Reported,
)
from edgec.protocol._kinds import Schema
from edgec.protocol._message import MAX_MESSAGE_BYTES, Message
from edgec.protocol._telemetry import Chunk, ChunkRequest, Telemetry, TelemetryAck
from edgec.protocol._topics import Topics
from edgec.protocol._window import ModelSample, ModelWindow, Note

_FORMAT = "application/schema+json;version=draft-2020-12"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A topic and what is said there.

    Attributes:
        name: In the AsyncAPI document.
        address: The topic, with ``{tenant}``, ``{device}`` and so on.
        message: What is sent.
        up: Whether the device sends it.
        retain: Whether it is published as a retained message.
        qos: It is published with.
        expiry_s: Of the message, where MQTT 5 offers that; None for none.
    """

    name: str
    address: str
    message: type[Message]
    up: bool
    retain: bool = False
    qos: int = 1
    expiry_s: int | None = None


def channels() -> tuple[Channel, ...]:
    """Return every topic of the protocol."""
    topics, device = Topics("TENANT"), "DEVICE"
    rows = [
        Channel(name="state", address=topics.state(device), message=Presence, up=True, retain=True),
        Channel(name="reported", address=topics.reported(device), message=Reported, up=True),
        Channel(
            name="telemetry",
            address=topics.telemetry(device),
            message=Telemetry,
            up=True,
            expiry_s=86_400,
        ),
        Channel(name="event", address=topics.event(device), message=DeviceEvent, up=True),
        Channel(name="reply", address=topics.reply(device), message=CommandReply, up=True),
        Channel(
            name="chunkRequest",
            address=topics.request(device, "chunk"),
            message=ChunkRequest,
            up=True,
            expiry_s=60,
        ),
        Channel(name="desired", address=topics.desired(device), message=Desired, up=False, retain=True),
        Channel(
            name="command",
            address=topics.command(device, "name").replace("cmd/name", "cmd/{name}"),
            message=Command,
            up=False,
            expiry_s=300,
        ),
        Channel(name="ack", address=topics.ack(device), message=TelemetryAck, up=False),
        Channel(name="response", address=topics.response(device), message=Chunk, up=False, expiry_s=60),
        Channel(name="poke", address=topics.poke("GROUP"), message=Poke, up=False, qos=0),
    ]
    return tuple(_templated(row) for row in rows)


def messages() -> tuple[type[Message], ...]:
    """Return every message, and every payload of a record within `Telemetry`."""
    return (*(channel.message for channel in channels()), ModelWindow, ModelSample, Note)


def schemas() -> dict[str, Schema]:
    """Return the JSON Schema (2020-12) of every message by its name.

    Those of CBOR messages (``x-cbor``) describe the map with its integer keys in decimal and its byte strings
    as base64, since JSON has neither.
    """
    return {kind.__name__: {"$schema": DIALECT, **_schema(kind)} for kind in messages()}


def asyncapi() -> dict[str, Any]:
    """Return the protocol as an AsyncAPI 3.0 document, from the device's side."""
    rows = channels()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edgec device protocol",
            "version": "1",
            "description": (
                "What a device and its fleet say to each other over MQTT 5 or 3.1.1. Every payload has at "
                f"most {MAX_MESSAGE_BYTES} bytes. Control messages are JSON, others CBOR with integers as "
                "keys: their schemas have the keys in decimal and byte strings as base64. Fields that are "
                "not listed are ignored; a version that is not listed is refused."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {row.name: _channel(row) for row in rows},
        "operations": {
            f"{'send' if row.up else 'receive'}{row.name[0].upper()}{row.name[1:]}": _operation(row)
            for row in rows
        },
        "components": {
            "messages": {
                kind.__name__: {
                    "name": kind.__name__,
                    "contentType": kind.content_type,
                    "payload": {"schemaFormat": _FORMAT, "schema": _schema(kind)},
                }
                for kind in messages()
            }
        },
    }


def _schema(kind: type[Message]) -> Schema:
    schema = kind.schema()
    return {**schema, "x-cbor": True} if kind.by_number else schema


def _channel(row: Channel) -> dict[str, Any]:
    names = [part[1:-1] for part in row.address.split("/") if part.startswith("{")]
    return {
        "address": row.address,
        "messages": {row.message.__name__: {"$ref": f"#/components/messages/{row.message.__name__}"}},
        "parameters": {name: {"description": _PARAMETERS[name]} for name in names},
    }


_PARAMETERS = {
    "tenant": "Id of who the devices belong to.",
    "device": "Id of the device: the common name of its certificate.",
    "group": "Id of a group of devices.",
    "name": "Word that names the command.",
}


def _operation(row: Channel) -> dict[str, Any]:
    binding: dict[str, Any] = {"qos": row.qos, "retain": row.retain, "bindingVersion": "0.2.0"}
    if row.expiry_s is not None:
        binding["messageExpiryInterval"] = row.expiry_s
    return {
        "action": "send" if row.up else "receive",
        "channel": {"$ref": f"#/channels/{row.name}"},
        "bindings": {"mqtt": binding},
    }


def _templated(row: Channel) -> Channel:
    address = row.address
    for name in ("tenant", "device", "group"):
        address = address.replace(f"/{name.upper()}/", f"/{{{name}}}/")
    return replace(row, address=address)
