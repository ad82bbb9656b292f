"""Reporting to the database which precisions this worker can apply: at its start, while it lives, and at its end."""

import os
import socket

from sqlalchemy.orm import Session

from app import __version__
from app.evidence import artifacts
from app.workers import service as workers
from app.workers.service import WorkerReport
from worker.attempts.transactions import in_transaction
from worker.engine.quantizers.availability import availability, libraries, shipped_unavailable


def identity() -> str:
    """This process's name, unique across machines."""
    return f"{socket.gethostname()}:{os.getpid()}"


def report() -> None:
    """Report what can be applied here."""
    said = WorkerReport(
        id=identity(),
        host=socket.gethostname(),
        lethe=__version__,
        libraries=libraries(),
        precisions=_precisions(),
    )
    in_transaction(lambda session: workers.report(session, said))


def left_to_others(session: Session) -> frozenset[str]:
    """The precisions to leave to others: this worker cannot apply them, and another can."""
    return workers.left_to_others(session, _precisions())


def _precisions() -> dict[str, str | None]:
    found = {item.precision.name: item.reason for item in availability()}
    return found | {format_precision: shipped_unavailable(format_precision) for format_precision in artifacts.LIBRARIES}


def leave() -> None:
    """Report that this worker ends; a worker that cannot report it is forgotten a little later."""
    in_transaction(lambda session: workers.leave(session, identity()), patience=1.0)
