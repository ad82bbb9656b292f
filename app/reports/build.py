"""Concluding audits: the transaction that finishes the last evaluation writes the report."""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload

from app import canonical
from app.catalog.plans import Plan
from app.database.engine import utcnow
from app.database.models import (
    Audit,
    AuditArtifact,
    AuditDiagnosis,
    AuditEvent,
    AuditPart,
    Checkpoint,
    Diagnosis,
    ForgetSet,
    Leased,
    Report,
)
from app.database.states import DONE_EVALUATIONS, LIVE_AUDITS, AuditState, EvaluationState, move
from app.evidence.diagnosis import Diagnosis as DiagnosisResult
from app.evidence.evaluation import CheckpointInfo, Evaluation, ForgetSetInfo, Role
from app.judgement.policy import stored
from app.judgement.verdict import Failure
from app.reports import model as reports


def conclude(session: Session, row_id: str) -> list[str]:
    """Finish every live audit that needs this evaluation or diagnosis and waits for no other; returns their ids.

    An audit waits for its diagnosis to end, successfully or not, unless there is nothing to explain.

    Idempotent. Locks the audits, in the order of their ids and after their evaluations: when two transactions finish
    the last two things that an audit waits for at the same time, the later one sees both.
    """
    ids = session.scalars(
        sa.select(Audit.id).where(Audit.needs(row_id), Audit.state.in_(LIVE_AUDITS)).order_by(Audit.id)
    ).all()
    return [audit_id for audit_id in ids if _conclude_audit(session, audit_id)]


def _conclude_audit(session: Session, audit_id: str) -> bool:
    session.flush()
    audit = session.scalars(
        sa.select(Audit).where(Audit.id == audit_id).with_for_update(of=Audit).execution_options(populate_existing=True)
    ).one()
    if audit.state not in LIVE_AUDITS:
        return False
    parts = session.scalars(
        sa.select(AuditPart)
        .where(AuditPart.audit_id == audit_id)
        .options(joinedload(AuditPart.evaluation))
        .order_by(AuditPart.position)
        .execution_options(populate_existing=True)
    ).all()
    if any(part.evaluation.state not in DONE_EVALUATIONS for part in parts):
        return False
    diagnosis = session.scalars(
        sa.select(Diagnosis)
        .join(AuditDiagnosis)
        .where(AuditDiagnosis.audit_id == audit_id)
        .execution_options(populate_existing=True)
    ).one_or_none()
    # Where no evaluation succeeded, as after a purge, there is nothing that a diagnosis could explain.
    something = any(part.evaluation.state == EvaluationState.SUCCEEDED for part in parts)
    if something and diagnosis is not None and diagnosis.state not in DONE_EVALUATIONS:
        return False
    audit.finished_at = utcnow()
    for part in parts:
        part.end(part.evaluation)
    written = _report(session, audit, parts, diagnosis)
    body = written.canonical()
    session.add(Report(audit_id=audit.id, body=body.decode(), digest=canonical.sha256(body)))
    move(audit, AuditState.FINISHED)
    audit.verdict = written.verdict
    session.add(AuditEvent(audit_id=audit.id, kind="finished", data={"verdict": written.verdict}))
    session.flush()
    return True


def _report(
    session: Session, audit: Audit, parts: Iterable[AuditPart], diagnosis: Diagnosis | None
) -> reports.AuditReport:
    assert audit.finished_at is not None
    ids: dict[Role, str | None] = {
        "original": audit.original_id,
        "unlearned": audit.unlearned_id,
        "retrained": audit.retrained_id,
    }
    forget_set = session.get_one(ForgetSet, audit.forget_set_id)
    return reports.make_report(
        audit=reports.AuditInfo(
            id=audit.id, name=audit.name, created_at=audit.created_at, finished_at=audit.finished_at
        ),
        checkpoints={
            role: checkpoint_info(session.get_one(Checkpoint, checkpoint_id))
            for role, checkpoint_id in ids.items()
            if checkpoint_id is not None
        },
        forget_set=ForgetSetInfo.model_validate(forget_set.info),
        plan=Plan.model_validate(audit.plan),
        policy=stored(audit.policy),
        evidence=[_evidence(part) for part in parts],
        diagnosis=None if diagnosis is None else _diagnosis(diagnosis),
        artifacts=_artifacts(session, audit.id),
    )


def _artifacts(session: Session, audit_id: str) -> list[reports.ArtifactInfo]:
    rows = session.scalars(
        sa.select(AuditArtifact)
        .where(AuditArtifact.audit_id == audit_id)
        .options(joinedload(AuditArtifact.checkpoint))
        .order_by(AuditArtifact.position)
    )
    return [
        reports.ArtifactInfo.model_validate(
            {
                "name": row.name,
                "of": row.of,
                "checkpoint": checkpoint_info(row.checkpoint),
                "quantization": row.checkpoint.quantization,
            }
        )
        for row in rows
    ]


def checkpoint_info(row: Checkpoint) -> CheckpointInfo:
    """A registered checkpoint as reports describe it."""
    return CheckpointInfo(
        uri=row.uri, digest=row.digest, architecture=row.architecture, parameters=row.parameters, dtype=row.dtype
    )


def _diagnosis(row: Diagnosis) -> DiagnosisResult | Failure:
    return DiagnosisResult.model_validate(row.result) if row.state == EvaluationState.SUCCEEDED else _failure(row)


def _failure(row: Leased) -> Failure:
    return Failure(code=row.error_code or str(row.state), detail=row.error_detail or f"it was {row.state}")


def _evidence(part: AuditPart) -> reports.Evidence:
    row = part.evaluation
    evaluation, failure = None, None
    if row.state == EvaluationState.SUCCEEDED:
        evaluation = Evaluation.model_validate(row.result)
    else:
        failure = _failure(row)
    return reports.Evidence.model_validate(
        {
            "role": part.role,
            "precision": part.precision,
            "evaluation_id": row.id,
            "reused": part.reused,
            "evaluation": evaluation,
            "failure": failure,
        }
    )
