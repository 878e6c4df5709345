"""Real messages are what the published schemas say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.protocol.samples import MESSAGES

from edgec.protocol import Message, Topics, asyncapi, schemas
from edgec.protocol._schema import channels

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis, for tests")
cbor2 = pytest.importorskip("cbor2", reason="the extra `agent` is not installed")


def as_json(message: Message) -> Any:
    """Return a payload as its schema sees it: of CBOR, with keys in decimal and bytes as base64."""
    data = message.to_bytes()
    if not type(message).by_number:
        return json.loads(data)

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value

    return plain(cbor2.loads(data))


def validator(message: Message) -> Any:
    schema = schemas()[type(message).__name__]
    jsonschema_rs.meta.validate(schema)
    return jsonschema_rs.Draft202012Validator(schema)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_is_what_its_schema_says(message: Message) -> None:
    validator(message).validate(as_json(message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_its_schema_refuses_what_the_parser_refuses(message: Message) -> None:
    checks, value = validator(message), as_json(message)
    for key in value:
        assert not checks.is_valid({**value, key: [[]]}), key
    assert not checks.is_valid([value])
    required = schemas()[type(message).__name__]["required"]
    for key in required:
        assert not checks.is_valid({k: v for k, v in value.items() if k != key}), key


def test_every_message_has_a_sample() -> None:
    assert set(schemas()) == {type(message).__name__ for message in MESSAGES}


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            found = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return found + [r for item in value.values() for r in references(item)]
        return [r for item in value for r in references(item)] if isinstance(value, list) else []

    assert references(document)
    for reference in references(document):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_every_channel_is_a_topic_that_can_be_parsed() -> None:
    values = {"{tenant}": "t", "{device}": "d", "{group}": "g", "{name}": "verify"}
    for row in channels():
        topic = row.address
        for name, value in values.items():
            topic = topic.replace(name, value)
        address = Topics("t").parse(topic)
        if row.name == "poke":
            assert address is None
        else:
            assert address is not None
            assert (address.device, address.up) == ("d", row.up)
