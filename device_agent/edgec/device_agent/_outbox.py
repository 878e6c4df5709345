"""The outbox: what the fleet is to hear of, kept on disk until the fleet says that it has it."""

from __future__ import annotations

import math
import os
import re
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar
from zlib import crc32

from edgec.device_agent._outbox_file import OutboxFile, Row
from edgec.errors import AgentError
from edgec.protocol._losses import LOSS_KIND, LossCount, encode_losses

MAX_RECORD_BYTES = 96 * 1024
_ROW_BYTES = 128  # what a record takes beside its payload, indexes included
_MOST_PER_COMMIT = 512
_BOOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_Loss = tuple[str, int, str]
# Records, bytes and incidents, by what was lost.
_Tally = dict[_Loss, tuple[int, int, int]]
_T = TypeVar("_T")


class Priority(IntEnum):
    """What is given up first where there is no room, and sent last: the lowest."""

    SAMPLE = 0
    METRIC = 1
    EVENT = 2


_LANES = {Priority.EVENT: "e", Priority.METRIC: "m", Priority.SAMPLE: "s"}


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


class _Request:
    """Records of one call of `Outbox.put_many`, until they are on the disk."""

    __slots__ = ("done", "error", "is_report", "items", "seqs")

    def __init__(self, items: Sequence[tuple[str, Priority, bytes]], *, is_report: bool = False) -> None:
        self.items = items
        self.is_report = is_report
        self.seqs: list[tuple[str, int] | None] = []
        self.error = ""
        self.done = False


class Outbox:
    """Records on disk, in bounded space, until they are acknowledged. Safe from several threads.

    A record is durable once `put` returns: SQLite with ``synchronous=FULL``, where records of threads that
    wait at the same time share one write to the disk. Where there is no room, the oldest records of the
    lowest priority go; what goes, for whatever reason, is counted, and the counts are a record themselves.
    Nothing goes because of its age, so that a clock that jumps does no harm.

    Sending is go-back-N: `take` gives what comes next, `rewind` begins again with what is not acknowledged,
    `ack` removes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        boot_id: str,
        max_bytes: int = 16 * 2**20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the outbox, or make it; a damaged one is set aside, ``<name>.corrupt``, and counted as lost.

        Args:
            path: Of the file, in a directory that exists.
            boot_id: Of this start of the agent; another one at each start, so that no sequence number is used
                twice even where the file was lost.
            max_bytes: Of records together; the file may be a few megabytes larger.
            clock: Seconds since 1970.

        Raises:
            AgentError: The file cannot be opened or made, or another process has it.
            ValueError: `boot_id` is no id of at most 61 letters, or there is room for less than one record.
        """
        if not _BOOT.fullmatch(boot_id) or max_bytes < MAX_RECORD_BYTES + _ROW_BYTES:
            raise ValueError(
                f"expected an id and room for {MAX_RECORD_BYTES + _ROW_BYTES} bytes, "
                f"got {boot_id!r:.80} and {max_bytes}"
            )
        self._path = Path(path)
        self._boot = boot_id
        self._most = max_bytes
        self._clock = clock
        self._lock = Lock()
        self._waiting: deque[_Request] = deque()
        self._totals: _Tally = {}
        self._unsaved: _Tally = {}
        self._cursor = dict.fromkeys(Priority, 0)
        self._taken: dict[str, int] = {}
        self._seqs: dict[str, int] = {}
        self._held: Counter[tuple[str, int]] = Counter()
        self._sizes: Counter[tuple[str, int]] = Counter()
        self._closed = False
        # Whether `take` has found nothing, and nothing has happened since.
        self._idle = False
        self._file = self._open()

    # -- putting

    def put(self, kind: str, priority: Priority, payload: bytes) -> tuple[str, int] | None:
        """Keep a record; it is on the disk when this returns.

        Args:
            kind: A word of at most 32 letters: ``window``.
            priority: See `Priority`.
            payload: At most 96 KiB.

        Returns:
            Its boot id and sequence number; None where there is no room, for all there is has a higher
            priority: it is counted as lost.

        Raises:
            AgentError: It could not be written, as where the disk is full; it is counted as lost.
            ValueError: The kind is no such word, or the payload too large.
        """
        return self.put_many([(kind, priority, payload)])[0]

    def put_many(self, records: Sequence[tuple[str, Priority, bytes]]) -> list[tuple[str, int] | None]:
        """Keep records together, all or none, with one write to the disk; see `put`."""
        for kind, _, payload in records:
            if not _KIND.fullmatch(kind) or len(payload) > MAX_RECORD_BYTES:
                raise ValueError(
                    f"expected a word for a kind and at most {MAX_RECORD_BYTES} bytes, "
                    f"got {kind!r:.60} and {len(payload)}"
                )
        request = _Request(
            [(kind, Priority(priority), bytes(payload)) for kind, priority, payload in records]
        )
        self._waiting.append(request)
        with self._lock:
            # Whoever has the lock writes for all who wait for it.
            while not request.done:
                self._write_waiting()
        if request.error:
            raise AgentError(request.error)
        return request.seqs

    def count_loss(self, kind: str, priority: Priority, reason: str, records: int = 1, size: int = 0) -> None:
        """Count records that were given up before they came here; written with what is put next."""
        with self._lock:
            self._idle = False
            _add(self._unsaved, (kind, int(priority), reason), records, size)

    # -- sending

    def peek(self, *, max_records: int = 256, max_bytes: int = 64 * 1024) -> list[OutboxRecord]:
        """Return what `take` would, without taking it."""
        with self._lock:
            return [_record(row) for row in self._next(max_records, max_bytes)]

    def take(self, *, max_records: int = 256, max_bytes: int = 64 * 1024) -> list[OutboxRecord]:
        """Return the records to send next, of the highest priority the oldest; none when all is sent.

        All of them have the same boot id and follow each other without a gap. They stay until `ack`.

        Args:
            max_records: To return.
            max_bytes: Of their payload together; one record is returned even where it is larger.

        Raises:
            AgentError: The disk failed.
        """
        with self._lock:
            if self._idle and not self._closed:
                return []
            self._idle = True
            try:
                self._report_losses()
                rows = self._next(max_records, max_bytes)
            except AgentError:
                self._idle = False
                raise
            if rows:
                self._idle = False
                last = rows[-1]
                self._cursor[Priority(last.priority)] = last.id
                self._taken[last.boot] = max(last.seq, self._taken.get(last.boot, -1))
            return [_record(row) for row in rows]

    def rewind(self) -> None:
        """Let `take` begin again with the first record that is not acknowledged, as after a reconnect."""
        with self._lock:
            self._idle = False
            self._cursor = dict.fromkeys(Priority, 0)

    def ack(self, boot_id: str, up_to_seq: int) -> int:
        """Forget the records of a boot up to a sequence number, which the fleet has; return how many.

        What was not taken since this outbox was opened stays, whatever a server says: it is sent, and
        acknowledged again.

        Raises:
            AgentError: The disk failed; they stay, and are sent again.
        """
        with self._lock:
            self._idle = False
            up_to = min(up_to_seq, self._taken.get(boot_id, -1))
            if up_to < 0:
                return 0
            return self._guarded(lambda: self._acknowledge(boot_id, up_to))

    def state(self) -> OutboxState:
        """Return what the outbox holds and has lost."""
        with self._lock:
            records = {p: sum(n for (_, q), n in self._held.items() if q == p) for p in Priority}
            return OutboxState(
                records=records,
                bytes=_total(self._held, self._sizes),
                max_bytes=self._most,
                counters=self._counters,
                losses=_counts(_merged(self._totals, self._unsaved)),
            )

    def close(self) -> None:
        """Release the file; nothing is lost by leaving this out."""
        with self._lock:
            if not self._closed and self._unsaved:
                with suppress(AgentError):
                    self._guarded(self._save_losses)
            self._closed = True
            self._file.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing; the lock is held from here on

    def _write_waiting(self) -> None:
        self._idle = False
        requests: list[_Request] = []
        count = 0
        while self._waiting and count < _MOST_PER_COMMIT:
            requests.append(self._waiting.popleft())
            count += len(requests[-1].items)
        try:
            self._guarded(lambda: self._commit(requests))
        except AgentError as e:
            for request in requests:
                request.error = str(e)
                for kind, priority, payload in request.items:
                    _add(self._unsaved, (kind, int(priority), "disk"), 1, len(payload))
        finally:
            for request in requests:
                if len(request.seqs) != len(request.items) and not request.error:
                    request.error = f"the outbox {self._path} was interrupted while it wrote for others"
                request.done = True

    def _commit(self, requests: list[_Request]) -> None:
        self._idle = False
        # Nothing of this object changes before the transaction has ended well.
        seqs, held, sizes, lost = (
            dict(self._seqs),
            Counter(self._held),
            Counter(self._sizes),
            dict(self._unsaved),
        )
        answers: list[list[tuple[str, int] | None]] = []
        with self._file.transaction():
            for request in requests:
                answers.append([])
                for kind, priority, payload in request.items:
                    if not self._make_room(priority, len(payload) + _ROW_BYTES, held, sizes, lost):
                        _add(lost, (kind, int(priority), "full"), 1, len(payload))
                        answers[-1].append(None)
                        continue
                    boot = f"{self._boot}-{_LANES[priority]}"
                    seq, seqs[boot] = seqs[boot], seqs[boot] + 1
                    row = Row(0, boot, seq, int(priority), kind, self._now(), crc32(payload), payload)
                    self._file.insert(row)
                    held[kind, int(priority)] += 1
                    sizes[kind, int(priority)] += len(payload)
                    answers[-1].append((boot, seq))
            self._write_losses(lost, reported=any(r.is_report for r in requests))
        self._seqs, self._held, self._sizes = seqs, held, sizes
        self._saved(lost)
        for request, seqs_of_request in zip(requests, answers, strict=True):
            request.seqs = seqs_of_request

    def _write_losses(self, lost: _Tally, *, reported: bool = False) -> None:
        self._file.add_losses((*loss, *numbers) for loss, numbers in lost.items())
        if lost or reported:
            self._file.set_meta("unreported", "1" if lost else "0")

    def _saved(self, lost: _Tally) -> None:
        self._totals = _merged(self._totals, lost)
        self._unsaved = {}

    def _make_room(
        self,
        priority: Priority,
        size: int,
        held: Counter[tuple[str, int]],
        sizes: Counter[tuple[str, int]],
        lost: _Tally,
    ) -> bool:
        """Drop the oldest of the lowest priority, at most its own, until a record fits; whether it does."""
        excess = _total(held, sizes) + size - self._most
        if excess <= 0:
            return True
        rows, freed = [], 0
        for row in self._file.oldest(int(priority) + 1):
            rows.append(row)
            freed += len(row.payload) + _ROW_BYTES
            if freed >= excess:
                break
        if freed < excess:
            return False
        self._file.delete(row.id for row in rows)
        for row in rows:
            _add(lost, (row.kind, row.priority, "full"), 1, len(row.payload))
            held[row.kind, row.priority] -= 1
            sizes[row.kind, row.priority] -= len(row.payload)
        return True

    def _acknowledge(self, boot: str, up_to: int) -> int:
        with self._file.transaction():
            gone = self._file.acknowledged(boot, up_to)
            self._file.delete(i for i, *_ in gone)
            self._file.forget_boots(self._seqs)
        for _, kind, priority, size in gone:
            self._held[kind, priority] -= 1
            self._sizes[kind, priority] -= size
        return len(gone)

    def _next(self, max_records: int, max_bytes: int) -> list[Row]:
        for priority in sorted(Priority, reverse=True):
            if rows := self._guarded(partial(self._batch, priority, max_records, max_bytes)):
                return rows
        return []

    def _batch(self, priority: Priority, max_records: int, max_bytes: int) -> list[Row]:
        rows: list[Row] = []
        damaged: list[Row] = []
        size = 0
        for row in self._file.following(int(priority), self._cursor[priority], max_records):
            if not row.is_whole:
                damaged.append(row)
                continue
            size += len(row.payload)
            follows = not rows or (row.boot == rows[0].boot and row.seq == rows[-1].seq + 1)
            if rows and (size > max_bytes or not follows):
                break
            rows.append(row)
        if damaged:
            self._drop_damaged(damaged)
        return rows or (self._batch(priority, max_records, max_bytes) if damaged else [])

    def _drop_damaged(self, rows: list[Row]) -> None:
        self._idle = False
        lost = dict(self._unsaved)
        for row in rows:
            _add(lost, (row.kind, row.priority, "corrupt"), 1, len(row.payload))
        with self._file.transaction():
            self._file.delete(row.id for row in rows)
            self._write_losses(lost)
        for row in rows:
            self._held[row.kind, row.priority] -= 1
            self._sizes[row.kind, row.priority] -= len(row.payload)
        self._saved(lost)

    def _report_losses(self) -> None:
        """Put the totals in the outbox, where they have changed since they last were and none waits there."""
        if self._held[LOSS_KIND, int(Priority.EVENT)]:
            return
        try:
            if self._unsaved or self._guarded(lambda: self._file.meta("unreported")) == "1":
                self._guarded(self._save_losses)
                report = encode_losses(self._counters, _counts(self._totals))
                request = _Request([(LOSS_KIND, Priority.EVENT, report)], is_report=True)
                self._guarded(lambda: self._commit([request]))
        except AgentError:  # a full disk: they are reported when it is not
            self._idle = False

    def _save_losses(self) -> None:
        lost = dict(self._unsaved)
        with self._file.transaction():
            self._write_losses(lost)
        self._saved(lost)

    # -- files that fail

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """Do work on the file; once more on a new one where it is damaged, or after freeing space."""
        if self._closed:
            raise AgentError(f"the outbox {self._path} is closed")
        for attempt in (1, 2):
            try:
                return work()
            except sqlite3.OperationalError as e:  # noqa: PERF203 - it runs twice at the most
                if attempt == 2 or "full" not in str(e):
                    raise AgentError(
                        f"the outbox {self._path} cannot be written ({e}): free space on its disk"
                    ) from e
                with suppress(sqlite3.Error):
                    self._file.shrink()
            except sqlite3.DatabaseError as e:
                if attempt == 2 or type(e) is not sqlite3.DatabaseError:
                    raise AgentError(f"the outbox {self._path} is damaged ({e})") from e
                self._replace()
        raise AssertionError("the second attempt returns or raises")

    def _open(self) -> OutboxFile:
        try:
            return self._read(OutboxFile(self._path))
        except sqlite3.OperationalError as e:
            raise AgentError(
                f"cannot open the outbox {self._path} ({e}): is another agent using it, or the disk full?"
            ) from e
        except sqlite3.DatabaseError:
            # What it held nobody can tell any more.
            self._unsaved["", -1, "corrupt"] = (0, 0, 1)
            return self._begin_anew()

    def _begin_anew(self) -> OutboxFile:
        try:
            _set_aside(self._path)
            return self._read(OutboxFile(self._path))
        except (OSError, sqlite3.Error) as e:
            raise AgentError(f"the outbox {self._path} was damaged and cannot be made anew ({e})") from e

    def _read(self, file: OutboxFile) -> OutboxFile:
        try:
            held = file.held()
            self._held = Counter({key: n for key, (n, _) in held.items()})
            self._sizes = Counter({key: size for key, (_, size) in held.items()})
            boots = [f"{self._boot}-{lane}" for lane in _LANES.values()]
            self._seqs = {boot: max(file.next_seq(boot), self._seqs.get(boot, 0)) for boot in boots}
            self._totals = {(k, p, r): (n, size, times) for k, p, r, n, size, times in file.losses()}
            self._counters = file.meta("counters") or os.urandom(8).hex()
            with file.transaction():
                file.set_meta("counters", self._counters)
        except BaseException:
            file.close()
            raise
        return file

    def _replace(self) -> None:
        """Set a file aside that turned out to be damaged, count what it held, and begin a new one."""
        self._idle = False
        self._file.close()
        for (kind, priority), n in self._held.items():
            _add(self._unsaved, (kind, priority, "corrupt"), n, self._sizes[kind, priority])
        # Totals are those of other counters from here on, which begin with all that is known.
        self._unsaved = _merged(self._totals, self._unsaved)
        self._cursor = dict.fromkeys(Priority, 0)
        self._file = self._begin_anew()

    def _now(self) -> float:
        now = self._clock()
        return max(now, 0.0) if math.isfinite(now) else 0.0


def _record(row: Row) -> OutboxRecord:
    return OutboxRecord(
        boot_id=row.boot,
        seq=row.seq,
        priority=Priority(row.priority),
        kind=row.kind,
        at=row.at,
        payload=row.payload,
    )


def _total(held: Counter[tuple[str, int]], sizes: Counter[tuple[str, int]]) -> int:
    return sum(sizes.values()) + _ROW_BYTES * sum(held.values())


def _add(tally: _Tally, loss: _Loss, records: int, size: int) -> None:
    if records:
        before = tally.get(loss, (0, 0, 0))
        tally[loss] = (before[0] + records, before[1] + size, before[2])


def _merged(one: _Tally, other: _Tally) -> _Tally:
    found = dict(one)
    for loss, numbers in other.items():
        before = found.get(loss, (0, 0, 0))
        found[loss] = (before[0] + numbers[0], before[1] + numbers[1], before[2] + numbers[2])
    return found


def _counts(tally: _Tally) -> tuple[LossCount, ...]:
    return tuple(
        LossCount(kind=kind, priority=priority, reason=reason, records=n, bytes=size, incidents=times)
        for (kind, priority, reason), (n, size, times) in sorted(tally.items())
    )


def _set_aside(path: Path) -> None:
    """Keep a damaged file for people to look at; its log first, which a new file must not find."""
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{path}.corrupt{end}")
