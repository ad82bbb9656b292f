"""Storing, finding and purging forget sets."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.database.engine import insert_missing, new_id, utcnow
from app.database.models import DIGEST, Audit, AuditPart, Evaluation, ForgetSet, ForgetSetFile, Remediation, Trial
from app.database.states import LIVE_AUDITS, LIVE_EVALUATIONS, EvaluationState, move
from app.errors import ForgetSetRefused, Gone, NotFound
from app.forget_sets.bundle import Bundle
from app.reports.build import conclude

PURGED = "forget_set_purged"


def add(
    session: Session, bundle: Bundle, files: Mapping[str, bytes], *, name: str, source: str
) -> tuple[ForgetSet, bool]:
    """The row for this content, and whether it is new; content that is already there is not stored again."""
    row_id = new_id()
    created = insert_missing(
        session,
        ForgetSet,
        {
            "id": row_id,
            "name": name,
            "source": source,
            "digest": bundle.digest,
            "info": bundle.info().model_dump(mode="json"),
        },
    )
    if created:
        session.add_all(ForgetSetFile(forget_set_id=row_id, name=path, content=data) for path, data in files.items())
        session.flush()
    unpurged = sa.select(ForgetSet).where(ForgetSet.digest == bundle.digest, ForgetSet.purged_at.is_(None))
    return session.scalars(unpurged).one(), created


def get(session: Session, forget_set_id: str) -> ForgetSet:
    """The forget set with that id, purged or not; or NotFound."""
    row = session.get(ForgetSet, forget_set_id)
    if row is None:
        raise NotFound("not_found", f"there is no forget set {forget_set_id}")
    return row


def find_usable(session: Session, reference: str, *, lock: bool = False) -> ForgetSet:
    """The forget set that an id or a digest names, with its content.

    Args:
        lock: Keep it from being purged until the transaction ends.

    Raises:
        ForgetSetRefused: `forget_set_missing`.
        Gone: `forget_set_purged`.
    """
    by_digest = bool(DIGEST.fullmatch(reference))
    statement = sa.select(ForgetSet).where((ForgetSet.digest if by_digest else ForgetSet.id) == reference)
    # A digest may have purged rows besides the live one.
    statement = statement.order_by(ForgetSet.purged_at.is_not(None), ForgetSet.id.desc()).limit(1)
    row = session.scalars(statement.with_for_update(read=True) if lock else statement).first()
    if row is None:
        raise ForgetSetRefused("forget_set_missing", f"there is no forget set {reference}; upload it first")
    if row.purged_at is not None:
        raise Gone(PURGED, f"forget set {row.id} was purged at {row.purged_at.isoformat()}; upload its content again")
    return row


def purge(session: Session, forget_set_id: str) -> None:
    """Delete the content; digest and counts stay. Waiting work on it fails now; running work is told to stop.

    After the commit the caller empties the database's log (`empty_log`).

    Raises:
        NotFound: when there is no such forget set. Purging again does nothing.
    """
    # Keeps out new audits (`find_usable`), but not the foreign keys of audits that a worker concludes meanwhile.
    locked = sa.select(ForgetSet).where(ForgetSet.id == forget_set_id).with_for_update(key_share=True)
    row = session.scalar(locked)
    if row is None:
        raise NotFound("not_found", f"there is no forget set {forget_set_id}")
    if row.purged_at is not None:
        return
    session.execute(sa.delete(ForgetSetFile).where(ForgetSetFile.forget_set_id == row.id))
    row.purged_at = utcnow()
    _stop_trials(session, row.digest)
    unfinished = session.scalars(
        sa.select(Evaluation)
        .where(
            Evaluation.forget_set_digest == row.digest,
            Evaluation.state.in_(LIVE_EVALUATIONS),
        )
        .order_by(Evaluation.id)
        .with_for_update()
    ).all()
    failed = []
    for evaluation in unfinished:
        evaluation.error_code = PURGED
        evaluation.error_detail = f"the forget set was purged while this evaluation was {evaluation.state}"
        if evaluation.state is EvaluationState.RUNNING:
            evaluation.cancel_requested = True
            continue
        move(evaluation, EvaluationState.FAILED)
        evaluation.finished_at = utcnow()
        failed.append(evaluation.id)
    session.flush()
    _lock_audits(session, failed)
    for evaluation_id in failed:
        conclude(session, evaluation_id)


def _stop_trials(session: Session, digest: str) -> None:
    # Their remediations fail when a worker takes their next step.
    training = session.scalars(
        sa.select(Trial)
        .join(Remediation, Remediation.id == Trial.remediation_id)
        .join(Audit, Audit.id == Remediation.audit_id)
        .join(ForgetSet, ForgetSet.id == Audit.forget_set_id)
        .where(ForgetSet.digest == digest, Trial.state.in_(LIVE_EVALUATIONS))
        .order_by(Trial.id)
        .with_for_update(of=Trial)
    ).all()
    for trial in training:
        trial.error_code = PURGED
        trial.error_detail = f"the forget set was purged while this trial was {trial.state}"
        if trial.state is EvaluationState.RUNNING:
            trial.cancel_requested = True
        else:
            move(trial, EvaluationState.FAILED)
            trial.finished_at = utcnow()


def _lock_audits(session: Session, evaluation_ids: Sequence[str]) -> None:
    # All at once and in the order of their ids: concluding the evaluations one by one would lock audits out of order.
    holding = sa.select(AuditPart.audit_id).where(AuditPart.evaluation_id.in_(evaluation_ids))
    live = sa.select(Audit.id).where(Audit.id.in_(holding), Audit.state.in_(LIVE_AUDITS))
    session.execute(live.order_by(Audit.id).with_for_update())
