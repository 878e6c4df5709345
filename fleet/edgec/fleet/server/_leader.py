"""One server at a time on a database of PostgreSQL."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from edgec.errors import FleetError
from edgec.fleet.store._database import open_engine, said_by

_log = logging.getLogger(__name__)
# Of PostgreSQL's advisory locks, which belong to one database of a cluster: who has it leads the fleet.
_LOCK = 0x6564676C
_EVERY_S = 5.0
# PostgreSQL notices only then that a server was killed a moment ago.
_PATIENCE_S = 5.0
# A machine that vanishes gives the lock back within a minute.
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
# And a network or a database that vanishes is noticed here, about as soon.
_TIMEOUTS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# So much later than a look was due, health tells of it.
_SILENCE_S = 15.0
_JOIN_S = 2.0
_HOLDER = text(
    "SELECT pid, application_name, host(client_addr) AS address "
    "FROM pg_stat_activity JOIN pg_locks USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = :key AND "
    "pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@dataclass(frozen=True)
class _Holder:
    """Who has the lock: its process of PostgreSQL, how it calls itself, and where it comes from."""

    pid: int
    name: str
    address: str | None


class Leader:
    """Holds a PostgreSQL database for one server, whatever machine others are on.

    The lock belongs to a connection. Where that ends, by a restart of the database, it is taken again;
    PostgreSQL is told to end the old connection where it has not heard yet. Where another server was quicker,
    `lost` says so, and this one is to stop. Until it has noticed, both may run: what is in the database stays
    sound all the same.

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
        self._engine, self._every_s = open_engine(url, _TIMEOUTS), every_s
        self._name = _name()
        self._problem: str | None = None
        self.lost: str | None = None
        self._stopping = threading.Event()
        end = time.monotonic() + (_PATIENCE_S if patience_s is None else patience_s)
        try:
            while (taken := self._take()) is None:
                if time.monotonic() > end:
                    holder = self._holder()
                    self._engine.dispose()
                    raise FleetError(
                        f"{self._said(holder)}; stop it first. If its machine is gone, PostgreSQL notices "
                        f"within a minute, or by SELECT pg_terminate_backend({holder.pid}) at once",
                        "conflict",
                    )
                time.sleep(0.1)
        except SQLAlchemyError as e:
            self._engine.dispose()
            raise FleetError(f"cannot use the database {self._engine.url}: {said_by(e)}", "database") from e
        self._connection, self.pid = taken, _pid(taken)
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="fleet-leader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the lock back; a database that does not answer is not waited for."""
        self._stopping.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            self._cut()
            self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            # It is connecting, within its time-out, and keeps nothing: the process need not wait for it.
            _log.warning("the database does not answer: it gives the lock back by itself")
            return
        self._drop()
        self._engine.dispose()

    def problem(self) -> str | None:
        """Return what is wrong, for people; None where it is held."""
        if (said := self.lost or self._problem) is not None:
            return said
        silent_s = time.monotonic() - self._heard
        if silent_s > self._every_s + _SILENCE_S:
            return f"the database has not answered for {silent_s:.0f} s"
        return None

    def look(self) -> None:
        """Look whether the connection is there; where it is not, take the lock on another one."""
        try:
            self._problem = None if self._holds() else self._again()
            self._heard = time.monotonic()
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

    def _again(self) -> str | None:
        """Take the lock again; return why that has to wait, for people."""
        if self._stopping.is_set():
            return None
        end = time.monotonic() + _PATIENCE_S
        while (taken := self._take()) is None:
            holder = self._holder()
            if holder.pid and holder.name != self._name:
                self.lost = f"{self._said(holder)}, since the connection to it was lost: this one stops"
                _log.error("%s", self.lost)
                return self.lost
            if holder.pid:
                self._end(holder.pid)
            if time.monotonic() > end or self._stopping.wait(0.1):
                return f"PostgreSQL does not end its process {holder.pid}, whose connection was lost"
        self._connection, self.pid = taken, _pid(taken)
        if self._stopping.is_set():
            self._drop()
        return None

    def _end(self, pid: int) -> None:
        """End our own lost connection, of which PostgreSQL has not heard yet."""
        with closing(self._engine.connect()) as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    def _take(self) -> Connection | None:
        """Return a connection that has the lock; None where another one has it."""
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            # It is none of those that transactions take turns with.
            connection.detach()
            for name, value in {**_KEEPALIVE, "application_name": f"'{self._name}'"}.items():
                connection.execute(text(f"SET {name} = {value}"))
            if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar_one():
                return connection
        except BaseException:  # whatever it was, Ctrl-C as well: the connection holds a lock, or will
            connection.close()
            raise
        connection.close()
        return None

    def _drop(self) -> None:
        try:
            self._connection.close()
        except SQLAlchemyError:
            _log.debug("the connection of the lock was gone already", exc_info=True)

    def _cut(self) -> None:
        """End the connection under a thread that waits for an answer."""
        import psycopg

        try:
            driver: Any = self._connection.connection.dbapi_connection
            if driver is None:
                return
            with socket.socket(fileno=os.dup(driver.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.Error, SQLAlchemyError):
            _log.debug("the connection of the lock was gone already", exc_info=True)

    def _holder(self) -> _Holder:
        """Return who has the lock; with the process 0 where it has just been given back."""
        with closing(self._engine.connect()) as connection:
            row = connection.execute(_HOLDER, {"key": _LOCK}).first()
        return (
            _Holder(0, "", None) if row is None else _Holder(row.pid, row.application_name or "", row.address)
        )

    def _said(self, holder: _Holder) -> str:
        parts = (holder.name, f"from {holder.address}" if holder.address else "")
        where = ", ".join(part for part in parts if part)
        return f"another server{f' ({where})' if where else ''} uses the database {self._engine.url}"


def _pid(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def _name() -> str:
    """Return what one leader is called among the connections of the database: 63 bytes, safe in quotes."""
    host = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c in "-."))
    return f"edgec fleet on {host[:20]}, process {os.getpid()}, {secrets.token_hex(4)}"
