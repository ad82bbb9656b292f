"""How an attempt ends: the evaluation, diagnosis or trial, and the audits that waited for it, in one transaction."""

from typing import TYPE_CHECKING

import structlog
from sqlalchemy.orm import Session

from app.catalog.frozen import Frozen
from app.database import leases
from app.database.attempts import Attempt, TrialClaim
from app.database.states import DONE_EVALUATIONS, EvaluationState
from worker.attempts.transactions import PATIENCE_SECONDS, in_transaction, is_transient

if TYPE_CHECKING:
    from app.remediations.trials import Trained

FINISH_PATIENCE_SECONDS = 600.0
"""A result took long to compute, so it must survive a few minutes without the database."""

log = structlog.get_logger(__name__)


def finish(claim: Attempt, result: Frozen) -> bool:
    """Commit a result; False when another attempt owns the row now."""
    body = result.model_dump(mode="json", by_alias=True)

    def work(session: Session) -> bool:
        mine = leases.finish(session, claim, body)
        if mine:
            _conclude(session, claim.id)
        return mine

    return in_transaction(work, FINISH_PATIENCE_SECONDS)


def finish_trial(claim: TrialClaim, trained: "Trained") -> bool:
    """Commit a trial's result; False when another attempt owns the row now."""
    from app.remediations import trials

    return in_transaction(lambda session: trials.finish(session, claim, trained), FINISH_PATIENCE_SECONDS)


def fail(
    claim: Attempt, code: str, detail: str, *, retry: bool = False, patience: float = PATIENCE_SECONDS
) -> EvaluationState | None:
    """End the attempt with an error; returns the new state, or None when another attempt owns the row now."""

    def work(session: Session) -> EvaluationState | None:
        state = leases.fail(session, claim, code, detail, retry=retry)
        if state in DONE_EVALUATIONS:
            _conclude(session, claim.id)
        return state

    return in_transaction(work, patience)


def release(claim: Attempt, *, patience: float = PATIENCE_SECONDS) -> EvaluationState | None:
    """Give the row back: cancelled if that was requested, else queued; None when another attempt owns the row now."""

    def work(session: Session) -> EvaluationState | None:
        state = leases.release(session, claim)
        if state in DONE_EVALUATIONS:
            _conclude(session, claim.id)
        return state

    return in_transaction(work, patience)


def end_lost() -> list[str]:
    """End every evaluation, diagnosis and trial that no worker may claim any more; returns their ids."""

    def work(session: Session) -> str | None:
        lost = leases.end_one_lost(session)
        if lost is not None:
            _conclude(session, lost)
        return lost

    ended: list[str] = []
    while (lost := in_transaction(work)) is not None:
        ended.append(lost)
    return ended


def conclude_overdue() -> None:
    """Conclude audits whose conclusion failed when their last evaluation ended."""
    for evaluation_id in in_transaction(leases.unconcluded):
        in_transaction(lambda session, overdue=evaluation_id: _conclude(session, overdue))  # type: ignore[misc]


def _conclude(session: Session, row_id: str) -> None:
    """Conclude the audits that are complete now.

    An error here must not cost the result, which is valid whatever happens to the report: it is logged, and
    `conclude_overdue` tries again.
    """
    # Imported here, not at the top: reports need numpy and their schemas, which a process can start without.
    from app.reports.build import conclude

    try:
        with session.begin_nested():
            conclude(session, row_id)
    except Exception as error:
        if is_transient(error):
            raise
        log.exception("an audit could not be concluded", row=row_id)
