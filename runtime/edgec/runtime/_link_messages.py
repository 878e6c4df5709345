"""What applications and the agent of a device say to each other: lines of JSON over a Unix socket.

A line is one object in UTF-8, without line breaks in it, and ends with a newline (0x0A). From applications it
has at most 262144 bytes, to them at most 16384. Its field ``type`` names a class below in lower case, the
others are the fields of that class; those that a reader does not know, it ignores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import isfinite
from typing import Any, TypeVar

from edgec.artifact._fields import Fields, Parse, mapping, matching, natural, number, one_of, sequence, wrong
from edgec.errors import ManifestError, ProtocolError

VERSION = 1
MAX_FROM_APPLICATION = 256 * 1024
MAX_FROM_AGENT = 16 * 1024
MAX_TEXT = 1024
MAX_HELD = 8
_LARGEST = 2**53 - 1

_T = TypeVar("_T", bound="LinkMessage")
# What a reply to a request that failed may name; an agent treats any other word alike.
WORD = matching(r"[a-z][a-z0-9_]{0,63}", "a word of a-z, 0-9 and '_'")
MODEL = matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name of 1 to 64 letters, digits, '_', '.', '-'")
DIGEST = matching(r"[0-9a-f]{64}", "a SHA-256 in 64 hex digits")
ANY_DIGEST = matching(r"([0-9a-f]{64})?", "a SHA-256 in 64 hex digits, or nothing")
FILE = matching(r"[ab]/model\.edgec", "a/model.edgec or b/model.edgec")
ANY_FILE = matching(r"([ab]/model\.edgec)?", "a/model.edgec, b/model.edgec, or nothing")


def short_text(value: object, where: str) -> str:
    """Parse text of at most `MAX_TEXT` characters, all of which UTF-8 can hold."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or plain_text(value) != value:
        raise wrong(value, where, f"text of at most {MAX_TEXT} characters")
    return value


def plain_text(value: str) -> str:
    """Return text cut to `MAX_TEXT` characters, those that UTF-8 cannot hold as question marks."""
    return value[:MAX_TEXT].encode(errors="replace").decode()


def count(value: object, where: str) -> int:
    """Parse an integer from 0 that JSON can hold."""
    if natural(value, where) > _LARGEST:
        raise wrong(value, where, f"at most {_LARGEST}")
    return natural(value, where)


def finite(value: object, where: str) -> float:
    """Parse a number that is one."""
    try:
        found = number(value, where)
    except OverflowError:
        raise wrong(0, where, "a number of at most 1.8e308") from None
    if not isfinite(found):
        raise wrong(value, where, "finite")
    return found


def _within(least: float, most: float) -> Parse[float]:
    def parse(value: object, where: str) -> float:
        found = finite(value, where)
        if not least <= found <= most:
            raise wrong(found, where, f"from {least:g} to {most:g}")
        return found

    return parse


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(value, where, "true or false")
    return value


def _wire(parse: Parse[Any], **more: Any) -> Any:
    return field(metadata={"parse": parse}, **more)


@dataclass(frozen=True, kw_only=True)
class LinkMessage:
    """Base of all messages."""

    def to_line(self) -> bytes:
        """Return the message as a line."""
        plain = {"type": type(self).__name__.lower(), **asdict(self)}
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Hello(LinkMessage):
    """Application: it follows a model. The first line of a connection, which is about this model only.

    Attributes:
        v: Version of this protocol; an agent refuses one that it does not know.
        model: Its name on this device.
        digest: Of the file that it runs, or is about to load; empty for none.
        held: Of the files that it has open, that one included.
        name: Of the application, for people.
    """

    v: int = _wire(count, default=VERSION)
    model: str = _wire(MODEL)
    digest: str = _wire(ANY_DIGEST, default="")
    held: tuple[str, ...] = _wire(sequence(DIGEST, most=MAX_HELD), default=())
    name: str = _wire(short_text, default="")


@dataclass(frozen=True, kw_only=True)
class Holds(LinkMessage):
    """Application: what it runs from now on, and which files it has open; all others it has released."""

    digest: str = _wire(ANY_DIGEST)
    held: tuple[str, ...] = _wire(sequence(DIGEST, most=MAX_HELD))


@dataclass(frozen=True, kw_only=True)
class Done(LinkMessage):
    """Application: the request of this number is done."""

    request: int = _wire(count)


@dataclass(frozen=True, kw_only=True)
class Failed(LinkMessage):
    """Application: the request of this number failed, and it runs what it ran before.

    Attributes:
        reason: For programs, a word: ``self_test``, ``incompatible_artifact`` ...
        detail: For people.
    """

    request: int = _wire(count)
    reason: str = _wire(WORD)
    detail: str = _wire(short_text, default="")


@dataclass(frozen=True, kw_only=True)
class Shadowed(LinkMessage):
    """Application: how the candidate did by now beside the running model; the request is that of `Shadow`.

    Attributes:
        report: Fields of ``edgec.runtime.ShadowReport``; null for a number that there is none of.
    """

    request: int = _wire(count)
    report: Mapping[str, Any] = _wire(mapping)


@dataclass(frozen=True, kw_only=True)
class Observed(LinkMessage):
    """Application: what it observed of the file `digest` since it last told.

    Attributes:
        window: Fields of ``edgec.runtime.Window``; sketches as the base64 of their bytes.
    """

    digest: str = _wire(DIGEST)
    window: Mapping[str, Any] = _wire(mapping)


@dataclass(frozen=True, kw_only=True)
class Goodbye(LinkMessage):
    """Application: it ends as it should. A connection that closes without this is a crash."""


@dataclass(frozen=True, kw_only=True)
class Active(LinkMessage):
    """Agent: what serves; its answer to `Hello`, and said again when it has changed.

    An application that runs something else changes to it.

    Attributes:
        digest: SHA-256 of the file; empty where nothing serves.
        file: Within the model's directory: ``a/model.edgec``; empty likewise.
        epoch: Of the assignment that it is from.
    """

    v: int = _wire(count, default=VERSION)
    digest: str = _wire(ANY_DIGEST)
    file: str = _wire(ANY_FILE)
    epoch: int = _wire(count, default=0)


@dataclass(frozen=True, kw_only=True)
class Prepare(LinkMessage):
    """Agent: load this file beside the running one; answer with `Done` or `Failed`."""

    request: int = _wire(count)
    digest: str = _wire(DIGEST)
    file: str = _wire(FILE)


@dataclass(frozen=True, kw_only=True)
class Shadow(LinkMessage):
    """Agent: let this file see live inputs; answer like `Prepare`, then with `Shadowed` time and again.

    Attributes:
        fraction: Of the calls.
        every_s: Time between two reports.
    """

    request: int = _wire(count)
    digest: str = _wire(DIGEST)
    file: str = _wire(FILE)
    fraction: float = _wire(_within(0, 1), default=1.0)
    every_s: float = _wire(_within(0.01, 3600), default=1.0)


@dataclass(frozen=True, kw_only=True)
class Drop(LinkMessage):
    """Agent: the candidate is not wanted any more; close it, and say so with `Holds`."""

    digest: str = _wire(DIGEST)


@dataclass(frozen=True, kw_only=True)
class Switch(LinkMessage):
    """Agent: run this file from the next call on; answer with `Holds`, then `Done`, or with `Failed`.

    Attributes:
        again: Whether to load it anew where it runs already.
    """

    request: int = _wire(count)
    digest: str = _wire(DIGEST)
    file: str = _wire(FILE)
    again: bool = _wire(_flag, default=False)


@dataclass(frozen=True, kw_only=True)
class Observe(LinkMessage):
    """Agent: send what was observed this often, and once now."""

    every_s: float = _wire(_within(0.01, 86400))


@dataclass(frozen=True, kw_only=True)
class Refused(LinkMessage):
    """Agent: it closes the connection, and why.

    Attributes:
        reason: ``version``, ``malformed``, ``unknown_model``, ``permission``, ``too_many`` or ``stopping``.
    """

    reason: str = _wire(
        one_of(("version", "malformed", "unknown_model", "permission", "too_many", "stopping"))
    )
    detail: str = _wire(short_text, default="")


FROM_APPLICATION: tuple[type[LinkMessage], ...] = (Hello, Holds, Done, Failed, Shadowed, Observed, Goodbye)
FROM_AGENT: tuple[type[LinkMessage], ...] = (Active, Prepare, Shadow, Drop, Switch, Observe, Refused)


class Lines:
    """Takes bytes apart into messages of some kinds.

    Args:
        kinds: Which are expected; others are ignored, for a newer side may send them.
        most: Bytes of a line.
    """

    def __init__(self, kinds: tuple[type[LinkMessage], ...], most: int) -> None:
        self._kinds = {kind.__name__.lower(): kind for kind in kinds}
        self._most = most
        self._rest = bytearray()

    def take(self, data: bytes) -> list[LinkMessage]:
        """Return the messages that end in what has come.

        Raises:
            ProtocolError: A line is too long or is no message.
        """
        start = len(self._rest)
        self._rest += data
        messages = []
        while (end := self._rest.find(b"\n", start)) >= 0:
            line, start = bytes(self._rest[:end]), 0
            del self._rest[: end + 1]
            if len(line) >= self._most:
                raise ProtocolError(f"a line has {len(line)} bytes; {self._most} are allowed")
            message = self._read(line)
            if message is not None:
                messages.append(message)
        if len(self._rest) >= self._most:
            raise ProtocolError(f"a line has more than {self._most} bytes")
        return messages

    def _read(self, line: bytes) -> LinkMessage | None:
        try:
            plain = json.loads(line.decode(), parse_constant=_no_constant)
            word = Fields(plain, "the line").need("type", WORD)
            kind = self._kinds.get(word)
            return None if kind is None else _parsed(kind, plain)
        except (ManifestError, ValueError, RecursionError) as e:
            raise ProtocolError(f"expected one message as a line of JSON: {e}"[:500]) from e


def _parsed(kind: type[_T], plain: dict[str, Any]) -> _T:
    given = Fields(plain, kind.__name__.lower())
    values: dict[str, Any] = {}
    for entry in fields(kind):
        parse: Callable[[object, str], Any] = entry.metadata["parse"]
        if entry.name in plain or entry.default is MISSING:
            values[entry.name] = given.need(entry.name, parse)
    return kind(**values)


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")
