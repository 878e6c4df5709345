"""The file of an outbox: SQLite, one connection, no rules. See `edgec.device_agent._outbox` for those."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

_VERSION = 1
_SCHEMA = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    priority INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 2), kind TEXT NOT NULL, at REAL NOT NULL,
    crc INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE UNIQUE INDEX by_seq ON records (boot, seq);
CREATE INDEX by_priority ON records (priority, id);
CREATE TABLE boots (boot TEXT PRIMARY KEY, next_seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE losses (
    kind TEXT, priority INTEGER, reason TEXT, records INTEGER, bytes INTEGER, incidents INTEGER,
    PRIMARY KEY (kind, priority, reason)) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "id, boot, seq, priority, kind, at, crc, payload"


class Row(NamedTuple):
    """A record as it is stored; `id` is 0 before it is, and grows with each."""

    id: int
    boot: str
    seq: int
    priority: int
    kind: str
    at: float
    crc: int
    payload: bytes

    @property
    def is_whole(self) -> bool:
        """Whether the payload is what was written."""
        return isinstance(self.payload, bytes) and crc32(self.payload) == self.crc


class OutboxFile:
    """Records, sequence numbers and loss counters in one file.

    Every method may raise the errors of `sqlite3`: exactly DatabaseError where the file is damaged,
    OperationalError where the disk is full or fails.
    """

    def __init__(self, path: Path, *, wal_pages: int = 256) -> None:
        """Open the file, or make it; damaged ones are found here as far as SQLite can tell."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        try:
            self._open(wal_pages)
        except BaseException:
            self._db.close()
            raise

    def _open(self, wal_pages: int) -> None:
        run = self._db.execute
        # One process at a time; without memory shared between processes, which some file systems have not.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA wal_autocheckpoint = {wal_pages}")
        run("PRAGMA journal_size_limit = 1048576")
        run("PRAGMA temp_store = MEMORY")
        with self.transaction():
            (version,) = run("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    run(statement)
                run(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"the outbox has version {version}, and this reads {_VERSION}")
        ((state, *_), *_) = run("PRAGMA quick_check(1)").fetchall()
        if state != "ok":
            raise sqlite3.DatabaseError(str(state))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of a block or nothing; on the disk when it ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors.
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def insert(self, row: Row) -> None:
        """Add a record, and move the sequence number of its boot behind it."""
        self._db.execute(f"INSERT INTO records ({_COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", row[1:])
        self._db.execute("INSERT OR REPLACE INTO boots VALUES (?, ?)", (row.boot, row.seq + 1))

    def next_seq(self, boot: str) -> int:
        """Return the sequence number after the last that this boot has used."""
        found = self._db.execute("SELECT next_seq FROM boots WHERE boot = ?", (boot,)).fetchone()
        return int(found[0]) if found else 0

    def held(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Return how many records there are, and bytes of payload, by kind and priority."""
        query = "SELECT kind, priority, COUNT(*), SUM(LENGTH(payload)) FROM records GROUP BY kind, priority"
        return {(kind, priority): (n, size) for kind, priority, n, size in self._db.execute(query)}

    def following(self, priority: int, after: int, most: int) -> Iterator[Row]:
        """Yield records of a priority after an id, the oldest first."""
        query = f"SELECT {_COLUMNS} FROM records WHERE priority = ? AND id > ? ORDER BY id LIMIT ?"
        for row in self._db.execute(query, (priority, after, most)):
            yield Row(*row)

    def oldest(self, priority_below: int) -> Iterator[Row]:
        """Yield records below a priority, the lowest first, of these the oldest."""
        for (priority,) in self._db.execute(
            "SELECT DISTINCT priority FROM records WHERE priority < ? ORDER BY priority", (priority_below,)
        ).fetchall():
            yield from self.following(priority, 0, -1)

    def delete(self, ids: Iterable[int]) -> None:
        """Remove records."""
        self._db.executemany("DELETE FROM records WHERE id = ?", ((i,) for i in ids))

    def acknowledged(self, boot: str, up_to: int) -> list[tuple[int, str, int, int]]:
        """Return what an acknowledgement covers: id, kind, priority and size of each."""
        query = "SELECT id, kind, priority, LENGTH(payload) FROM records WHERE boot = ? AND seq <= ?"
        return self._db.execute(query, (boot, up_to)).fetchall()

    def forget_boots(self, kept: Iterable[str]) -> None:
        """Forget the sequence numbers of boots that have no record, but some."""
        rows = self._db.execute(
            "SELECT boot FROM boots WHERE boot NOT IN (SELECT DISTINCT boot FROM records)"
        )
        gone = {boot for (boot,) in rows} - set(kept)
        self._db.executemany("DELETE FROM boots WHERE boot = ?", ((boot,) for boot in gone))

    def add_losses(self, losses: Iterable[tuple[str, int, str, int, int, int]]) -> None:
        """Add to the totals: kind, priority, reason, records, bytes, incidents."""
        self._db.executemany(
            "INSERT INTO losses VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (kind, priority, reason) DO UPDATE SET"
            " records = records + excluded.records, bytes = bytes + excluded.bytes,"
            " incidents = incidents + excluded.incidents",
            losses,
        )

    def losses(self) -> list[tuple[str, int, str, int, int, int]]:
        """Return the totals."""
        query = "SELECT kind, priority, reason, records, bytes, incidents FROM losses ORDER BY 1, 2, 3"
        return self._db.execute(query).fetchall()

    def meta(self, key: str) -> str | None:
        """Return a word that is kept."""
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a word."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def shrink(self) -> None:
        """Move the log into the file, which may free space."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Release the file."""
        with suppress(sqlite3.Error):
            self._db.close()
