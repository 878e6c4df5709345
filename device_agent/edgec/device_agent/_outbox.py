"""The outbox: what the fleet is to hear of, kept on disk until the fleet says that it has it."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

from edgec.device_agent._outbox_books import ROW_BYTES, OutboxBooks
from edgec.device_agent._outbox_file import OutboxFile, Row
from edgec.device_agent._outbox_losses import add_loss, counted, merged
from edgec.device_agent._outbox_records import MAX_RECORD_BYTES, OutboxRecord, OutboxState, Priority
from edgec.errors import AgentError
from edgec.protocol._losses import LOSS_KIND, encode_losses

_MOST_PER_COMMIT = 512
_BOOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_T = TypeVar("_T")


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
        if not _BOOT.fullmatch(boot_id) or max_bytes < MAX_RECORD_BYTES + ROW_BYTES:
            raise ValueError(
                f"expected an id and room for {MAX_RECORD_BYTES + ROW_BYTES} bytes, "
                f"got {boot_id!r:.80} and {max_bytes}"
            )
        self._path = Path(path)
        self._most = max_bytes
        self._lock = Lock()
        self._waiting: deque[_Request] = deque()
        self._books = OutboxBooks(boot_id, max_bytes, clock)
        self._closed = False
        # Whether `take` has found nothing, and nothing has happened since.
        self._idle = False
        self._open()

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
            add_loss(self._books.unsaved, (kind, int(priority), reason), records, size)

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
                self._books.took(rows)
            return [_record(row) for row in rows]

    def rewind(self) -> None:
        """Let `take` begin again with the first record that is not acknowledged, as after a reconnect."""
        with self._lock:
            self._idle = False
            self._books.rewind()

    def ack(self, boot_id: str, up_to_seq: int) -> int:
        """Forget the records of a boot up to a sequence number, which the fleet has; return how many.

        What was not taken since this outbox was opened stays, whatever a server says: it is sent, and
        acknowledged again.

        Raises:
            AgentError: The disk failed; they stay, and are sent again.
        """
        with self._lock:
            self._idle = False
            up_to = min(up_to_seq, self._books.taken(boot_id))
            if up_to < 0:
                return 0
            return self._guarded(lambda: self._books.acknowledge(boot_id, up_to))

    def state(self) -> OutboxState:
        """Return what the outbox holds and has lost."""
        with self._lock:
            books = self._books
            return OutboxState(
                records={priority: books.records(priority) for priority in Priority},
                bytes=books.bytes,
                max_bytes=self._most,
                counters=books.counters,
                losses=counted(merged(books.totals, books.unsaved)),
            )

    def close(self) -> None:
        """Release the file; nothing is lost by leaving this out."""
        with self._lock:
            if not self._closed and self._books.unsaved:
                with suppress(AgentError):
                    self._guarded(self._books.save_losses)
            self._closed = True
            self._books.file.close()

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
            self._commit(requests)
        except AgentError as e:
            for request in requests:
                request.error = str(e)
                for kind, priority, payload in request.items:
                    add_loss(self._books.unsaved, (kind, int(priority), "disk"), 1, len(payload))
        finally:
            for request in requests:
                if len(request.seqs) != len(request.items) and not request.error:
                    request.error = f"the outbox {self._path} was interrupted while it wrote for others"
                request.done = True

    def _commit(self, requests: list[_Request]) -> None:
        self._idle = False
        groups, reported = [request.items for request in requests], any(r.is_report for r in requests)
        answers = self._guarded(lambda: self._books.commit(groups, reported=reported))
        for request, seqs in zip(requests, answers, strict=True):
            request.seqs = seqs

    def _next(self, max_records: int, max_bytes: int) -> list[Row]:
        before = self._books.dropped
        for priority in sorted(Priority, reverse=True):
            rows = self._guarded(partial(self._books.following, priority, max_records, max_bytes))
            if self._books.dropped != before:
                self._idle = False
            if rows:
                return rows
        return []

    def _report_losses(self) -> None:
        """Put the totals in the outbox, where they have changed since they last were and none waits there."""
        if self._books.reports_losses:
            return
        try:
            if self._books.unsaved or self._books.unreported:
                self._guarded(self._books.save_losses)
                report = encode_losses(self._books.counters, counted(self._books.totals))
                self._commit([_Request([(LOSS_KIND, Priority.EVENT, report)], is_report=True)])
        except AgentError:  # a full disk: they are reported when it is not
            self._idle = False

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
                    self._books.file.shrink()
            except sqlite3.DatabaseError as e:
                if attempt == 2 or type(e) is not sqlite3.DatabaseError:
                    raise AgentError(f"the outbox {self._path} is damaged ({e})") from e
                self._replace()
        raise AssertionError("the second attempt returns or raises")

    def _open(self) -> None:
        try:
            self._books.read(OutboxFile(self._path))
        except sqlite3.OperationalError as e:
            raise AgentError(
                f"cannot open the outbox {self._path} ({e}): is another agent using it, or the disk full?"
            ) from e
        except sqlite3.DatabaseError:
            # What it held nobody can tell any more.
            self._books.unsaved["", -1, "corrupt"] = (0, 0, 1)
            self._begin_anew()

    def _begin_anew(self) -> None:
        try:
            _set_aside(self._path)
            self._books.read(OutboxFile(self._path))
        except (OSError, sqlite3.Error) as e:
            raise AgentError(f"the outbox {self._path} was damaged and cannot be made anew ({e})") from e

    def _replace(self) -> None:
        """Set a file aside that turned out to be damaged, count what it held, and begin a new one."""
        self._idle = False
        self._books.file.close()
        self._books.lose_all()
        self._begin_anew()


def _record(row: Row) -> OutboxRecord:
    return OutboxRecord(
        boot_id=row.boot,
        seq=row.seq,
        priority=Priority(row.priority),
        kind=row.kind,
        at=row.at,
        payload=row.payload,
    )


def _set_aside(path: Path) -> None:
    """Keep a damaged file for people to look at; its log first, which a new file must not find."""
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{path}.corrupt{end}")
