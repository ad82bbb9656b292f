"""Creating, reading and cancelling remediations.

Every transaction locks remediations first (see `app.database.leases`).
"""

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer, joinedload, selectinload

from app.audits import service as audits
from app.catalog.precisions import FULL
from app.catalog.recipes import check_texts
from app.database.engine import new_id, utcnow
from app.database.models import Audit, AuditPart, Checkpoint, Evaluation, Remediation, RemediationEvent, Trial
from app.database.states import (
    LIVE_AUDITS,
    LIVE_EVALUATIONS,
    AuditState,
    EvaluationState,
    RemediationState,
    check_cancel,
    move,
)
from app.errors import Conflict, InvalidRequest, NotFound
from app.forget_sets import service as forget_sets
from app.http import idempotency
from app.http.idempotency import Created, Creation
from app.remediations import ranking
from app.remediations.recipes import recipes
from app.remediations.schemas import AUTO, Budget, NewRemediation
from app.remediations.stored_models import quota


def create(
    session: Session, audit_id: str, body: NewRemediation, *, api_key_id: str, idempotency_key: str | None
) -> tuple[str, bool]:
    """Create the remediation of an audit's original and its first trial.

    Returns its id, and whether an earlier request created it.

    Raises:
        NotFound: there is no such audit.
        Conflict: it is not finished.
        Gone: the forget set was purged.
        InvalidRequest: `unknown_method`, `unknown_loss`, `forget_set_incomplete`, `idempotency_key_reused`, or naming
            the hyperparameter.
        StorageFull: the new checkpoint would not fit into the model store.
    """
    request = Creation(api_key_id, idempotency_key, idempotency.digest(body, audit=audit_id))
    if (known := idempotency.same(request, _made_before(session, request))) is not None:
        return known, True
    wanted = recipes(body)
    audit = session.get(Audit, audit_id)
    if audit is None:
        raise NotFound("not_found", f"there is no audit {audit_id}")
    if audit.state is not AuditState.FINISHED:
        raise Conflict("conflict", f"this audit is {audit.state}; only a finished audit can be remediated")
    if ranking.applied(audit.plan["precisions"]) == [FULL.name] != audit.plan["precisions"]:
        raise InvalidRequest(
            "invalid_request",
            "this audit's plan has full precision and artifacts only, and a new model has no artifacts yet; audit the"
            " pair again with a precision that Lethe applies itself, such as rtn-int4, and remediate that audit",
        )
    forget_set = forget_sets.find_usable(session, audit.forget_set_id, lock=True)
    for recipe in wanted:
        check_texts(recipe, forget_set.info["counts"])
    size = quota.estimate(session.get_one(Checkpoint, audit.original_id))
    quota.check(quota.stored(session) + quota.reserved(session), size)
    row = Remediation(
        id=new_id(),
        name=body.name or f"{audit.name}: {' '.join(filter(None, (body.method, body.loss)))}"[:200],
        audit_id=audit.id,
        method=body.method,
        loss=wanted[0].loss if body.method != AUTO else body.loss,
        recipes=[recipe.model_dump(mode="json") for recipe in wanted],
        budget=(body.budget or Budget()).model_dump(mode="json"),
        api_key_id=api_key_id,
        idempotency_key=idempotency_key,
        body_digest=request.digest,
    )
    known = idempotency.add_once(session, request, lambda: session.add(row), lambda: _made_before(session, request))
    if known is not None:
        return known, True
    add_trial(session, row, 0, size)
    add_event(session, row, RemediationState.QUEUED.value)
    session.flush()
    return row.id, False


def _made_before(session: Session, request: Creation) -> Created | None:
    if request.key is None:
        return None
    row = session.scalars(
        sa.select(Remediation).where(
            Remediation.api_key_id == request.api_key_id, Remediation.idempotency_key == request.key
        )
    ).one_or_none()
    return None if row is None else Created("remediation", row.id, row.body_digest)


def add_trial(session: Session, row: Remediation, position: int, size: int) -> None:
    """Queue the trial of the recipe at this position; `size` is the estimated size of its model in bytes."""
    session.add(
        Trial(
            id=new_id(),
            key=f"{row.id}:{position}",
            remediation_id=row.id,
            position=position,
            recipe=row.recipes[position],
            model_bytes=size,
        )
    )


def add_event(session: Session, row: Remediation, kind: str, **data: object) -> None:
    """Add an event to the remediation."""
    session.add(RemediationEvent(remediation_id=row.id, kind=kind, data=data))


def get(session: Session, remediation_id: str) -> Remediation:
    """The remediation with all that a response shows, or NotFound."""
    trials = selectinload(Remediation.trials)
    statement = (
        sa.select(Remediation)
        .where(Remediation.id == remediation_id)
        .options(
            trials.joinedload(Trial.checkpoint),
            *(
                trials.joinedload(audit)
                .selectinload(Audit.parts)
                .joinedload(AuditPart.evaluation)
                .options(defer(Evaluation.result))
                for audit in (Trial.screening, Trial.audit)
            ),
        )
        .execution_options(populate_existing=True)
    )
    row = session.scalars(statement).one_or_none()
    if row is None:
        raise NotFound("not_found", f"there is no remediation {remediation_id}")
    return row


def check_exists(session: Session, remediation_id: str) -> None:
    """Raises NotFound when there is no such remediation."""
    if session.scalar(sa.select(Remediation.id).where(Remediation.id == remediation_id)) is None:
        raise NotFound("not_found", f"there is no remediation {remediation_id}")


def matching(state: str | None, audit: str | None) -> sa.Select[Remediation]:
    """The remediations with this state, of this audit."""
    statement = sa.select(Remediation)
    if state is not None:
        statement = statement.where(Remediation.state == RemediationState(state))
    if audit is not None:
        statement = statement.where(Remediation.audit_id == audit)
    return statement


def lock(session: Session, remediation_id: str) -> Remediation:
    """The remediation, locked until the transaction ends; or NotFound."""
    row = session.scalars(
        sa.select(Remediation)
        .where(Remediation.id == remediation_id)
        .with_for_update(of=Remediation)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if row is None:
        raise NotFound("not_found", f"there is no remediation {remediation_id}")
    return row


def trials_of(session: Session, remediation_id: str) -> list[Trial]:
    """Its trials in order, with their audits, freshly read."""
    return list(
        session.scalars(
            sa.select(Trial)
            .where(Trial.remediation_id == remediation_id)
            .options(joinedload(Trial.screening), joinedload(Trial.audit), joinedload(Trial.checkpoint))
            .order_by(Trial.position)
            .execution_options(populate_existing=True)
        )
    )


def cancel(session: Session, remediation_id: str) -> None:
    """Cancel the remediation, its trials, and the audits that it started.

    Raises:
        NotFound: when there is no such remediation.
        Conflict: when it is over.
    """
    row = lock(session, remediation_id)
    check_cancel(row.state)
    end(session, row, RemediationState.CANCELLED)
    waiting = session.scalars(
        sa.select(Trial)
        .where(Trial.remediation_id == row.id, Trial.state.in_(LIVE_EVALUATIONS))
        .order_by(Trial.id)
        .with_for_update()
    ).all()
    for trial in waiting:
        stop(trial)
    session.flush()
    for trial in trials_of(session, row.id):
        for audit in (trial.screening, trial.audit):
            if audit is not None and audit.state in LIVE_AUDITS:
                try:
                    audits.cancel(session, audit.id)
                except Conflict:
                    continue  # it was concluded a moment ago


def stop(trial: Trial) -> None:
    """Cancel a waiting trial; tell the worker of a running one. The caller holds the row's lock."""
    if trial.state is EvaluationState.QUEUED:
        move(trial, EvaluationState.CANCELLED)
        trial.finished_at = utcnow()
    else:
        trial.cancel_requested = True


def end(session: Session, row: Remediation, state: RemediationState, **data: object) -> None:
    """Move the remediation to its last state and add the event."""
    move(row, state)
    row.finished_at = utcnow()
    add_event(session, row, state.value, **data)
    session.flush()
