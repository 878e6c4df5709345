"""What an outbox takes, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from edgec.protocol._losses import LossCount

MAX_RECORD_BYTES = 96 * 1024


class Priority(IntEnum):
    """What is given up first where there is no room, and sent last: the lowest."""

    SAMPLE = 0
    METRIC = 1
    EVENT = 2


@dataclass(frozen=True, kw_only=True)
class OutboxRecord:
    """A record that the fleet has not acknowledged.

    Attributes:
        boot_id: Of the start of the agent that put it, with a letter for its priority: ``4f1c-m``. Within it
            sequence numbers have no gaps, and never stand for another record.
        seq: From 0.
        priority: See `Priority`.
        kind: A word: ``window``.
        at: When it was put, by the device's clock, in seconds since 1970; for people, nothing depends on it.
        payload: At most 96 KiB.
    """

    boot_id: str
    seq: int
    priority: Priority
    kind: str
    at: float
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class OutboxState:
    """What an outbox holds and has lost.

    Attributes:
        records: That are not acknowledged, by priority.
        bytes: They take, of `max_bytes`.
        max_bytes: They may take.
        counters: Names the loss counters; see `encode_losses`.
        losses: Totals, those included that could not be written yet.
    """

    records: dict[Priority, int]
    bytes: int
    max_bytes: int
    counters: str
    losses: tuple[LossCount, ...]
