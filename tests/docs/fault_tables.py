"""The table of docs/faults.md, made from the names of tests: which test shows what a fault leads to.

Run this file in the root of the repository, as ``python -m tests.docs.fault_tables``, to write it.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
_BEGIN, _END = "<!-- faults: from the tests -->", "<!-- end of faults -->"
_NAME = re.compile(r"def test_row_(?P<rows>\d\d(?:_(?:\d\d_)*and_\d\d)?)_(?P<what>\w+)\(")
_PLACES = ("delta", "device_agent", "fleet", "gateway", "protocol", "serving", "trust")
# Those that are left out are about the agent's own software.
FAULTS = {
    1: "power is lost at any step",
    2: "killed during a rollback or while cleaning up",
    3: "a download is cut off",
    4: "a server lies about ranges",
    5: "a block is damaged by network, disk or cache",
    6: "data without end, or so slow that it never ends",
    7: "wrong keys, no signature, too few, one twice",
    8: "sizes beyond 31 and 32 bits",
    9: "metadata that is frozen or has expired",
    10: "older metadata or artifacts than before",
    11: "versions run ahead to the end of their numbers",
    12: "parts that do not fit together",
    13: "a valid file under another name, or for another device",
    14: "an authority is revoked in the middle of an update",
    15: "clocks at 1970, far ahead, or jumping",
    16: "the disk is full",
    17: "the state database is damaged or cannot be written",
    18: "the broker is away for long",
    19: "messages twice and out of order",
    20: "a will overtakes a birth, or comes late",
    21: "two servers, or one from a backup",
    22: "two devices with one identity",
    23: "an update that crashes again and again",
    24: "a model that verifies and misbehaves",
    25: "a model whose description is wrong: classes in another order",
    27: "a model or a piece of work that hangs",
    28: "an order to stop, in each state",
    29: "a report that cannot be sent",
    30: "bad data in logs",
    31: "404, 410, 5xx",
    32: "the gateway: requests that are malformed",
    33: "the gateway: a server behind it that is slow, dead or has another version; a client that is gone",
}


def named_rows() -> dict[int, list[tuple[str, str]]]:
    """Return the tests of each row: file, and what the name says."""
    found: dict[int, list[tuple[str, str]]] = {}
    for file in sorted(file for place in _PLACES for file in (ROOT / "tests" / place).rglob("test_*.py")):
        for match in _NAME.finditer(file.read_text(encoding="utf-8")):
            for row in re.findall(r"\d\d", match["rows"]):
                where = str(file.relative_to(ROOT / "tests"))
                found.setdefault(int(row), []).append((where, match["what"].replace("_", " ")))
    return found


def with_table(page: str) -> str:
    """Return a page with the table between its marks as it should be."""
    rows = ["| row | fault | tests |", "|---|---|---|"]
    found = named_rows()
    for row, fault in FAULTS.items():
        tests = "<br>".join(f"`{file}`: {what}" for file, what in found.get(row, []))
        rows.append(f"| {row} | {fault} | {tests} |")
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    return f"{before}{_BEGIN}\n\n" + "\n".join(rows) + f"\n\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
