"""Who may work on an evaluation, decided by one row in the database.

A worker claims an evaluation for a while (the lease), extends the lease while it works (beat), and ends the attempt
once (finish, fail, release), each only while `attempt` is still its own. Times are the database's clock, so workers'
clocks do not matter. Functions take the session first and never commit.

Lock order, here and everywhere: evaluations first, then audits by id. Whoever ends an evaluation concludes its audits
in the same transaction (`worker.outcomes`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from app.db import clock, utcnow
from app.models import Audit, AuditEvent, AuditPart, Checkpoint, Evaluation
from app.settings import settings
from app.states import DONE_EVALUATIONS, LIVE_AUDITS, AuditState, EvaluationState

QUEUED, RUNNING = EvaluationState.QUEUED, EvaluationState.RUNNING


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt at an evaluation: what to do, and the fence that only its holder passes."""

    evaluation_id: str
    attempt: int
    worker: str
    checkpoint_id: str
    checkpoint_uri: str
    checkpoint_digest: str
    precision: str
    forget_set_digest: str
    metrics: tuple[str, ...]
    seed: int


class Progress(NamedTuple):
    """How far an evaluation is."""

    stage: str | None
    done: int
    total: int


class Beat(StrEnum):
    """What a worker learns from a beat."""

    GO_ON = "go_on"
    CANCEL = "cancel"
    LOST = "lost"


def claim(session: Session, worker: str, prefer: str | None = None) -> Claim | None:
    """Take the next evaluation that is queued or whose lease expired; None when there is none.

    Args:
        worker: Who claims, for people.
        prefer: The checkpoint id that this worker read last: its files are still in memory.
    """
    first = (Evaluation.checkpoint_id != prefer, Evaluation.created_at, Evaluation.id)
    chosen = (
        sa.select(Evaluation.id)
        .where(_claimable())
        .order_by(*first[prefer is None :])
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = session.execute(
        sa.update(Evaluation)
        # The condition again: on SQLite, and after waiting for another's transaction, the row may have been taken.
        .where(Evaluation.id == chosen, _claimable())
        .values(
            state=RUNNING,
            attempt=Evaluation.attempt + 1,
            tries=Evaluation.tries + 1,
            lease_until=clock() + settings().lease_seconds,
            worker=worker,
            stage=None,
            done=0,
            total=0,
            started_at=utcnow(),
            finished_at=None,
        )
        .returning(Evaluation.id, Evaluation.attempt, Evaluation.checkpoint_id)
        .execution_options(synchronize_session=False)
    ).first()
    if row is None:
        return None
    _start_audits(session, row.id)
    evaluation, checkpoint = session.execute(
        sa.select(Evaluation, Checkpoint)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Evaluation.id == row.id)
        .execution_options(populate_existing=True)
    ).one()
    return Claim(
        evaluation_id=row.id,
        attempt=row.attempt,
        worker=worker,
        checkpoint_id=checkpoint.id,
        checkpoint_uri=checkpoint.uri,
        checkpoint_digest=checkpoint.digest,
        precision=evaluation.precision,
        forget_set_digest=evaluation.forget_set_digest,
        metrics=tuple(evaluation.metrics),
        seed=evaluation.seed,
    )


def beat(session: Session, mine: Claim, progress: Progress) -> Beat:
    """Extend the lease, write the progress, and learn whether to go on."""
    cancel = session.execute(
        _update(mine)
        .values(
            lease_until=clock() + settings().lease_seconds,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
        )
        .returning(Evaluation.cancel_requested)
    ).scalar()
    if cancel is None:
        return Beat.LOST
    return Beat.CANCEL if cancel else Beat.GO_ON


def finish(session: Session, mine: Claim, result: dict[str, Any]) -> bool:
    """Write the result (`reports.schemas.Evaluation` as JSON); False when the attempt is no longer mine."""
    return _end(
        session,
        mine,
        state=EvaluationState.SUCCEEDED,
        result=result,
        commits=Evaluation.commits + 1,
        error_code=None,
        error_detail=None,
        done=Evaluation.total,
    )


def fail(session: Session, mine: Claim, code: str, detail: str, *, retry: bool = False) -> EvaluationState | None:
    """End the attempt with an error: back to queued where a retry makes sense and tries remain, else failed.

    Returns:
        The evaluation's new state; None when the attempt is no longer mine.
    """
    error = {"error_code": code, "error_detail": detail}
    if retry and _requeue(session, mine, Evaluation.tries < settings().max_attempts, **error):
        return QUEUED
    return EvaluationState.FAILED if _end(session, mine, state=EvaluationState.FAILED, **error) else None


def release(session: Session, mine: Claim) -> EvaluationState | None:
    """Give the evaluation back undone: cancelled where that was asked for, else queued, and the try does not count."""
    asked = _update(mine).where(Evaluation.cancel_requested).values(_ended(EvaluationState.CANCELLED))
    if session.execute(asked.returning(Evaluation.id)).scalar():
        return EvaluationState.CANCELLED
    return QUEUED if _requeue(session, mine, sa.true(), tries=Evaluation.tries - 1) else None


def requeue(evaluation: Evaluation) -> None:
    """Queue an evaluation again that another audit needs and that failed or was cancelled.

    One that is still running towards its cancellation just goes on. The caller holds the row's lock.
    """
    evaluation.cancel_requested = False
    if evaluation.state in (EvaluationState.FAILED, EvaluationState.CANCELLED):
        evaluation.state = QUEUED
        evaluation.tries = 0
        evaluation.error_code = evaluation.error_detail = None
        evaluation.finished_at = None


def due(session: Session) -> int:
    """How many evaluations wait for a worker: queued, or with an expired lease."""
    return session.execute(sa.select(sa.func.count()).select_from(Evaluation).where(_claimable())).scalar_one()


def end_one_lost(session: Session) -> str | None:
    """End one evaluation whose worker vanished and that nobody may claim: its tries are used up, or it was cancelled.

    One per transaction, because concluding several evaluations' audits would lock audits out of order.

    Returns:
        Its id; None when there is none.
    """
    row = session.execute(
        sa.select(Evaluation).where(_lost()).order_by(Evaluation.id).limit(1).with_for_update(skip_locked=True)
    ).scalar()
    if row is None:
        return None
    state = EvaluationState.CANCELLED if row.cancel_requested else EvaluationState.FAILED
    ending = _ended(state)
    if state is EvaluationState.FAILED:
        ending |= {
            "error_code": row.error_code or "worker_lost",
            "error_detail": row.error_detail
            or f"{row.tries} workers in a row ended in the middle of it, the last was {row.worker};"
            " look for its end in the worker's and the kernel's log (out of memory?)",
        }
    session.execute(
        sa.update(Evaluation)
        .where(Evaluation.id == row.id, _lost())
        .values(ending)
        .execution_options(synchronize_session=False)
    )
    return row.id


def unconcluded(session: Session) -> list[str]:
    """Evaluations whose live audits hold no unfinished evaluation: one per such audit; there should be none.

    An audit comes to this when its conclusion raised; reconciling concludes it once the cause is gone.
    """
    unfinished = (
        sa.select(AuditPart.audit_id)
        .join(Evaluation, Evaluation.id == AuditPart.evaluation_id)
        .where(AuditPart.audit_id == Audit.id, Evaluation.state.not_in(DONE_EVALUATIONS))
    )
    return list(
        session.scalars(
            sa.select(sa.func.min(AuditPart.evaluation_id))
            .join(Audit, Audit.id == AuditPart.audit_id)
            .where(Audit.state.in_(LIVE_AUDITS), ~unfinished.exists())
            .group_by(Audit.id)
        )
    )


def _claimable() -> ColumnElement[bool]:
    expired = sa.and_(Evaluation.state == RUNNING, Evaluation.lease_until < clock())
    return sa.and_(
        sa.not_(Evaluation.cancel_requested),
        sa.or_(Evaluation.state == QUEUED, sa.and_(expired, Evaluation.tries < settings().max_attempts)),
    )


def _lost() -> ColumnElement[bool]:
    expired = sa.and_(Evaluation.state == RUNNING, Evaluation.lease_until < clock())
    used_up = sa.and_(expired, Evaluation.tries >= settings().max_attempts)
    cancelled = sa.and_(Evaluation.cancel_requested, sa.or_(Evaluation.state == QUEUED, expired))
    return sa.or_(used_up, cancelled)


def _update(mine: Claim) -> sa.Update:
    return (
        sa.update(Evaluation)
        .where(
            Evaluation.id == mine.evaluation_id,
            Evaluation.attempt == mine.attempt,
            Evaluation.state == RUNNING,
        )
        .execution_options(synchronize_session=False)
    )


def _ended(state: EvaluationState) -> dict[str, Any]:
    return {"state": state, "lease_until": None, "stage": None, "cancel_requested": False, "finished_at": utcnow()}


def _end(session: Session, mine: Claim, state: EvaluationState, **values: Any) -> bool:
    ending = _update(mine).values(_ended(state) | values)
    return session.execute(ending.returning(Evaluation.id)).scalar() is not None


def _requeue(session: Session, mine: Claim, condition: ColumnElement[bool], **values: Any) -> bool:
    waiting = {"state": QUEUED, "lease_until": None, "worker": None, "stage": None, "done": 0, "total": 0}
    giving_back = _update(mine).where(condition).values(waiting | values)
    return session.execute(giving_back.returning(Evaluation.id)).scalar() is not None


def _start_audits(session: Session, evaluation_id: str) -> None:
    holding = sa.select(AuditPart.audit_id).where(AuditPart.evaluation_id == evaluation_id)
    waiting = session.scalars(
        sa.select(Audit)
        .where(Audit.id.in_(holding), Audit.state == AuditState.QUEUED)
        .order_by(Audit.id)
        .with_for_update()
    ).all()
    for audit in waiting:
        audit.state = AuditState.RUNNING
        session.add(AuditEvent(audit_id=audit.id, kind=AuditState.RUNNING.value, data={}))
