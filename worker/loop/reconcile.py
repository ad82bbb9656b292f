"""Finding work that nobody rang for: queued or abandoned evaluations, used-up tries, audits that were not concluded,
steps of remediations that were not taken, models to delete, purged texts in SQLite's log.

This is a thread of the worker's main process, not a Celery task and not beat: a task would wait behind the evaluation
that has the pool's only process, and beat is one more process whose end nobody notices. Every worker does it, which is
harmless.
"""

import threading
from typing import Any

import structlog
from celery.worker import state

from app.database import leases
from app.database.engine import empty_log, reading
from app.queue import ring
from app.settings import settings
from worker.attempts import remediations
from worker.loop import capabilities, outcomes

log = structlog.get_logger(__name__)

_stop = threading.Event()


def reconcile(idle: bool = True) -> int:
    """Look once, and ring if evaluations wait that this worker can do; returns how many.

    Args:
        idle: Whether this worker could claim one; while it cannot, a ring would only add to the broker's queue.
    """
    for row_id in outcomes.end_lost():
        log.warning("given up: its worker was lost or it was cancelled", row=row_id)
    outcomes.conclude_overdue()
    remediations.advance()
    remediations.clean()
    empty_log(seconds=0)
    with reading() as session:
        waiting = leases.due(session, leave=capabilities.left_to_others(session))
    if waiting and idle:
        ring()
    return waiting


def on_ready(**kwargs: Any) -> None:
    """In the main process, once it listens: look at once, then periodically."""
    threading.Thread(target=_run, name="reconcile", daemon=True).start()


def on_shutting_down(**kwargs: Any) -> None:
    """In the main process, when it is told to end."""
    _stop.set()
    try:
        capabilities.leave()
    except Exception as error:
        log.warning("this worker stays listed for a while", error=f"{type(error).__name__}: {error}")


def _run() -> None:
    while not _stop.is_set():
        try:
            capabilities.report()
            reconcile(idle=len(state.reserved_requests) < settings().worker_concurrency)
        except Exception as error:
            log.warning("reconciling failed, trying again later", error=f"{type(error).__name__}: {error}")
        _stop.wait(settings().reconcile_seconds)
