"""What is wrong in what was asked for, in words: nobody should have to read a regular expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FIRST = "the first of them a letter or a digit"
NAME = f"up to 64 letters (a-z, A-Z), digits, '.', '_' and '-', {_FIRST}"
LABEL_VALUE = "1 to 256 letters (a-z, A-Z), digits, blanks, '_', '.', ':', '@', '/' and '-'"
# By the pattern of what is asked for.
WORDS = {
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$": NAME,
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": NAME,
    r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$": (
        f"up to 64 letters (a-z, A-Z), digits, '.', '_', '+' and '-', {_FIRST}"
    ),
    r"^[A-Za-z0-9_.:@/ -]{1,256}$": LABEL_VALUE,
    r"^[A-Za-z0-9_-]{43,72}$": "43 to 72 letters (a-z, A-Z), digits, '_' and '-'",
    r"^[A-Za-z0-9_.+-]{0,128}$": "`next` of the page before",
    r"^[a-z][a-z0-9_]{0,31}$": "up to 32 small letters (a-z), digits and '_', the first of them a letter",
    r"^[ -~]*[!-~][ -~]*$": "printable characters of ASCII, and not blanks alone",
    r"^[!-~]+$": "printable characters of ASCII without blanks",
    r"^[^\x00-\x1f\x7f]*$": "no control characters",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits, letters small",
    r"^([0-9a-f]{64})?$": "64 hexadecimal digits, letters small, or nothing",
    r"^[0-9a-f]{1,16}$": "up to 16 hexadecimal digits, letters small",
}


def problem_of(error: Mapping[str, Any]) -> str:
    """Return what an error of pydantic says, for people.

    Args:
        error: One of ``ValidationError.errors()``.
    """
    words = WORDS.get(error.get("ctx", {}).get("pattern", ""))
    if error["type"] != "string_pattern_mismatch" or words is None:
        return str(error["msg"])
    # Not what came: it may be a secret.
    return f"expected {words}"
