"""What a device says of records that it lost: totals, so that a later report makes good a lost one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from edgec.errors import ProtocolError

LOSS_KIND = "loss"
_MOST_BYTES = 64 * 1024
_MOST_COUNTS = 512
_WORDS = ("kind", "reason")
_NUMBERS = ("priority", "records", "bytes", "incidents")


@dataclass(frozen=True, kw_only=True)
class LossCount:
    """Records of one kind and priority that were lost for one reason, since the counters began.

    Attributes:
        kind: Of the records; empty where it is not known any more.
        priority: Of the records; -1 where it is not known.
        reason: ``full`` (no room), ``disk`` (could not be written), ``corrupt`` (the file was damaged),
            ``policy`` (not to be sent), ``rate`` (too many in a day).
        records: How many, at the least.
        bytes: Of payload, at the least.
        incidents: Times that records were lost of which the number is not known.
    """

    kind: str
    priority: int
    reason: str
    records: int
    bytes: int
    incidents: int = 0


def encode_losses(counters: str, counts: Iterable[LossCount]) -> bytes:
    """Return a loss report as bytes: JSON, readable without anything else when much is broken.

    Args:
        counters: Names these counters: others begin again from zero, and add up with these.
        counts: Totals since the counters began.
    """
    report = {"v": 1, "counters": counters, "counts": [asdict(count) for count in counts]}
    return json.dumps(report, separators=(",", ":")).encode()


def decode_losses(data: bytes) -> tuple[str, tuple[LossCount, ...]]:
    """Return the name of the counters and their totals.

    Raises:
        ProtocolError: The bytes are no loss report.
    """
    if len(data) > _MOST_BYTES:
        raise ProtocolError(f"expected a loss report of at most {_MOST_BYTES} bytes, got {len(data)}")
    try:
        report = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"expected a loss report as JSON: {e}") from e
    if not isinstance(report, dict) or report.get("v") != 1:
        raise ProtocolError("expected a loss report, version 1")
    counters, counts = report.get("counters"), report.get("counts")
    if not isinstance(counters, str) or not isinstance(counts, list) or len(counts) > _MOST_COUNTS:
        raise ProtocolError(f"expected the name of counters and at most {_MOST_COUNTS} counts")
    return counters[:64], tuple(map(_count, counts))


def _count(value: object) -> LossCount:
    if not isinstance(value, dict):
        raise ProtocolError(f"expected a count of losses, got {type(value).__name__}")
    words, numbers = [value.get(n) for n in _WORDS], [value.get(n) for n in _NUMBERS]
    fit = all(isinstance(w, str) and len(w) <= 64 for w in words) and all(
        isinstance(n, int) and not isinstance(n, bool) and -1 <= n < 2**63 for n in numbers
    )
    if not fit:
        raise ProtocolError(f"a count of losses is malformed: {value!r:.200}")
    return LossCount(**{key: value[key] for key in (*_WORDS, *_NUMBERS)})
