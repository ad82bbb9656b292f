"""What live workers reported they can do, so that a plan that none of them can run is refused before it is queued."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.catalog.quantizers import SOURCES
from app.database.engine import clock
from app.database.models import Worker
from app.errors import InvalidRequest
from app.settings import settings

BEATS = 4
"""Missed reports after which a worker counts as gone."""
FORGET_SECONDS = 24 * 3600.0


class WorkerReport(NamedTuple):
    """What a worker reports about itself."""

    id: str
    host: str
    lethe: str
    libraries: Mapping[str, str]
    precisions: Mapping[str, str | None]
    """Every precision that it knows -> why it cannot apply it; None when it can."""


def report(session: Session, said: WorkerReport) -> None:
    """Store what a worker reports now; rows of workers that are long gone are removed."""
    session.execute(sa.delete(Worker).where(Worker.seen < clock() - FORGET_SECONDS))
    row = session.get(Worker, said.id) or Worker(id=said.id)
    row.host, row.lethe, row.seen = said.host, said.lethe, clock()
    row.libraries, row.precisions = dict(said.libraries), dict(said.precisions)
    session.add(row)


def leave(session: Session, worker_id: str) -> None:
    """Remove the row of a worker that ends."""
    session.execute(sa.delete(Worker).where(Worker.id == worker_id))


def live(session: Session) -> Sequence[Worker]:
    """The workers that reported recently, by id."""
    age = max(BEATS * settings().reconcile_seconds, 1.0)
    return session.scalars(sa.select(Worker).where(Worker.seen > clock() - age).order_by(Worker.id)).all()


def reason(workers: Sequence[Worker], precision: str) -> str | None:
    """Why none of these workers can apply it; None when one can, or when there is none (one may start later)."""
    name = precision.partition("@")[0]
    why: list[str] = []
    for worker in workers:
        said = worker.precisions.get(name, f"its version of Lethe, {worker.lethe}, does not know it")
        if said is None:
            return None
        why.append(f"{worker.host}: {said}")
    return "; ".join(dict.fromkeys(why)) or None


def left_to_others(session: Session, mine: Mapping[str, str | None]) -> frozenset[str]:
    """The precisions, with each `@source`, that a worker cannot apply while another live one can.

    Precisions that no worker can apply are not among them: the worker that claims such an evaluation fails it with the
    reason, which is better than waiting for a worker that may never come.

    Args:
        mine: What the worker reports about itself, as in `WorkerReport.precisions`.
    """
    able = {name for row in live(session) for name, why in row.precisions.items() if why is None}
    left = able - {name for name, why in mine.items() if why is None}
    return frozenset(left | {f"{name}@{source}" for name in left for source in SOURCES})


def check_available(session: Session, precisions: Iterable[str]) -> None:
    """Raise unless each precision can be applied by some live worker, or no worker is known.

    Raises:
        InvalidRequest: `precision_unavailable`, with each worker's reason.
    """
    workers = live(session)
    for precision in precisions:
        why = reason(workers, precision)
        if why is not None:
            raise InvalidRequest("precision_unavailable", f"no worker can apply {precision} ({why})")
