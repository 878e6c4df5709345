"""What an outbox's file holds, and what is kept of that in memory: sequence numbers, sizes, losses."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from zlib import crc32

from edgec.device_agent._outbox_file import OutboxFile, Row
from edgec.device_agent._outbox_losses import Tally, add_loss, merged
from edgec.device_agent._outbox_records import Priority
from edgec.protocol._losses import LOSS_KIND

ROW_BYTES = 128  # what a record takes beside its payload, indexes included
_LANES = {Priority.EVENT: "e", Priority.METRIC: "m", Priority.SAMPLE: "s"}
_UNREPORTED = "unreported"
Items = Sequence[tuple[str, Priority, bytes]]


class OutboxBooks:
    """The books of an outbox, over one file after the other. For one thread at a time.

    Errors are those of SQLite; what is kept in memory is then as it was.

    Attributes:
        file: That is kept now.
        counters: Names the loss counters of the file.
        totals: What was lost, as far as that is written.
        unsaved: What was lost and is not written yet.
        unreported: Whether the file holds losses that no record tells of.
        dropped: Damaged records that `following` met.
    """

    file: OutboxFile
    counters: str
    unreported: bool

    def __init__(self, boot_id: str, max_bytes: int, clock: Callable[[], float]) -> None:
        """Know nothing until `read`."""
        self._boot, self._most, self._clock = boot_id, max_bytes, clock
        self.totals: Tally = {}
        self.unsaved: Tally = {}
        self.dropped = 0
        self._cursor = dict.fromkeys(Priority, 0)
        self._taken: dict[str, int] = {}
        self._seqs: dict[str, int] = {}
        self._held: Counter[tuple[str, int]] = Counter()
        self._sizes: Counter[tuple[str, int]] = Counter()

    @property
    def bytes(self) -> int:
        """What the records take."""
        return _total(self._held, self._sizes)

    @property
    def reports_losses(self) -> bool:
        """Whether a report of losses waits among the records."""
        return bool(self._held[LOSS_KIND, int(Priority.EVENT)])

    def records(self, priority: Priority) -> int:
        """Return how many records of a priority there are."""
        return sum(n for (_, q), n in self._held.items() if q == priority)

    def read(self, file: OutboxFile) -> None:
        """Go on with a file; it is closed where that fails."""
        try:
            held = file.held()
            self._held = Counter({key: n for key, (n, _) in held.items()})
            self._sizes = Counter({key: size for key, (_, size) in held.items()})
            boots = [f"{self._boot}-{lane}" for lane in _LANES.values()]
            self._seqs = {boot: max(file.next_seq(boot), self._seqs.get(boot, 0)) for boot in boots}
            self.totals = {(k, p, r): (n, size, times) for k, p, r, n, size, times in file.losses()}
            self.counters = file.meta("counters") or os.urandom(8).hex()
            self.unreported = file.meta(_UNREPORTED) == "1"
            with file.transaction():
                file.set_meta("counters", self.counters)
        except BaseException:
            file.close()
            raise
        self.file = file

    def lose_all(self) -> None:
        """Count what the file holds as lost, before another one is read."""
        for (kind, priority), n in self._held.items():
            add_loss(self.unsaved, (kind, priority, "corrupt"), n, self._sizes[kind, priority])
        # Totals are those of other counters from here on, which begin with all that is known.
        self.unsaved = merged(self.totals, self.unsaved)
        self.rewind()

    def rewind(self) -> None:
        """Let `following` begin again with the first record."""
        self._cursor = dict.fromkeys(Priority, 0)

    def took(self, rows: Sequence[Row]) -> None:
        """Note that rows of `following` are sent: they come no more, and may be acknowledged."""
        last = rows[-1]
        self._cursor[Priority(last.priority)] = last.id
        self._taken[last.boot] = max(last.seq, self._taken.get(last.boot, -1))

    def taken(self, boot: str) -> int:
        """Return the last sequence number of a boot that was sent; -1 for none."""
        return self._taken.get(boot, -1)

    def commit(self, groups: Sequence[Items], *, reported: bool) -> list[list[tuple[str, int] | None]]:
        """Write records, all in one transaction; return what `Outbox.put_many` does, for each group.

        Args:
            groups: Kind, priority and payload of records.
            reported: Whether they tell of all losses so far.
        """
        # Nothing of this object changes before the transaction has ended well.
        seqs, held, sizes, lost = (
            dict(self._seqs),
            Counter(self._held),
            Counter(self._sizes),
            dict(self.unsaved),
        )
        answers: list[list[tuple[str, int] | None]] = []
        with self.file.transaction():
            for items in groups:
                answers.append([])
                for kind, priority, payload in items:
                    if not self._make_room(priority, len(payload) + ROW_BYTES, held, sizes, lost):
                        add_loss(lost, (kind, int(priority), "full"), 1, len(payload))
                        answers[-1].append(None)
                        continue
                    boot = f"{self._boot}-{_LANES[priority]}"
                    seq, seqs[boot] = seqs[boot], seqs[boot] + 1
                    row = Row(0, boot, seq, int(priority), kind, self._now(), crc32(payload), payload)
                    self.file.insert(row)
                    held[kind, int(priority)] += 1
                    sizes[kind, int(priority)] += len(payload)
                    answers[-1].append((boot, seq))
            self._write_losses(lost, reported=reported)
        self._seqs, self._held, self._sizes = seqs, held, sizes
        self._saved(lost, reported=reported)
        return answers

    def acknowledge(self, boot: str, up_to: int) -> int:
        """Forget the records of a boot up to a sequence number; return how many."""
        with self.file.transaction():
            gone = self.file.acknowledged(boot, up_to)
            self.file.delete(i for i, *_ in gone)
            self.file.forget_boots(self._seqs)
        for _, kind, priority, size in gone:
            self._held[kind, priority] -= 1
            self._sizes[kind, priority] -= size
        return len(gone)

    def following(self, priority: Priority, max_records: int, max_bytes: int) -> list[Row]:
        """Return the records of a priority to send next; damaged ones go, and are counted."""
        rows: list[Row] = []
        damaged: list[Row] = []
        size = 0
        for row in self.file.following(int(priority), self._cursor[priority], max_records):
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
        return rows or (self.following(priority, max_records, max_bytes) if damaged else [])

    def save_losses(self) -> None:
        """Write what was lost."""
        lost = dict(self.unsaved)
        with self.file.transaction():
            self._write_losses(lost)
        self._saved(lost)

    def _write_losses(self, lost: Tally, *, reported: bool = False) -> None:
        self.file.add_losses((*loss, *numbers) for loss, numbers in lost.items())
        if lost or reported:
            self.file.set_meta(_UNREPORTED, "1" if lost else "0")

    def _saved(self, lost: Tally, *, reported: bool = False) -> None:
        self.totals = merged(self.totals, lost)
        self.unsaved = {}
        if lost or reported:
            self.unreported = bool(lost)

    def _make_room(
        self,
        priority: Priority,
        size: int,
        held: Counter[tuple[str, int]],
        sizes: Counter[tuple[str, int]],
        lost: Tally,
    ) -> bool:
        """Drop the oldest of the lowest priority, at most its own, until a record fits; whether it does."""
        excess = _total(held, sizes) + size - self._most
        if excess <= 0:
            return True
        rows, freed = [], 0
        for row in self.file.oldest(int(priority) + 1):
            rows.append(row)
            freed += len(row.payload) + ROW_BYTES
            if freed >= excess:
                break
        if freed < excess:
            return False
        self.file.delete(row.id for row in rows)
        for row in rows:
            add_loss(lost, (row.kind, row.priority, "full"), 1, len(row.payload))
            held[row.kind, row.priority] -= 1
            sizes[row.kind, row.priority] -= len(row.payload)
        return True

    def _drop_damaged(self, rows: list[Row]) -> None:
        self.dropped += len(rows)
        lost = dict(self.unsaved)
        for row in rows:
            add_loss(lost, (row.kind, row.priority, "corrupt"), 1, len(row.payload))
        with self.file.transaction():
            self.file.delete(row.id for row in rows)
            self._write_losses(lost)
        for row in rows:
            self._held[row.kind, row.priority] -= 1
            self._sizes[row.kind, row.priority] -= len(row.payload)
        self._saved(lost)

    def _now(self) -> float:
        now = self._clock()
        return max(now, 0.0) if math.isfinite(now) else 0.0


def _total(held: Counter[tuple[str, int]], sizes: Counter[tuple[str, int]]) -> int:
    return sum(sizes.values()) + ROW_BYTES * sum(held.values())
