"""The generated parts of docs/protocol.md, and docs/asyncapi.json, made from the messages themselves.

Run this file to write both.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any

from edgec.protocol import asyncapi
from edgec.protocol._kinds import ListOf, MapOf, Maybe
from edgec.protocol._message import Fields, Message, Record
from edgec.protocol._schema import channels, messages

DOCS = Path(__file__).parents[2] / "docs"
PAGE, ASYNCAPI = DOCS / "protocol.md", DOCS / "asyncapi.json"
_BEGIN, _END = "<!-- {}: from the code -->", "<!-- end of {} -->"


def document() -> str:
    """Return the AsyncAPI document as it is committed."""
    return json.dumps(asyncapi(), indent=1, ensure_ascii=False) + "\n"


def with_tables(page: str) -> str:
    """Return the page with what is between its marks as it should be."""
    for name, text in (("topics", _topics()), ("messages", _messages())):
        begin, end = _BEGIN.format(name), _END.format(name)
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


def _topics() -> str:
    lines = ["| topic | from | message | as | QoS | expires |", "|---|---|---|---|---|---|"]
    for row in channels():
        form = row.message.content_type.rpartition("/")[2].upper() + (", retained" if row.retain else "")
        topic = row.address.removeprefix("edgec/v1/{tenant}/")
        sender = "device" if row.up else "fleet"
        expires = f"{row.expiry_s} s" if row.expiry_s else ""
        lines.append(f"| `{topic}` | {sender} | `{row.message.__name__}` | {form} | {row.qos} | {expires} |")
    return "\n".join(lines)


def _messages() -> str:
    inner = [part for kind in messages() for part in _parts(kind)]
    return "\n\n".join(_section(kind) for kind in dict.fromkeys([*messages(), *inner]))


def _parts(kind: type[Fields]) -> list[type[Fields]]:
    found: list[type[Fields]] = []
    for field in fields(kind):
        inner = field.metadata["kind"]
        while isinstance(inner, Maybe | ListOf | MapOf):
            inner = inner.kind if isinstance(inner, Maybe) else inner.item
        if isinstance(inner, Record):
            found += [inner.of, *_parts(inner.of)]
    return found


def _section(kind: type[Fields]) -> str:
    form = ""
    if issubclass(kind, Message):
        form = f" ({kind.content_type.rpartition('/')[2].upper()}, version {kind.version})"
    key = "| key " if kind.by_number else ""
    rows = [f"{key}| field | holds | meaning |", f"{'|---' if kind.by_number else ''}|---|---|---|"]
    for field in fields(kind):
        number = f"| {field.metadata['key']} " if kind.by_number else ""
        schema = field.metadata["kind"].schema()
        optional = "" if field.default is MISSING and field.default_factory is MISSING else ", optional"
        name = f"`{field.name}`"
        meaning = field.metadata["doc"].replace("|", "\\|")
        rows.append(f"{number}| {name} | {_holds(field.metadata['kind'], schema)}{optional} | {meaning} |")
    return f"### {kind.__name__}{form}\n\n{cleandoc(kind.__doc__ or '')}\n\n" + "\n".join(rows)


def _holds(kind: Any, schema: dict[str, Any]) -> str:
    if isinstance(kind, Maybe):
        return f"{_holds(kind.kind, kind.kind.schema())} or null"
    if isinstance(kind, ListOf):
        return f"at most {kind.most} of: {_holds(kind.item, kind.item.schema())}"
    if isinstance(kind, MapOf):
        key, item = _holds(kind.key, kind.key.schema()), _holds(kind.item, kind.item.schema())
        return f"at most {kind.most} by {key}: {item}"
    if isinstance(kind, Record):
        return f"`{kind.of.__name__}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{word}`" for word in schema["enum"])
    if "contentEncoding" in schema:
        return f"at most {kind.most} bytes"
    if "pattern" in schema:
        return (kind.wanted or "text").partition(":")[0]
    if schema["type"] == "string":
        return f"text of at most {kind.most} characters"
    if schema["type"] == "integer":
        unbounded = kind.least == 0 and kind.most > 2**32
        return "integer from 0" if unbounded else f"integer, {kind.least} to {kind.most}"
    return {"number": "number from 0", "boolean": "true or false"}[schema["type"]]


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    ASYNCAPI.write_text(document(), encoding="utf-8")
