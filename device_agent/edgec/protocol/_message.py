"""Messages as frozen dataclasses: how they become bytes, and how bytes from anywhere become messages.

Control messages are JSON objects. What is sent often or holds bytes is CBOR (RFC 8949) with integers as keys,
given by the fields. Key ``v``, in CBOR 0, is the version of the message. Unknown fields are ignored, so a
version may gain fields; what would make an old reader wrong needs a new version.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, dataclass, field, fields
from io import BytesIO
from typing import Any, ClassVar, NoReturn, TypeVar

from edgec.errors import ProtocolError
from edgec.errors.extras import needs_extra
from edgec.protocol._kinds import Kind, Schema, wrong

MAX_MESSAGE_BYTES = 128 * 1024
_MAX_DEPTH = 16
_MAX_DIGITS = 40

M = TypeVar("M", bound="Fields")


def wire(kind: Kind, key: int | None = None, default: Any = MISSING, doc: str = "") -> Any:
    """Declare a field of a message.

    Args:
        kind: What it may hold.
        key: Its key in CBOR; JSON uses the name.
        default: Its value where it is not sent; without one it must be there.
        doc: What it means, for the schema.
    """
    metadata = {"kind": kind, "key": key, "doc": doc}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Declared fields that travel as one map."""

    # Whether fields are known by integers, which CBOR has as keys, or by their names.
    by_number: ClassVar[bool] = False

    @classmethod
    def read(cls: type[M], value: object, where: str) -> M:
        """Return an instance from a decoded map.

        Raises:
            ProtocolError: It is no map, or a field is missing or wrong.
        """
        if not isinstance(value, dict):
            raise wrong(value, where, "an object")
        given: dict[str, Any] = {}
        for item in fields(cls):
            key = item.metadata["key"] if cls.by_number else item.name
            path = f"{where}.{item.name}"
            if key in value:
                given[item.name] = item.metadata["kind"].read(value[key], path)
            elif _required(item):
                raise ProtocolError(f"{path} is missing")
        message = cls(**given)
        message.check(where)
        return message

    def write(self) -> dict[Any, Any]:
        """Return the map to encode; what is at its default is left out."""
        result: dict[Any, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if _required(item) or value != _default(item):
                key = item.metadata["key"] if self.by_number else item.name
                result[key] = item.metadata["kind"].write(value)
        return result

    def check(self, where: str) -> None:
        """Raise `ProtocolError` where fields contradict each other."""

    @classmethod
    def schema(cls) -> Schema:
        """Return the JSON Schema of the map."""
        properties: Schema = {}
        required: list[str] = []
        for item in fields(cls):
            name = str(item.metadata["key"]) if cls.by_number else item.name
            properties[name] = item.metadata["kind"].schema()
            if cls.by_number:
                properties[name]["title"] = item.name
            if item.metadata["doc"]:
                properties[name]["description"] = item.metadata["doc"]
            if _required(item):
                required.append(name)
        summary = (cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        schema: Schema = {"title": cls.__name__, "description": " ".join(summary.split()), "type": "object"}
        return {**schema, "properties": properties, "required": required}


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


@dataclass(frozen=True)
class Record:
    """The kind of a field that holds declared fields itself."""

    of: type[Fields]

    def read(self, value: Any, where: str) -> Any:
        return self.of.read(value, where)

    def write(self, value: Any) -> Any:
        return value.write()

    def schema(self) -> Schema:
        return self.of.schema()


@dataclass(frozen=True, kw_only=True)
class Message(Fields):
    """What is the payload of one MQTT message, as JSON."""

    version: ClassVar[int] = 1
    content_type: ClassVar[str] = "application/json"

    def to_bytes(self) -> bytes:
        """Return the payload, at most `MAX_MESSAGE_BYTES`.

        Raises:
            ProtocolError: A field is not what it may be, or the whole is too large: the other side would
                refuse it.
        """
        name = type(self).__name__
        written = self.write()
        type(self).read(written, name)
        data = _encode({0 if self.by_number else "v": self.version, **written}, self.by_number)
        if len(data) > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"{name} has {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are sent")
        return data

    @classmethod
    def from_bytes(cls: type[N], data: bytes) -> N:
        """Return the message that a payload holds; the bytes may come from anyone.

        Raises:
            ProtocolError: They are too many, not JSON or CBOR, of another version, or a field is missing or
                wrong.
        """
        name = cls.__name__
        if len(data) > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"{name} has {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are read")
        value = _decode(data, name, cls.by_number)
        if not isinstance(value, dict):
            raise wrong(value, name, "an object")
        version = value.get(0 if cls.by_number else "v")
        if isinstance(version, bool) or version != cls.version:
            known = f"version {cls.version}; update edgec where this one was read"
            raise wrong(version, f"{name}.v", known)
        return cls.read(value, name)

    @classmethod
    def schema(cls) -> Schema:
        """Return the JSON Schema of the payload; of CBOR, with its keys in decimal."""
        schema = super().schema()
        key = "0" if cls.by_number else "v"
        version = {"const": cls.version, "description": "Version of this message."}
        schema["properties"] = {key: version, **schema["properties"]}
        schema["required"] = [key, *schema["required"]]
        return schema


N = TypeVar("N", bound="Message")


@dataclass(frozen=True, kw_only=True)
class CompactMessage(Message):
    """What is the payload of one MQTT message, as CBOR."""

    by_number: ClassVar[bool] = True
    content_type: ClassVar[str] = "application/cbor"


@dataclass(frozen=True, kw_only=True)
class CompactFields(Fields):
    """Declared fields within CBOR."""

    by_number: ClassVar[bool] = True


def _encode(value: object, compact: bool) -> bytes:
    if compact:
        data: bytes = _cbor2().dumps(value)
        return data
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _decode(data: bytes, name: str, compact: bool) -> Any:
    return _decode_cbor(data, name) if compact else _decode_json(data, name)


def _decode_json(data: bytes, name: str) -> Any:
    try:
        return json.loads(
            data.decode(),
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repeats,
        )
    except UnicodeDecodeError as e:
        raise ProtocolError(f"{name} is not UTF-8 at byte {e.start}") from e
    except RecursionError as e:
        raise ProtocolError(f"{name} is nested too deep") from e
    except ValueError as e:
        raise ProtocolError(f"{name} is not JSON that can be read: {e}") from e


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers that keep different ones of them would see different messages.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return result


def _parse_int(digits: str) -> int:
    # int() of megabytes of digits takes minutes on Python before 3.10.7.
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _decode_cbor(data: bytes, name: str) -> Any:
    cbor2 = _cbor2()
    file = BytesIO(data)
    try:
        # What tags make (dates, sets, shared values that may contain themselves) no kind of field takes.
        value = cbor2.CBORDecoder(file, max_depth=_MAX_DEPTH, allow_duplicate_keys=False).decode()
    except cbor2.CBORDecodeError as e:
        raise ProtocolError(f"{name} is not CBOR that can be read: {e}") from e
    if file.tell() != len(data):
        raise ProtocolError(f"{name} has {len(data) - file.tell()} bytes after its end")
    return value


def _cbor2() -> Any:
    with needs_extra("telemetry", "agent"):
        import cbor2
    return cbor2
