"""Transactions that outlast a busy, restarting or deadlocking database."""

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from app.database.engine import transaction

T = TypeVar("T")

PATIENCE_SECONDS = 15.0

log = structlog.get_logger(__name__)


def in_transaction(work: Callable[[Session], T], patience: float = PATIENCE_SECONDS) -> T:
    """Run `work` in a transaction and commit it; retry it from the start where the database requires that.

    Args:
        work: May run several times, so it must have no effect outside the session.
        patience: For how many seconds to try.
    """
    end, pause = time.monotonic() + patience, 0.05
    while True:
        try:
            with transaction() as session:
                return work(session)
        except sa.exc.DBAPIError as error:
            if not is_transient(error) or time.monotonic() + pause > end:
                raise
            log.warning("the database refused, trying again", error=type(error.orig).__name__)
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed a moment later: lock, deadlock, serialization, lost connection."""
    return isinstance(error, sa.exc.OperationalError) or (
        isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    )
