"""JSON in its canonical form (RFC 8785), written, and read back with bounds.

One value has one encoding, so a digest of the bytes is a digest of the value: keys sorted by their
UTF-16 code units, no white space, numbers as ECMAScript writes them, UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.encoder import encode_basestring
from math import isfinite
from typing import Any, NoReturn

import numpy as np

from edgec.errors import ManifestError

MAX_DEPTH = 32
# Beyond this, a reader that holds numbers as IEEE 754 doubles would see another integer.
MAX_INTEGER = 2**53 - 1
_MAX_DIGITS = 40


def encode(value: object, what: str) -> bytes:
    """Return the canonical encoding of `value`: mappings, sequences, text, numbers, booleans, None.

    Args:
        value: What to encode; scalars of numpy count as numbers, tuples as lists.
        what: What messages call it: ``report``.

    Raises:
        ManifestError: Something in it has no place in JSON: NaN, bytes, an integer beyond 2**53 ...
    """
    parts: list[str] = []
    _encode(value, parts, what, MAX_DEPTH)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError as e:
        raise ManifestError(f"{what} holds half of a surrogate pair, which is no Unicode text") from e


def _encode(value: object, parts: list[str], where: str, depth: int) -> None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif isinstance(value, str):
        parts.append(encode_basestring(value))
    elif isinstance(value, int):
        parts.append(_integer(value, where))
    elif isinstance(value, float):
        parts.append(_number(value, where))
    elif depth == 0:
        raise ManifestError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    elif isinstance(value, Mapping):
        _encode_object(value, parts, where, depth)
    elif isinstance(value, list | tuple):
        _encode_array(value, parts, where, depth)
    else:
        raise ManifestError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def _encode_object(value: Mapping[Any, Any], parts: list[str], where: str, depth: int) -> None:
    for key in value:
        if not isinstance(key, str):
            raise ManifestError(f"{where} has the key {key!r}; keys in JSON are text")
    parts.append("{")
    comma = ""
    for key in sorted(value, key=_utf16):
        parts.append(f"{comma}{encode_basestring(key)}:")
        _encode(value[key], parts, _child(where, key), depth - 1)
        comma = ","
    parts.append("}")


def _encode_array(value: list[Any] | tuple[Any, ...], parts: list[str], where: str, depth: int) -> None:
    parts.append("[")
    for i, item in enumerate(value):
        if i:
            parts.append(",")
        _encode(item, parts, f"{where}[{i}]", depth - 1)
    parts.append("]")


def _child(where: str, key: str) -> str:
    # A key from outside may hold what a terminal obeys, and be megabytes long.
    return f"{where}.{key}" if key.isidentifier() and len(key) < 60 else f"{where}[{key!r:.60}]"


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _integer(value: int, where: str) -> str:
    if abs(value) > MAX_INTEGER:
        raise ManifestError(f"{where} is an integer beyond 2**53: write it as text")
    return str(int(value))


def _number(value: float, where: str) -> str:
    """Write a double as ECMAScript's Number::toString does, from the digits that Python finds."""
    if not isfinite(value):
        raise ManifestError(f"{where} is {value}, which JSON cannot hold: leave it out, or give None")
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(abs(float(value))).partition("e")
    whole, _, fraction = mantissa.partition(".")
    padded = (whole + fraction).rstrip("0")
    digits = padded.lstrip("0")
    # value = 0.digits * 10**point
    point = len(whole) + int(exponent or 0) - (len(padded) - len(digits))
    sign = "-" if value < 0 else ""
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def decode(raw: bytes, what: str, *, max_size: int) -> Any:
    """Return the value that `raw` encodes.

    Args:
        raw: Bytes from outside; they need not be JSON.
        what: What messages call it: ``manifest.json``.
        max_size: Most bytes that it may have.

    Raises:
        ManifestError: It is larger than `max_size`, nested deeper than `MAX_DEPTH`, holds a number
            that JSON has not or that no double holds, or is no canonical JSON.
    """
    if len(raw) > max_size:
        raise ManifestError(f"{what} has {len(raw)} bytes; at most {max_size} are read")
    # Bounded here, before the parser recurses.
    if _depth(raw) > MAX_DEPTH:
        raise ManifestError(f"{what} is nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(
            raw.decode(), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as e:
        raise ManifestError(f"{what} is not UTF-8 at byte {e.start}") from e
    except ValueError as e:
        raise ManifestError(f"{what} is not JSON that can be read: {e}") from e
    # Refuses repeated keys too: what a parser keeps of them is shorter.
    if encode(value, what) != raw:
        raise ManifestError(
            f"{what} is not canonical JSON (RFC 8785): it was changed, or written by another tool"
        )
    return value


def _depth(raw: bytes) -> int:
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    depth = deepest = 0
    for bracket in re.sub(rb'"[^"]*"', b"", unescaped).translate(None, _NO_BRACKET):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            break
    return deepest


_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def _parse_int(digits: str) -> int | float:
    # int() of megabytes of digits takes minutes on Python before 3.10.7.
    number = _parse_float(digits)
    # Doubles up to 1e21 are written like integers.
    return number if abs(number) > MAX_INTEGER else int(digits)


def _parse_float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
