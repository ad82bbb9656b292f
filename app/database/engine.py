"""The database: engine, sessions, SQLite's pragmas, the database's clock, UTC times."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.functions import GenericFunction
from uuid6 import uuid7

from app.settings import settings

BUSY_MS = 30_000
"""How long SQLite waits for another connection's lock."""


class Base(DeclarativeBase):
    """The tables' base; names constraints so that migrations can name them too."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UTCDateTime(sa.TypeDecorator[datetime]):
    """A timezone-aware datetime, always UTC; SQLite has no time zones and stores it without one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone must not be stored in the database")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class clock(GenericFunction[float]):  # noqa: N801 - reads as an SQL function: clock()
    """Seconds since the epoch by the database's clock, so that leases do not depend on workers' clocks."""

    type = sa.Double()
    inherit_cache = True


@compiles(clock, "sqlite")
def _clock_sqlite(element: clock, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _clock_postgresql(element: clock, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def new_id() -> str:
    """A sortable identifier (UUIDv7)."""
    return str(uuid7())


def utcnow() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def make_engine(url: str) -> sa.Engine:
    """An engine for SQLite (WAL, foreign keys, overwritten pages) or PostgreSQL.

    Parameters are left out of error messages: they may be texts of a forget set, and messages are logged.
    """
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
    path = sa.make_url(url).database
    if path:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_MS / 1000}, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, record: Any) -> None:
        # The driver must not begin transactions by itself: `_begin` below decides how.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        cursor.execute("PRAGMA synchronous=NORMAL")
        # Purging a forget set must overwrite its pages, not only unlink them; `empty_log` does the same for the log.
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later fails at once with SQLITE_BUSY when another wrote in between,
        # whatever the busy timeout; taking the write lock first makes it wait instead.
        reads_only = connection.get_execution_options().get("lethe_reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine


@cache
def engine() -> sa.Engine:
    """The process's engine; `engine.cache_clear()` after a change of settings."""
    return make_engine(settings().resolved_database_url)


@contextmanager
def transaction() -> Iterator[Session]:
    """A session that commits at the end and rolls back on an error; services inside it never commit."""
    with Session(engine(), expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def reading() -> Iterator[Session]:
    """A session that only reads; on SQLite it does not take the write lock."""
    with Session(engine().execution_options(lethe_reads_only=True), expire_on_commit=False) as session:
        yield session


def empty_log(seconds: float = 3.0) -> bool:
    """Empty SQLite's write-ahead log, which keeps deleted texts after their pages; whether it is empty now (or unused).

    Call it after the transaction that deleted them. It returns False while a reader still uses an older snapshot.
    """
    if engine().dialect.name != "sqlite":
        return True
    end = time.monotonic() + seconds
    # Not by a Connection, which would begin a transaction.
    with closing(engine().raw_connection()) as connection:
        cursor = connection.cursor()
        # While it waits for readers it holds the write lock, so it waits briefly and lets others write in between.
        cursor.execute("PRAGMA busy_timeout=100")
        try:
            while cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() >= end:
                    return False
                time.sleep(0.05)
        finally:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
            cursor.close()
    return True


def insert_missing(session: Session, table: type[Base], values: dict[str, Any]) -> bool:
    """Insert a row unless a unique index already has an equal one; whether it was inserted.

    On PostgreSQL it waits for a transaction that is inserting the same row; afterwards the row can be selected.
    """
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    target = cast(sa.Table, table.__table__)
    statement = insert(target).values(values).on_conflict_do_nothing().returning(*target.primary_key)
    return session.execute(statement).first() is not None
