"""One server at a time: on a directory, and on a database."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from edgec.errors import FleetError, OutputError
from edgec.fleet.store._database import open_engine

_log = logging.getLogger(__name__)
# Of PostgreSQL's advisory locks, which belong to one database of a cluster: who has it leads the fleet.
_LOCK = 0x6564676C
_EVERY_S = 5.0
# PostgreSQL notices only then that a server was killed a moment ago.
_PATIENCE_S = 5.0
# A machine that vanishes gives the lock back within a minute.
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}


@contextmanager
def alone_on(path: Path, what: str) -> Iterator[None]:
    """Keep a second server of this machine away, for as long as this process lives.

    Args:
        path: Of a file that is made for that, and stays.
        what: It is about, for people.

    Raises:
        FleetError: There is one (``reason`` ``conflict``).
        OutputError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise OutputError(f"cannot write to {path.parent}: {e.strerror}") from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise FleetError(f"another server runs on {what}; stop it first", "conflict") from e
    try:
        yield
    finally:
        os.close(descriptor)


class Leader:
    """Holds a PostgreSQL database for one server, whatever machine others are on.

    The lock belongs to a connection. Where that ends, by a restart of the database, it is taken again; where
    another server was quicker, `lost` says so, and this one is to stop. Until it has noticed, both may run:
    what is in the database stays sound all the same.

    Attributes:
        pid: Of the process of PostgreSQL that has the lock.
        lost: Why this server may go on no longer, for people; None where it may.
    """

    def __init__(self, url: str, *, every_s: float = _EVERY_S, patience_s: float | None = None) -> None:
        """Take the lock.

        Args:
            url: ``postgresql://user@host/name``.
            every_s: How often to look whether it is still held.
            patience_s: How long to wait for a server that is just ending; a few seconds if None.

        Raises:
            FleetError: Another server has it (``reason`` ``conflict``), or the database cannot be reached
                (``database``).
            MissingExtraError: PostgreSQL needs the extra ``postgres``.
        """
        self._engine, self._every_s = open_engine(url), every_s
        self._problem: str | None = None
        self.lost: str | None = None
        self._stopping = threading.Event()
        end = time.monotonic() + (_PATIENCE_S if patience_s is None else patience_s)
        try:
            while (taken := self._take()) is None:
                if time.monotonic() > end:
                    said = self._holder()
                    self._engine.dispose()
                    raise FleetError(f"{said}; stop it first", "conflict")
                time.sleep(0.1)
        except SQLAlchemyError as e:
            self._engine.dispose()
            raise FleetError(f"cannot use the database {self._engine.url}: {e}", "database") from e
        self._connection, self.pid = taken, _pid(taken)
        self._thread = threading.Thread(target=self._run, name="fleet-leader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the lock back."""
        self._stopping.set()
        self._thread.join()
        self._drop()
        self._engine.dispose()

    def problem(self) -> str | None:
        """Return what is wrong, for people; None where it is held."""
        return self.lost or self._problem

    def look(self) -> None:
        """Look whether the connection is there; where it is not, take the lock on another one."""
        try:
            if not self._holds():
                self._again()
            self._problem = None
        except SQLAlchemyError as e:
            self._problem = f"the database cannot be reached: {e}"
            _log.warning("%s", self._problem)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s) and self.lost is None:
            self.look()

    def _holds(self) -> bool:
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self._drop()
            return False
        return True

    def _again(self) -> None:
        taken = self._take()
        if taken is None:
            self.lost = f"{self._holder()}, since the connection to it was lost: this one stops"
            _log.error("%s", self.lost)
        else:
            self._connection, self.pid = taken, _pid(taken)

    def _take(self) -> Connection | None:
        """Return a connection that has the lock; None where another one has it."""
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            # It is none of those that transactions take turns with.
            connection.detach()
            for name, value in {**_KEEPALIVE, "application_name": f"'{_name()}'"}.items():
                connection.execute(text(f"SET {name} = {value}"))
            if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar_one():
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _drop(self) -> None:
        try:
            self._connection.close()
        except SQLAlchemyError:
            _log.debug("the connection of the lock was gone already", exc_info=True)

    def _holder(self) -> str:
        """Say who has the lock."""
        query = text(
            "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
            "WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = :key AND "
            "pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with closing(self._engine.connect()) as connection:
            name = connection.execute(query, {"key": _LOCK}).scalar()
        where = f" ({name})" if name else ""
        return f"another server{where} uses the database {self._engine.url}"


def _pid(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def _name() -> str:
    """Return what this server is called among the connections of the database, in quotes it is safe in."""
    host = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c in "-."))
    return f"edgec fleet on {host[:32]}, process {os.getpid()}"
