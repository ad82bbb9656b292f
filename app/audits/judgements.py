"""Judging a finished audit again: a new audit that is finished at once, on the evidence in the earlier one's report."""

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload

from app import canonical
from app.audits import idempotency
from app.audits.schemas import NewJudgement
from app.database.engine import new_id, utcnow
from app.database.models import (
    Audit,
    AuditArtifact,
    AuditDiagnosis,
    AuditEvent,
    AuditPart,
    Diagnosis,
    Evaluation,
    Report,
)
from app.database.states import AuditState, move
from app.errors import Conflict, NotFound
from app.http.idempotency import Creation
from app.reports import model as reports
from app.reports import stored
from app.reports.again import judge_again

_COPIED = ("forget_set_id", "original_id", "unlearned_id", "retrained_id", "plan")
"""Of an audit."""
_ENDED = tuple(name for name in AuditPart.__table__.columns.keys() if name.startswith("end_"))  # noqa: SIM118


class Earlier(NamedTuple):
    """A finished audit as it was read; its report never changes."""

    audit: Audit
    report: str
    """Its canonical JSON."""


def read(session: Session, audit_id: str) -> Earlier:
    """The audit to judge again.

    Raises:
        NotFound: there is no such audit.
        Conflict: it is not finished.
    """
    statement = (
        sa.select(Audit)
        .where(Audit.id == audit_id)
        .options(
            selectinload(Audit.parts),
            selectinload(Audit.artifacts),
            selectinload(Audit.diagnosis).load_only(Diagnosis.id),
        )
    )
    audit = session.scalars(statement).one_or_none()
    if audit is None:
        raise NotFound("not_found", f"there is no audit {audit_id}")
    if audit.state is not AuditState.FINISHED:
        raise Conflict("conflict", f"this audit is {audit.state}; only a finished audit's scores can be judged again")
    return Earlier(audit, session.get_one(Report, audit_id).body)


class Judged(NamedTuple):
    """A new audit that is not in the database yet, and its report."""

    audit: Audit
    report: reports.AuditReport


def judge(earlier: Earlier, body: NewJudgement) -> Judged:
    """Judge the scores in the earlier audit's report. It may take seconds, so it uses no database connection.

    It needs no checkpoint and no forget set.

    Raises:
        ReportRefused: this version cannot read the report.
    """
    old = stored.parse(earlier.report.encode(), f"the report of audit {earlier.audit.id}")
    now = utcnow()
    audit = Audit(
        id=new_id(),
        name=body.name or earlier.audit.name,
        policy=body.policy.model_dump(mode="json"),
        policy_digest=body.policy.digest(),
        judged_again_from=earlier.audit.id,
        created_at=now,
        finished_at=now,
        **{name: getattr(earlier.audit, name) for name in _COPIED},
    )
    move(audit, AuditState.FINISHED)
    info = reports.AuditInfo(id=audit.id, name=audit.name, created_at=now, finished_at=now)
    report = judge_again(old, body.policy, info)
    audit.verdict = report.verdict
    return Judged(audit, report)


def create(session: Session, earlier: Audit, made: Judged, request: Creation) -> tuple[str, bool]:
    """Add the audit with its report and all that leads to the evidence.

    Returns its id, and whether an earlier request created it.

    Raises:
        InvalidRequest: `idempotency_key_reused`.
    """
    audit = made.audit
    _lock(session, earlier)
    if (known := idempotency.add_once(session, audit, request)) is not None:
        return known, True
    _share(session, earlier, made)
    body = made.report.canonical()
    session.add(Report(audit_id=audit.id, body=body.decode(), digest=canonical.sha256(body)))
    for kind, data in ((AuditState.QUEUED, {}), (AuditState.FINISHED, {"verdict": audit.verdict})):
        session.add(AuditEvent(audit_id=audit.id, kind=kind.value, data=data))
        session.flush()
    return audit.id, False


def _lock(session: Session, earlier: Audit) -> None:
    """Lock what the new rows will refer to, in the order that every transaction uses (`audits.service`)."""
    ids = [part.evaluation_id for part in earlier.parts]
    parts = sa.select(Evaluation.id).where(Evaluation.id.in_(ids)).order_by(Evaluation.id)
    session.execute(parts.with_for_update(read=True, key_share=True))
    if earlier.diagnosis is not None:
        diagnosis = sa.select(Diagnosis.id).where(Diagnosis.id == earlier.diagnosis.id)
        session.execute(diagnosis.with_for_update(read=True, key_share=True))


def _share(session: Session, earlier: Audit, made: Judged) -> None:
    """The evaluations, as they stood when the earlier audit ended, the diagnosis and the artifacts."""
    audit_id = made.audit.id
    reused: dict[tuple[str, str], bool] = {(one.role, one.precision): one.reused for one in made.report.evidence}
    for part in earlier.parts:
        session.add(
            AuditPart(
                audit_id=audit_id,
                role=part.role,
                precision=part.precision,
                position=part.position,
                evaluation_id=part.evaluation_id,
                reused=reused[part.role, part.precision],
                **{name: getattr(part, name) for name in _ENDED},
            )
        )
    for one in earlier.artifacts:
        session.add(
            AuditArtifact(
                audit_id=audit_id, name=one.name, position=one.position, of=one.of, checkpoint_id=one.checkpoint_id
            )
        )
    if earlier.diagnosis is not None:
        session.add(AuditDiagnosis(audit_id=audit_id, diagnosis_id=earlier.diagnosis.id))
    session.flush()
