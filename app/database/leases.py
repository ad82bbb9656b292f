"""Who may work on an evaluation, a diagnosis or a trial, decided by one row in the database.

A worker claims a row for a while (the lease), extends the lease while it works (beat), and ends the attempt once
(finish, fail, release), each only while `attempt` is still its own. Times are the database's clock, so workers'
clocks do not matter. Functions take the session first and never commit.

Lock order, here and everywhere: remediations first, then trials, evaluations, diagnoses, audits by id. Whoever ends an
evaluation or a diagnosis concludes its audits in the same transaction (`outcomes`). The step of a remediation that
follows from a concluded audit is taken in the next transaction, which begins with the remediation's lock
(`app.remediations.advance`).
"""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.sql.elements import ColumnElement

from app.database.attempts import Attempt, Beat, Claim, DiagnosisClaim, Progress, TrialClaim
from app.database.engine import clock, utcnow
from app.database.models import (
    Audit,
    AuditDiagnosis,
    AuditEvent,
    AuditPart,
    Checkpoint,
    Diagnosis,
    Evaluation,
    ForgetSet,
    Leased,
    Remediation,
    Trial,
)
from app.database.states import DONE_EVALUATIONS, LIVE_AUDITS, AuditState, EvaluationState, can_become, move, moving
from app.settings import settings

QUEUED, RUNNING = EvaluationState.QUEUED, EvaluationState.RUNNING
TABLES: tuple[type[Leased], ...] = (Evaluation, Diagnosis, Trial)


def claim(session: Session, worker: str, prefer: str | None = None, *, leave: Collection[str] = ()) -> Claim | None:
    """Take the next evaluation that is queued or whose lease expired; None when there is none.

    Args:
        worker: Who claims it; shown to people only.
        prefer: The checkpoint id that this worker read last: its files are still in memory.
        leave: Precisions to leave to others (`workers.left_to_others`).
    """
    first = () if prefer is None else (Evaluation.checkpoint_id != prefer,)
    mine = _take(session, Evaluation, worker, *first, leave=leave)
    if mine is None:
        return None
    evaluation, checkpoint = session.execute(
        sa.select(Evaluation, Checkpoint)
        .join(Checkpoint, Checkpoint.id == Evaluation.checkpoint_id)
        .where(Evaluation.id == mine.id)
        .options(joinedload(Evaluation.base), joinedload(Evaluation.interface))
        .execution_options(populate_existing=True)
    ).one()
    return Claim(
        Evaluation,
        mine.id,
        mine.attempt,
        worker,
        checkpoint_id=checkpoint.id,
        checkpoint_uri=checkpoint.uri,
        checkpoint_digest=checkpoint.digest,
        precision=evaluation.precision,
        forget_set_digest=evaluation.forget_set_digest,
        metrics=tuple(evaluation.metrics),
        seed=evaluation.seed,
        interface=(evaluation.interface.uri, evaluation.interface.interface) if evaluation.interface else None,
        base=(evaluation.base.uri, evaluation.base.digest) if evaluation.base else None,
    )


def claim_diagnosis(session: Session, worker: str) -> DiagnosisClaim | None:
    """Take the next diagnosis that is queued or whose lease expired; None when there is none."""
    mine = _take(session, Diagnosis, worker)
    if mine is None:
        return None
    row = session.scalars(
        sa.select(Diagnosis)
        .where(Diagnosis.id == mine.id)
        .options(joinedload(Diagnosis.original), joinedload(Diagnosis.unlearned))
        .execution_options(populate_existing=True)
    ).one()
    return DiagnosisClaim(
        Diagnosis,
        mine.id,
        mine.attempt,
        worker,
        original=(row.original.uri, row.original.digest),
        unlearned=(row.unlearned.uri, row.unlearned.digest),
        precisions=tuple(row.precisions),
    )


def claim_trial(session: Session, worker: str) -> TrialClaim | None:
    """Take the next trial that is queued or whose lease expired; None when there is none."""
    mine = _take(session, Trial, worker)
    if mine is None:
        return None
    trial, original, forget_set_digest = session.execute(
        sa.select(Trial, Checkpoint, ForgetSet.digest)
        .join(Remediation, Remediation.id == Trial.remediation_id)
        .join(Audit, Audit.id == Remediation.audit_id)
        .join(Checkpoint, Checkpoint.id == Audit.original_id)
        .join(ForgetSet, ForgetSet.id == Audit.forget_set_id)
        .where(Trial.id == mine.id)
        .execution_options(populate_existing=True)
    ).one()
    return TrialClaim(
        Trial,
        mine.id,
        mine.attempt,
        worker,
        original=(original.uri, original.digest),
        forget_set_digest=forget_set_digest,
        recipe=trial.recipe,
    )


def _take(
    session: Session, table: type[Leased], worker: str, *first: ColumnElement[bool], leave: Collection[str] = ()
) -> Attempt | None:
    chosen = (
        sa.select(table.id)
        .where(_claimable(table, leave))
        .order_by(*first, table.created_at, table.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = session.execute(
        moving(table, RUNNING)
        # The condition again: on SQLite, and after waiting for another transaction, the row may have been claimed.
        .where(table.id == chosen, _claimable(table))
        .values(
            attempt=table.attempt + 1,
            tries=table.tries + 1,
            lease_until=clock() + settings().lease_seconds,
            worker=worker,
            stage=None,
            done=0,
            total=0,
            started_at=utcnow(),
            finished_at=None,
        )
        .returning(table.id, table.attempt)
        .execution_options(synchronize_session=False)
    ).first()
    if row is None:
        return None
    _start_audits(session, row.id)
    return Attempt(table, row.id, row.attempt, worker)


def beat(session: Session, mine: Attempt, progress: Progress) -> Beat:
    """Extend the lease, write the progress, and learn whether to continue."""
    cancel = session.execute(
        _update(mine)
        .values(
            lease_until=clock() + settings().lease_seconds,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
        )
        .returning(mine.table.cancel_requested)
    ).scalar()
    if cancel is None:
        return Beat.LOST
    return Beat.CANCEL if cancel else Beat.GO_ON


def note(session: Session, mine: Attempt, **values: Any) -> bool:
    """Write columns of the row while it is worked on; False when another attempt owns it now."""
    return session.execute(_update(mine).values(values).returning(mine.table.id)).scalar() is not None


def finish(session: Session, mine: Attempt, result: dict[str, Any], **values: Any) -> bool:
    """Write the result (what the engine returned, as JSON) and the row's other columns; False when another attempt owns
    the row now."""
    return _end(
        session,
        mine,
        EvaluationState.SUCCEEDED,
        result=result,
        commits=mine.table.commits + 1,
        error_code=None,
        error_detail=None,
        done=mine.table.total,
        **values,
    )


def fail(session: Session, mine: Attempt, code: str, detail: str, *, retry: bool = False) -> EvaluationState | None:
    """End the attempt with an error: back to queued where a retry makes sense and tries remain, else failed.

    Returns:
        The row's new state; None when another attempt owns the row now.
    """
    error = {"error_code": code, "error_detail": detail}
    if retry and _requeue(session, mine, mine.table.tries < settings().max_attempts, **error):
        return QUEUED
    return EvaluationState.FAILED if _end(session, mine, EvaluationState.FAILED, **error) else None


def release(session: Session, mine: Attempt) -> EvaluationState | None:
    """Give the row back unfinished: cancelled if that was requested, else queued, and the try does not count."""
    asked = _moving(mine, EvaluationState.CANCELLED).where(mine.table.cancel_requested).values(_ended())
    if session.execute(asked.returning(mine.table.id)).scalar():
        return EvaluationState.CANCELLED
    return QUEUED if _requeue(session, mine, sa.true(), tries=mine.table.tries - 1) else None


def requeue(row: Leased) -> None:
    """Queue a row that failed or was cancelled, because it is needed again.

    A row that still runs, and was to be cancelled, simply continues. The caller holds the row's lock.
    """
    row.cancel_requested = False
    if row.state in DONE_EVALUATIONS and can_become(row.state, QUEUED):
        move(row, QUEUED)
        row.tries = 0
        row.error_code = row.error_detail = None
        row.finished_at = None


def due(session: Session, *, leave: Collection[str] = ()) -> int:
    """How many rows wait for a worker: queued or with an expired lease, except those left to others."""
    counts = [sa.select(sa.func.count()).select_from(table).where(_claimable(table, leave)) for table in TABLES]
    return sum(session.execute(count).scalar_one() for count in counts)


def end_one_lost(session: Session) -> str | None:
    """End one row whose worker vanished and that nobody may claim: its tries are used up, or it was cancelled.

    One per transaction, because concluding the audits of several rows would lock audits out of order.

    Returns:
        Its id; None when there is none.
    """
    return next((ended for table in TABLES if (ended := _end_one_lost(session, table)) is not None), None)


def _end_one_lost(session: Session, table: type[Leased]) -> str | None:
    row = session.execute(
        sa.select(table).where(_lost(table)).order_by(table.id).limit(1).with_for_update(skip_locked=True)
    ).scalar()
    if row is None:
        return None
    state = EvaluationState.CANCELLED if row.cancel_requested else EvaluationState.FAILED
    ending = _ended()
    if state is EvaluationState.FAILED:
        ending |= {
            "error_code": row.error_code or "worker_lost",
            "error_detail": row.error_detail
            or f"{row.tries} workers in a row died while working on it, the last was {row.worker};"
            " look for the cause in the worker's and the kernel's log (out of memory?)",
        }
    session.execute(
        moving(table, state)
        .where(table.id == row.id, _lost(table))
        .values(ending)
        .execution_options(synchronize_session=False)
    )
    return row.id


def unconcluded(session: Session) -> list[str]:
    """One evaluation for each live audit that waits for nothing any more; there should be none.

    An audit gets into this state when concluding it raised; reconciling concludes it once the cause is gone.
    """
    unfinished = (
        sa.select(AuditPart.audit_id)
        .join(Evaluation, Evaluation.id == AuditPart.evaluation_id)
        .where(AuditPart.audit_id == Audit.id, Evaluation.state.not_in(DONE_EVALUATIONS))
    )
    undiagnosed = (
        sa.select(AuditDiagnosis.audit_id)
        .join(Diagnosis, Diagnosis.id == AuditDiagnosis.diagnosis_id)
        .where(AuditDiagnosis.audit_id == Audit.id, Diagnosis.state.not_in(DONE_EVALUATIONS))
    )
    return list(
        session.scalars(
            sa.select(sa.func.min(AuditPart.evaluation_id))
            .join(Audit, Audit.id == AuditPart.audit_id)
            .where(Audit.state.in_(LIVE_AUDITS), ~unfinished.exists(), ~undiagnosed.exists())
            .group_by(Audit.id)
        )
    )


def _claimable(table: type[Leased], leave: Collection[str] = ()) -> ColumnElement[bool]:
    expired = sa.and_(table.state == RUNNING, table.lease_until < clock())
    mine = Evaluation.precision.not_in(leave) if leave and table is Evaluation else sa.true()
    return sa.and_(
        mine,
        sa.not_(table.cancel_requested),
        sa.or_(table.state == QUEUED, sa.and_(expired, table.tries < settings().max_attempts)),
    )


def _lost(table: type[Leased]) -> ColumnElement[bool]:
    expired = sa.and_(table.state == RUNNING, table.lease_until < clock())
    used_up = sa.and_(expired, table.tries >= settings().max_attempts)
    cancelled = sa.and_(table.cancel_requested, sa.or_(table.state == QUEUED, expired))
    return sa.or_(used_up, cancelled)


def _update(mine: Attempt) -> sa.Update:
    return _fenced(sa.update(mine.table), mine)


def _moving(mine: Attempt, state: EvaluationState) -> sa.Update:
    return _fenced(moving(mine.table, state), mine)


def _fenced(update: sa.Update, mine: Attempt) -> sa.Update:
    still_ours = (mine.table.id == mine.id, mine.table.attempt == mine.attempt, mine.table.state == RUNNING)
    return update.where(*still_ours).execution_options(synchronize_session=False)


def _ended() -> dict[str, Any]:
    return {"lease_until": None, "stage": None, "cancel_requested": False, "finished_at": utcnow()}


def _end(session: Session, mine: Attempt, state: EvaluationState, **values: Any) -> bool:
    ending = _moving(mine, state).values(_ended() | values)
    return session.execute(ending.returning(mine.table.id)).scalar() is not None


def _requeue(session: Session, mine: Attempt, condition: ColumnElement[bool], **values: Any) -> bool:
    waiting = {"lease_until": None, "worker": None, "stage": None, "done": 0, "total": 0}
    giving_back = _moving(mine, QUEUED).where(condition).values(waiting | values)
    return session.execute(giving_back.returning(mine.table.id)).scalar() is not None


def _start_audits(session: Session, row_id: str) -> None:
    waiting = session.scalars(
        sa.select(Audit)
        .where(Audit.needs(row_id), Audit.state == AuditState.QUEUED)
        .order_by(Audit.id)
        .with_for_update()
    ).all()
    for audit in waiting:
        move(audit, AuditState.RUNNING)
        session.add(AuditEvent(audit_id=audit.id, kind=AuditState.RUNNING.value, data={}))
