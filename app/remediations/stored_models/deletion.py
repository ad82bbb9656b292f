"""Deleting models: on request, after the retention time, or because the remediation returns another trial's model."""

from datetime import timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from app.database.engine import transaction, utcnow
from app.database.models import Audit, Diagnosis, Evaluation, Leased, Remediation, Trial
from app.database.states import DONE_EVALUATIONS, LIVE_AUDITS, LIVE_REMEDIATIONS, EvaluationState, check_delete_model
from app.errors import Conflict
from app.remediations import service
from app.settings import settings
from app.storage import model_store

log = structlog.get_logger(__name__)


def check_deletable(session: Session, remediation_id: str) -> list[str]:
    """The remediation's trials whose models still exist and may be deleted.

    Raises:
        NotFound: when there is no such remediation.
        Conflict: while it is not over, a worker still writes one of its models, or another audit or remediation needs
            one of its checkpoints.
    """
    row = service.get(session, remediation_id)
    check_delete_model(row.state)
    there = [trial for trial in row.trials if trial.model_uri is not None and trial.deleted_at is None]
    if any(trial.state not in DONE_EVALUATIONS for trial in there):
        raise Conflict("conflict", "a worker still writes the model; it will be deleted once that worker has stopped")
    needed = _needed(session, [trial.checkpoint_id for trial in there if trial.checkpoint_id is not None])
    if needed is not None:
        raise Conflict("conflict", f"{needed} still needs the model; wait until that ends, or cancel it")
    return [trial.id for trial in there]


def _needed(session: Session, checkpoints: list[str]) -> str | None:
    """The name of a live audit or remediation, or of work that audits share, that reads one of these checkpoints."""
    roles = (Audit.original_id, Audit.unlearned_id, Audit.retrained_id)
    reads = sa.or_(*(column.in_(checkpoints) for column in roles))
    audit = session.scalars(sa.select(Audit.id).where(reads, Audit.state.in_(LIVE_AUDITS)).limit(1)).first()
    if audit is not None:
        return f"audit {audit}"
    remediation = session.scalars(
        sa.select(Remediation.id)
        .join(Audit, Audit.id == Remediation.audit_id)
        .where(Audit.original_id.in_(checkpoints), Remediation.state.in_(LIVE_REMEDIATIONS))
        .limit(1)
    ).first()
    if remediation is not None:
        return f"remediation {remediation}"
    # Work is shared by digest: an audit may wait for it whose own checkpoint is the same model in another place.
    read_by: dict[type[Leased], sa.ColumnElement[bool]] = {
        Evaluation: Evaluation.checkpoint_id.in_(checkpoints),
        Diagnosis: sa.or_(Diagnosis.original_id.in_(checkpoints), Diagnosis.unlearned_id.in_(checkpoints)),
    }
    for table, reading in read_by.items():
        going_on = table.state.not_in(DONE_EVALUATIONS)
        found = session.scalars(sa.select(table.id).where(reading, going_on).limit(1)).first()
        if found is not None:
            return f"{table.__name__.lower()} {found}"
    return None


def superfluous(session: Session) -> list[tuple[str, str]]:
    """Trials whose models are no longer needed, and why.

    These are models that were left incomplete, models that a finished remediation does not return, and models that were
    kept for as long as the settings say.
    """
    over = Remediation.state.not_in(LIVE_REMEDIATIONS)
    # Not while it is being written: the rest would be written after its row says that it is gone.
    done = Trial.state.in_(DONE_EVALUATIONS)
    left = sa.and_(done, Trial.state != EvaluationState.SUCCEEDED)
    another = sa.and_(over, done, sa.or_(Remediation.chosen.is_(None), Remediation.chosen != Trial.position))
    found: list[tuple[str, str]] = []
    conditions = [("not_returned", sa.or_(left, another))]
    if (days := settings().model_store_keep_days) is not None:
        conditions.append(("kept_long_enough", sa.and_(over, Trial.finished_at < utcnow() - timedelta(days=days))))
    for why, condition in conditions:
        rows = session.execute(
            sa.select(Trial.id, Trial.checkpoint_id)
            .join(Remediation, Remediation.id == Trial.remediation_id)
            .where(Trial.model_uri.is_not(None), Trial.deleted_at.is_(None), condition)
            .order_by(Trial.id)
        )
        found += [
            (row.id, why) for row in rows if row.checkpoint_id is None or not _needed(session, [row.checkpoint_id])
        ]
    return found


def delete(trial_id: str, why: str) -> None:
    """Delete a trial's model, then record it in its row, its remediation's events and the log; the digest stays.

    In this order, so that a model is really gone when its row says so.

    Raises:
        Unavailable: `model_store_unavailable`; the row is then unchanged, and deletion can be tried again.
    """
    with transaction() as session:
        trial = session.get_one(Trial, trial_id)
        uri = trial.model_uri
    if uri is None:
        return
    model_store.delete(uri)
    with transaction() as session:
        row = service.lock(session, session.get_one(Trial, trial_id).remediation_id)
        trial = next(found for found in service.trials_of(session, row.id) if found.id == trial_id)
        if trial.deleted_at is not None:
            return
        trial.deleted_at = utcnow()
        digest = None if trial.checkpoint is None else trial.checkpoint.digest
        service.add_event(session, row, "model_deleted", position=trial.position, uri=uri, digest=digest, why=why)
    log.info("model deleted", remediation=row.id, trial=trial_id, uri=uri, digest=digest, why=why)
