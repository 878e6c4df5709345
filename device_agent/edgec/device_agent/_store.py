"""Where updates are written down before anything is done: a database, and beside it a mirror.

Every state goes into SQLite (WAL, synchronous FULL: durable once `save` returns), together with the event
that led to it, and then as one small file beside the model's slots. Of the two, the one with the greater
serial is newer; so a database that is lost, damaged, rolled back or not writable costs nothing but its
history, and a mirror that could not be written costs nothing at all.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from edgec.artifact import atomic_write, hold
from edgec.device_agent._durable import make_directory, read_json, unlink, write_json
from edgec.device_agent._state import State
from edgec.errors import AgentError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

MIRROR = "update.json"
MAX_HISTORY = 1000
_PRUNE_EVERY = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS updates (model TEXT PRIMARY KEY, serial INTEGER NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (id INTEGER PRIMARY KEY, at_s REAL NOT NULL, model TEXT NOT NULL,
    what TEXT NOT NULL, phase TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


# SQL, and the values in it.
Statements: TypeAlias = list[tuple[str, tuple[object, ...]]]


class StoreError(AgentError):
    """A state could not be made durable; nothing that it asks for may be done.

    Attributes:
        reason: For programs, a word: ``full``, ``read_only``, ``damaged``, ``io``.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the history.

    Attributes:
        at_s: Wall-clock time, as far as the device knew it.
        what: The event, or another thing of note.
        phase: After it.
    """

    at_s: float
    model: str
    what: str
    phase: str
    reason: str
    detail: str


class Store:
    """The states of all updates of one agent. Safe to use from several threads.

    Args:
        directory: Of the agent; holds ``updates.db``, and belongs to one agent at a time.
        models: Where the slots are, and the mirrors beside them.
        history: How many lines of history are kept.

    Raises:
        AgentError: Another agent runs on this directory, or it cannot be made.

    Attributes:
        trouble: Why the database cannot be written, as a word; None while all is well.
        rebuilt: Whether a damaged database was set aside, and made anew from the mirrors.
        stopped: Whether the agent before this one ended in order.
        boot: Number of this start; greater than that of every start before.
    """

    def __init__(self, directory: Path, models: Path, *, history: int = MAX_HISTORY) -> None:
        self._path = directory / "updates.db"
        self._models = models
        self._keep = history
        self._writes = 0
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._latest: dict[str, State] = {}
        self.trouble: str | None = None
        self.rebuilt = False
        self.stopped = False
        self._held = _hold(directory)
        try:
            self._sweep()
            self._latest = self._read_mirrors()
            self._open()
            self.boot = self._count_start()
        except BaseException:
            self.close()
            raise

    def load(self) -> dict[str, State]:
        """Return the newest state of every model."""
        with self._lock:
            return dict(self._latest)

    def save(self, state: State, what: str) -> None:
        """Write a state down; it is durable when this returns.

        Args:
            state: Newer than what is there.
            what: The event that led to it, for the history.

        Raises:
            StoreError: Neither database nor mirror took it; what was there before still holds.
        """
        with self._lock:
            text = _text(state)
            in_database = self._save_row(state, text, what)
            problem = self._save_mirror(state.model, text)
            if problem is not None and not in_database:
                raise StoreError(
                    f"the state of {state.model} cannot be written: {problem}", self.trouble or "io"
                )
            self._latest[state.model] = state

    def note(self, at_s: float, model: str, what: str, detail: str) -> None:
        """Put a line into the history, where that is possible."""
        with self._lock:
            phase = self._latest[model].phase if model in self._latest else ""
            self._write([(_NOTE, (at_s, model, what, phase, "", detail))])

    def history(self, model: str | None = None, limit: int = 100) -> list[Entry]:
        """Return the last lines of the history, oldest first; nothing of it outlives a damaged database."""
        with self._lock:
            if self._database is None:
                return []
            query = (
                "SELECT at_s, model, what, phase, reason, detail FROM history WHERE ?1 IS NULL OR model = ?1"
            )
            try:
                rows = self._database.execute(f"{query} ORDER BY id DESC LIMIT ?2", (model, limit)).fetchall()
            except sqlite3.Error as e:
                self.trouble = _trouble(e)
                return []
        names = ("at_s", "model", "what", "phase", "reason", "detail")
        return [Entry(**dict(zip(names, row, strict=True))) for row in reversed(rows)]

    def recover(self) -> bool:
        """Try again to write the database, setting a damaged one aside; return whether all is well."""
        with self._lock:
            if self.trouble is None:
                return True
            self._disconnect()
            self.trouble = None
            self._open()
            return self.trouble is None

    def stop(self) -> None:
        """Note that the agent ends in order, and close."""
        with self._lock:
            self._write([(_FACT, ("stopped", 1))])
        self.close()

    def close(self) -> None:
        """Close, as a crash would."""
        with self._lock:
            self._disconnect()
            if self._held >= 0:
                os.close(self._held)
                self._held = -1

    def _open(self) -> None:
        """Open the database, and bring it up to what is known; leaves `trouble` where that cannot be done."""
        try:
            self._connect()
        except sqlite3.Error as e:
            self.trouble = _trouble(e)
            self._disconnect()
            if self.trouble == "damaged":
                self._rebuild()
        if self.trouble is None:
            rows: Statements = [(_ROW, (s.model, s.serial, _text(s))) for s in self._latest.values()]
            self._write(rows)

    def _connect(self) -> None:
        database = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False, isolation_level=None)
        self._database = database
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA journal_size_limit = 1048576")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"malformed: {verdict}")
        database.executescript(_SCHEMA)
        for (text,) in database.execute("SELECT state FROM updates").fetchall():
            state = _state(_parsed(text))
            if state is None:
                raise sqlite3.DatabaseError("malformed: a state in it cannot be read")
            known = self._latest.get(state.model)
            if known is None or known.serial < state.serial:
                self._latest[state.model] = state

    def _rebuild(self) -> None:
        try:
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{self._path}{suffix}")
            os.replace(self._path, f"{self._path}.damaged")
            self._connect()
        except (OSError, sqlite3.Error):
            # It stays as it is: `trouble` says so, and mirrors carry on what is under way.
            self._disconnect()
            return
        self.trouble = None
        self.rebuilt = True

    def _disconnect(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _count_start(self) -> int:
        facts = self._facts()
        mirror = self._models / ".boot.json"
        boot = max(facts.get("boot", 0), _boot(read_json(mirror))) + 1
        self.stopped = bool(facts.get("stopped", 0))
        self._write([(_FACT, ("boot", boot)), (_FACT, ("stopped", 0))])
        with suppress(OutputError, OSError):
            make_directory(self._models)
            write_json(mirror, {"v": 1, "boot": boot})
        return boot

    def _facts(self) -> dict[str, int]:
        if self._database is None:
            return {}
        try:
            return dict(self._database.execute("SELECT name, value FROM facts").fetchall())
        except sqlite3.Error as e:
            self.trouble = _trouble(e)
            return {}

    def _save_row(self, state: State, text: str, what: str) -> bool:
        note = (state.since_s, state.model, what, state.phase, state.reason, state.detail)
        rows: Statements = [
            (_ROW, (state.model, state.serial, text)),
            (_NOTE, note),
        ]
        self._writes += 1
        if self._writes % _PRUNE_EVERY == 0:
            rows.append((_PRUNE, (self._keep,)))
        return self._write(rows)

    def _write(self, statements: Statements) -> bool:
        """Run statements as one transaction; return whether they are durable."""
        if self._database is None:
            return False
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                self._database.execute(statement, values)
            self._database.execute("COMMIT")
        except sqlite3.Error as e:
            self.trouble = _trouble(e)
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            return False
        self.trouble = None
        return True

    def _save_mirror(self, model: str, text: str) -> OutputError | OSError | None:
        directory = self._models / model
        try:
            make_directory(directory)
            with atomic_write(directory / MIRROR) as file:
                file.write(text.encode())
        except (OutputError, OSError) as e:
            return e
        return None

    def _sweep(self) -> None:
        """Remove what writers of mirrors and links left when they were killed."""
        with suppress(OSError):
            for path in [*self._models.glob(".edgec-*.partial"), *self._models.glob("*/.edgec-*.partial")]:
                unlink(path)

    def _read_mirrors(self) -> dict[str, State]:
        states = [_state(read_json(path)) for path in sorted(self._models.glob(f"*/{MIRROR}"))]
        return {state.model: state for state in states if state is not None}


_ROW = (
    "INSERT INTO updates VALUES (?, ?, ?) "
    "ON CONFLICT (model) DO UPDATE SET serial = excluded.serial, state = excluded.state"
)
_NOTE = "INSERT INTO history (at_s, model, what, phase, reason, detail) VALUES (?, ?, ?, ?, ?, ?)"
_FACT = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
_PRUNE = "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?"


def _hold(directory: Path) -> int:
    """Return a descriptor that keeps other agents off a directory, also where nothing can be written."""
    try:
        make_directory(directory)
        return hold(directory)
    except BlockingIOError as e:
        raise AgentError(
            f"another agent runs on {directory}: stop it, or give this one its own directory"
        ) from e
    except OSError as e:
        raise AgentError(f"the agent's directory {directory} cannot be used: {e.strerror}") from e


def _text(state: State) -> str:
    return json.dumps(state.to_plain(), ensure_ascii=False, separators=(",", ":"))


def _state(plain: object) -> State | None:
    try:
        return State.from_plain(plain)
    except AgentError:
        return None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _boot(plain: dict[str, object]) -> int:
    boot = plain.get("boot")
    return boot if isinstance(boot, int) and 0 <= boot < 2**53 else 0


def _trouble(e: sqlite3.Error) -> str:
    # Python 3.10 gives no error codes; the words are SQLite's own.
    text = str(e)
    if "full" in text:
        return "full"
    if "readonly" in text or "unable to open" in text:
        return "read_only"
    if "malformed" in text or "not a database" in text or "no such" in text:
        return "damaged"
    return "io"
