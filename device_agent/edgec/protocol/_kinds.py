"""What a field of a message may hold: one description that reads it, writes it and states its schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from edgec.errors import ProtocolError

# Beyond this, a reader that holds numbers as IEEE 754 doubles would see another integer.
MAX_INTEGER = 2**53 - 1

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bytes: "bytes",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
Schema = dict[str, Any]


class Kind(Protocol):
    """How one field travels."""

    def read(self, value: Any, where: str) -> Any:
        """Return the field's value from what came over the wire, already decoded.

        Raises:
            ProtocolError: It is not what this kind allows; the message says where.
        """
        ...

    def write(self, value: Any) -> Any:
        """Return what is to be encoded for the field's value."""
        ...

    def schema(self) -> Schema:
        """Return the JSON Schema (2020-12) of what is encoded; see `Octets` for what JSON lacks."""
        ...


def wrong(value: object, where: str, wanted: str) -> ProtocolError:
    """Return the complaint that the field `where` holds `value` and not what is `wanted`."""
    # An integer of CBOR may have a million digits, which Python refuses to print.
    small = isinstance(value, str | float) or (isinstance(value, int) and abs(value) <= 2**64)
    shown = f"{value!r:.60}" if small else _KINDS.get(type(value), type(value).__name__)
    return ProtocolError(f"{where} must be {wanted}, not {shown}")


class _Plain:
    """A kind whose values are encoded as they are."""

    def write(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Whole(_Plain):
    """An integer from `least` to `most`."""

    least: int = 0
    most: int = MAX_INTEGER

    def read(self, value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= self.most:
            raise wrong(value, where, f"an integer from {self.least} to {self.most}")
        return value

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Number(_Plain):
    """A finite number from 0, as seconds since 1970 and durations are."""

    def read(self, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(value, where, "a number")
        # float() of an integer of CBOR may overflow.
        if not (0 <= value <= MAX_INTEGER and isfinite(value)):
            raise wrong(value, where, f"a finite number from 0 to {MAX_INTEGER}")
        return float(value)

    def schema(self) -> Schema:
        return {"type": "number", "minimum": 0, "maximum": MAX_INTEGER}


@dataclass(frozen=True)
class Flag(_Plain):
    """True or false."""

    def read(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise wrong(value, where, "a boolean")
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(_Plain):
    """Text of at most `most` characters; with `pattern`, matched whole, described as `wanted`."""

    most: int = 256
    pattern: str | None = None
    wanted: str | None = None

    def read(self, value: Any, where: str) -> str:
        wanted = self.wanted or f"text of at most {self.most} characters"
        if not isinstance(value, str) or len(value) > self.most:
            raise wrong(value, where, wanted)
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise wrong(value, where, wanted)
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise ProtocolError(f"{where} holds half of a surrogate pair, which is no Unicode text") from e
        return value

    def schema(self) -> Schema:
        schema: Schema = {"type": "string", "maxLength": self.most}
        return schema if self.pattern is None else {**schema, "pattern": f"^(?:{self.pattern})$"}


@dataclass(frozen=True)
class Choice(_Plain):
    """One of some words."""

    words: tuple[str, ...]

    def read(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise wrong(value, where, f"one of {', '.join(self.words)}")
        return value

    def schema(self) -> Schema:
        return {"enum": list(self.words)}


@dataclass(frozen=True)
class Octets(_Plain):
    """At most `most` bytes, a byte string of CBOR.

    JSON Schema has no type for bytes: where a schema says ``"contentEncoding": "base64"``, the CBOR holds
    the bytes themselves.
    """

    most: int

    def read(self, value: Any, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) > self.most:
            raise wrong(value, where, f"at most {self.most} bytes")
        return value

    def schema(self) -> Schema:
        # Four characters for three bytes.
        return {"type": "string", "contentEncoding": "base64", "maxLength": 4 * ((self.most + 2) // 3)}


@dataclass(frozen=True)
class ListOf:
    """At most `most` items of one kind; a tuple in Python."""

    item: Kind
    most: int

    def read(self, value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > self.most:
            raise wrong(value, where, f"a list of at most {self.most} items")
        return tuple(self.item.read(item, f"{where}[{i}]") for i, item in enumerate(value))

    def write(self, value: Any) -> list[Any]:
        return [self.item.write(item) for item in value]

    def schema(self) -> Schema:
        return {"type": "array", "items": self.item.schema(), "maxItems": self.most}


@dataclass(frozen=True)
class MapOf:
    """At most `most` values of one kind by key; a dict in Python."""

    key: Kind
    item: Kind
    most: int

    def read(self, value: Any, where: str) -> dict[Any, Any]:
        if not isinstance(value, dict) or len(value) > self.most:
            raise wrong(value, where, f"an object of at most {self.most} fields")
        return {
            self.key.read(key, f"a key of {where}"): self.item.read(item, f"{where}[{key!r:.60}]")
            for key, item in value.items()
        }

    def write(self, value: Any) -> dict[Any, Any]:
        items: Mapping[Any, Any] = value
        return {self.key.write(key): self.item.write(item) for key, item in items.items()}

    def schema(self) -> Schema:
        schema: Schema = {"type": "object", "additionalProperties": self.item.schema()}
        # Keys of JSON are text; a CBOR map of integers is shown with its keys in decimal.
        key = self.key.schema() if not isinstance(self.key, Whole) else {"pattern": "^(0|-?[1-9][0-9]*)$"}
        return {**schema, "propertyNames": key, "maxProperties": self.most}


@dataclass(frozen=True)
class Maybe:
    """A field that may be left out or null; None in Python."""

    kind: Kind

    def read(self, value: Any, where: str) -> Any:
        return None if value is None else self.kind.read(value, where)

    def write(self, value: Any) -> Any:
        return None if value is None else self.kind.write(value)

    def schema(self) -> Schema:
        return {"anyOf": [self.kind.schema(), {"type": "null"}]}


IDENTIFIER = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
ID = Text(64, IDENTIFIER, "an id: up to 64 letters, digits, '_', '.' and '-', the first a letter or a digit")
WORD = Text(32, r"[a-z][a-z0-9_]{0,31}", "a word: up to 32 of a-z, 0-9 and '_', the first a letter")
SHA256 = Text(64, r"[0-9a-f]{64}", "a SHA-256 in 64 hexadecimal digits")
# No absolute path, no empty part, none that begins with a dot.
PATH = Text(
    256,
    r"[A-Za-z0-9][A-Za-z0-9_.+=-]*(/[A-Za-z0-9][A-Za-z0-9_.+=-]*)*",
    "the path of a target: models/kws/v3.edgec",
)
FILE_NAME = Text(128, r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", "a file name")
COUNT = Whole()
TIME = Number()
