"""Text for people: aligned, and safe to print whatever file it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime


def printable(text: object) -> str:
    r"""Return `text` as one line without a character that a terminal obeys: ``\x1b`` is written out.

    Text from artifacts, data and models goes through here before it is printed.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def size(n_bytes: int) -> str:
    """Return a number of bytes for people: ``121 kB`` (of 1000 bytes), ``1.21 GB``."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{n_bytes} bytes" if unit == "bytes" else f"{value:.3g} {unit}"


def moment(seconds: float | None) -> str:
    """Return a time in seconds since 1970 for people, in local time; empty for none."""
    if not seconds:
        return ""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        # No calendar has it.
        return f"{seconds:g} s since 1970"


def columns(rows: Iterable[Sequence[object]], indent: str = "  ") -> list[str]:
    """Return `rows` as printable lines, their cells aligned to the left; the last one may be missing."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in _columns(cells)]
    return [
        (indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False))).rstrip() for row in cells
    ]


def _columns(rows: list[list[str]]) -> list[list[str]]:
    # The last cell of a row pushes nothing aside.
    count = max((len(row) for row in rows), default=0)
    return [[row[i] for row in rows if i < len(row) - 1] or [""] for i in range(count)]
