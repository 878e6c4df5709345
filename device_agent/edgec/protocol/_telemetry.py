"""Records that a device collects and keeps until they are acknowledged, and files in pieces: CBOR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from edgec.errors import ProtocolError
from edgec.protocol._kinds import (
    COUNT,
    ID,
    MAX_INTEGER,
    PATH,
    SHA256,
    TIME,
    WORD,
    Choice,
    ListOf,
    Maybe,
    Octets,
    Whole,
)
from edgec.protocol._message import CompactFields, CompactMessage, Message, Record, wire
from edgec.protocol._window import ModelWindow as ModelWindow

MAX_RECORD_BYTES = 120 * 1024
# Leaves room in a message of 128 KiB for the rest of the answer.
CHUNK_BYTES = 120 * 1024
MAX_RECORDS = 1024


@dataclass(frozen=True, kw_only=True)
class TelemetryRecord(CompactFields):
    """One record: its sequence number is `first_seq` of the message plus `offset`."""

    offset: int = wire(
        Whole(0, 2**32 - 1), key=1, doc="Numbers in between were dropped, or are sent elsewhere."
    )
    kind: str = wire(WORD, key=2, doc="What the payload is: window (ModelWindow), loss, sample ...")
    at: float = wire(TIME, key=3, doc="Seconds since 1970 by the device's clock.")
    payload: bytes = wire(Octets(MAX_RECORD_BYTES), key=4)


@dataclass(frozen=True, kw_only=True)
class Telemetry(CompactMessage):
    """Records of one start of a device's agent, in the order of their sequence numbers."""

    boot_id: str = wire(ID, key=1, doc="Of the start that the records were made in; it may be long ago.")
    first_seq: int = wire(COUNT, key=2)
    records: tuple[TelemetryRecord, ...] = wire(ListOf(Record(TelemetryRecord), MAX_RECORDS), key=3)
    floor: int = wire(
        COUNT, key=4, default=0, doc="No record of that start below this number will be sent again."
    )
    sent_at: float = wire(TIME, key=5)

    def check(self, where: str) -> None:
        """Refuse records that are not in the order of their numbers, or whose numbers are too great."""
        offsets = [record.offset for record in self.records]
        if any(b <= a for a, b in pairwise(offsets)):
            raise ProtocolError(f"{where}.records must have increasing offsets")
        if offsets and self.first_seq + offsets[-1] > MAX_INTEGER:
            raise ProtocolError(f"{where}.records must have numbers of at most {MAX_INTEGER}")

    def numbered(self) -> Iterator[tuple[int, TelemetryRecord]]:
        """Yield every record with its sequence number."""
        for record in self.records:
            yield self.first_seq + record.offset, record


@dataclass(frozen=True, kw_only=True)
class SeqRange(CompactFields):
    """Sequence numbers from `first` to `last`, both included."""

    first: int = wire(COUNT, key=1)
    last: int = wire(COUNT, key=2)

    def check(self, where: str) -> None:
        """Refuse one that ends before it begins."""
        if self.last < self.first:
            raise ProtocolError(f"{where} ends before it begins")


@dataclass(frozen=True, kw_only=True)
class TelemetryAck(CompactMessage):
    """The server keeps these records safely: the device may forget them.

    All up to `seq`, and those in `ranges`. Sent again whenever something comes that was acknowledged.
    """

    boot_id: str = wire(ID, key=1)
    seq: int | None = wire(
        Maybe(COUNT), key=2, default=None, doc="Every record up to this one; null for none."
    )
    ranges: tuple[SeqRange, ...] = wire(
        ListOf(Record(SeqRange), 256), key=3, default=(), doc="What is kept beyond it, in order."
    )

    def covers(self, seq: int) -> bool:
        """Whether the record of this number is acknowledged."""
        up_to = self.seq is not None and seq <= self.seq
        return up_to or any(r.first <= seq <= r.last for r in self.ranges)


@dataclass(frozen=True, kw_only=True)
class ChunkRequest(Message):
    """A device asks for a part of a file, where it can reach nothing but the broker."""

    id: str = wire(ID, doc="Of this request; the answer has it too.")
    path: str = wire(PATH, doc="Of the target in the image repository.")
    sha256: str = wire(SHA256, doc="Of the whole file.")
    offset: int = wire(COUNT)
    length: int = wire(Whole(1, CHUNK_BYTES), doc="Bytes wanted; the answer may have fewer.")


CHUNK_ERRORS = ("not_found", "busy", "range", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Chunk(CompactMessage):
    """A part of a file, or why there is none."""

    id: str = wire(ID, key=1)
    offset: int = wire(COUNT, key=2)
    total: int = wire(COUNT, key=3, doc="Bytes of the whole file; 0 with an error.")
    data: bytes = wire(Octets(CHUNK_BYTES), key=4, default=b"")
    error: str | None = wire(Maybe(Choice(CHUNK_ERRORS)), key=5, default=None)

    def check(self, where: str) -> None:
        """Refuse data beyond the end of the file."""
        if self.offset + len(self.data) > self.total and self.error is None:
            raise ProtocolError(f"{where} ends beyond the {self.total} bytes of the file")
