"""Typed access to JSON from outside: every field checked, every complaint with the field's path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from edgec.errors import ManifestError

MAX_TEXT = 256
MAX_ITEMS = 65536
MAX_AXES = 32

T = TypeVar("T")
D = TypeVar("D")
# What turns a value, and the path that messages call it by, into a T; raises ManifestError.
Parse = Callable[[object, str], T]

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


class Fields:
    """The fields of one JSON object; those that nobody asks for are ignored."""

    def __init__(self, value: object, where: str) -> None:
        self._fields = mapping(value, where)
        self._where = where

    def need(self, key: str, parse: Parse[T]) -> T:
        """Return the field `key`.

        Raises:
            ManifestError: It is missing, or not what `parse` takes.
        """
        if key not in self._fields:
            raise ManifestError(f"{self._where}.{key} is missing")
        return parse(self._fields[key], f"{self._where}.{key}")

    def may(self, key: str, parse: Parse[T], default: D) -> T | D:
        """Return the field `key`, or `default` where there is none.

        Raises:
            ManifestError: It is there, but not what `parse` takes.
        """
        if key not in self._fields:
            return default
        return parse(self._fields[key], f"{self._where}.{key}")


def wrong(value: object, where: str, wanted: str) -> ManifestError:
    """Return the complaint that the field `where` holds `value` and not what is `wanted`."""
    shown = f"{value!r:.60}" if isinstance(value, str | int | float) else _KINDS.get(type(value), "null")
    return ManifestError(f"{where} must be {wanted}, not {shown}")


def text(value: object, where: str) -> str:
    """Parse text of at most `MAX_TEXT` characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise wrong(value, where, f"text of at most {MAX_TEXT} characters")
    return value


def matching(pattern: str, wanted: str) -> Parse[str]:
    """Parse text that matches all of `pattern`, which messages describe as `wanted`."""
    compiled = re.compile(pattern)

    def parse(value: object, where: str) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise wrong(value, where, wanted)
        return value

    return parse


def one_of(words: tuple[str, ...]) -> Parse[str]:
    """Parse one of `words`."""

    def parse(value: object, where: str) -> str:
        if value not in words or not isinstance(value, str):
            raise wrong(value, where, f"one of {', '.join(words)}")
        return value

    return parse


def integer(value: object, where: str) -> int:
    """Parse an integer; True is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(value, where, "an integer")
    return value


def natural(value: object, where: str) -> int:
    """Parse an integer from 0."""
    if integer(value, where) < 0:
        raise wrong(value, where, "0 or more")
    return integer(value, where)


def number(value: object, where: str) -> float:
    """Parse a number; canonical JSON writes 1.0 as 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(value, where, "a number")
    return float(value)


def positive(value: object, where: str) -> float:
    """Parse a number above 0."""
    if number(value, where) <= 0:
        raise wrong(value, where, "above 0")
    return number(value, where)


def not_negative(value: object, where: str) -> float:
    """Parse a number from 0."""
    if number(value, where) < 0:
        raise wrong(value, where, "0 or more")
    return number(value, where)


def sequence(parse: Parse[T], *, least: int = 0, most: int = MAX_ITEMS) -> Parse[tuple[T, ...]]:
    """Parse a list of `least` to `most` items, each of which `parse` takes."""

    def parse_all(value: object, where: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise wrong(value, where, "a list")
        if not least <= len(value) <= most:
            raise ManifestError(f"{where} has {len(value)} items; {least} to {most} are allowed")
        return tuple(parse(item, f"{where}[{i}]") for i, item in enumerate(value))

    return parse_all


def mapping(value: object, where: str) -> dict[str, Any]:
    """Parse an object with anything in it."""
    if not isinstance(value, dict):
        raise wrong(value, where, "an object")
    return value


def mapping_of(parse: Parse[T], check_key: Parse[str] = text) -> Parse[dict[str, T]]:
    """Parse an object whose keys are what `check_key` takes and whose values are what `parse` takes."""

    def parse_all(value: object, where: str) -> dict[str, T]:
        return {
            check_key(key, f"a key of {where}"): parse(item, f"{where}[{key!r:.60}]")
            for key, item in mapping(value, where).items()
        }

    return parse_all
