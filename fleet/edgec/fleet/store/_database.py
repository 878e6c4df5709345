"""The database: SQLite beside the server, or PostgreSQL; opened, brought up to date, used in transactions."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from edgec.errors import FleetError, MissingExtraError

_MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_MS = 15_000


class Database:
    """A database of a fleet; safe from several threads, and on PostgreSQL for several servers.

    Attributes:
        engine: SQLAlchemy's.
    """

    def __init__(self, url: str | Path) -> None:
        """Open it and bring its tables up to date.

        Args:
            url: ``postgresql://user@host/name``, or the path of an SQLite file, which is made if need be.

        Raises:
            FleetError: It cannot be opened, or is of a newer edgec (``reason`` ``database``).
            MissingExtraError: PostgreSQL needs the extra ``postgres``.
        """
        self.engine = open_engine(url)
        self._joint = threading.local()
        # SQLite's own waiting is polling, and starves who asks for long; other processes must do with it.
        self._turn: AbstractContextManager[object] = (
            threading.RLock() if self.engine.dialect.name == "sqlite" else nullcontext()
        )
        try:
            with self.engine.connect() as connection:
                command.upgrade(alembic_config(connection), "head")
        except SQLAlchemyError as e:
            raise FleetError(f"cannot open the database {self.engine.url}: {said_by(e)}", "database") from e

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a transaction that is committed at the end, or not at all where the block raises.

        On SQLite, writers come one after the other, from the beginning of their transactions. Within
        `together`, it is that transaction.
        """
        if (joint := self._together) is not None:
            yield joint
            return
        with self._turn, self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a transaction that only reads; on SQLite, it waits for no writer.

        Within `together`, it is that transaction, which sees what it has written.
        """
        if (joint := self._together) is not None:
            yield joint
            return
        with self.engine.connect().execution_options(edgec_readonly=True) as connection:
            yield connection

    @contextmanager
    def together(self) -> Iterator[Connection]:
        """Make one transaction of all that this thread reads and writes in the block: all of it, or nothing.

        It belongs to the thread. What raises must leave the block.
        """
        if (joint := self._together) is not None:
            yield joint
            return
        with self._turn, self.engine.begin() as connection:
            self._joint.connection = connection
            try:
                yield connection
            finally:
                self._joint.connection = None

    @property
    def _together(self) -> Connection | None:
        found: Connection | None = getattr(self._joint, "connection", None)
        return found

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]], *, update: bool = True) -> None:
    """Insert rows; where the primary key is there already, replace the others columns, or leave them.

    Args:
        connection: In a transaction.
        table: Into it.
        rows: With the same columns each.
        update: Whether what is there is replaced.
    """
    if not rows:
        return
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    keys = [column.name for column in table.primary_key]
    if update:
        others = {name: insert.excluded[name] for name in rows[0] if name not in keys}
        statement = insert.on_conflict_do_update(index_elements=keys, set_=others)
    else:
        statement = insert.on_conflict_do_nothing(index_elements=keys)
    connection.execute(statement, rows)


def insert_new(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert a row unless its primary key is there already; return whether it was inserted.

    It waits for another transaction that is inserting the same key.
    """
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    keys = list(table.primary_key)
    statement = insert.values(row).on_conflict_do_nothing(index_elements=keys).returning(*keys)
    return connection.execute(statement).first() is not None


def clean(text: str) -> str:
    """Return text that every database can keep: zeros and halves of surrogate pairs become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def alembic_config(connection: Connection) -> Config:
    """Return what alembic's commands need to change a database's tables."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def open_engine(url: str | Path, defaults: Mapping[str, int] | None = None) -> Engine:
    """Return SQLAlchemy's engine of a database, whose tables are not looked at.

    Args:
        url: As `Database` takes it.
        defaults: Parameters of connections to PostgreSQL, where the URL does not say otherwise.

    Raises:
        FleetError: There is no such kind of database, or no directory for it (``reason`` ``database``).
        MissingExtraError: PostgreSQL needs the extra ``postgres``.
    """
    text = str(url)
    if "://" not in text:
        path = Path(text)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FleetError(f"cannot make the directory {path.parent}: {e.strerror}", "database") from e
        engine = create_engine(f"sqlite:///{path}")
        _as_sqlite(engine)
        return engine
    parsed = make_url(text)
    if parsed.get_backend_name() != "postgresql":
        raise FleetError(
            f"expected postgresql://... or the path of an SQLite file, got {parsed.drivername}", "database"
        )
    try:
        import psycopg
    except ImportError as e:
        raise MissingExtraError("a fleet on PostgreSQL", "psycopg", "postgres") from e
    del psycopg  # SQLAlchemy finds it by its name
    arguments = {name: value for name, value in (defaults or {}).items() if name not in parsed.query}
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=arguments
    )


def _as_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        # The driver begins no transaction on its own; `begin` below does.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        # What is acknowledged to a device must outlive a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and then wants to write could fail half-way.
        readonly = connection.get_execution_options().get("edgec_readonly", False)
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def said_by(error: SQLAlchemyError) -> str:
    """Return what the database itself said, without the links that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error).strip()
