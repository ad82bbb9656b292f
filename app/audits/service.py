"""Making, reading and cancelling audits.

Every transaction locks evaluations first, in the order of their ids, then a diagnosis, then audits, in the order of
theirs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload, selectinload

from app.audits import evaluations, idempotency
from app.audits.evaluations import Wanted
from app.audits.schemas import NewAudit
from app.catalog import plans
from app.catalog.plans import Plan
from app.checkpoints import pair
from app.checkpoints import service as checkpoints
from app.checkpoints.roles import naming, open_expected, register
from app.checkpoints.sources import Source
from app.database.engine import new_id, utcnow
from app.database.models import (
    Audit,
    AuditArtifact,
    AuditDiagnosis,
    AuditEvent,
    AuditPart,
    Checkpoint,
    Diagnosis,
    Evaluation,
    ForgetSet,
)
from app.database.states import LIVE_AUDITS, AuditState, EvaluationState, check_cancel, move
from app.diagnoses import service as diagnoses
from app.errors import NotFound
from app.evidence import artifacts, needed
from app.evidence.artifacts import PREFIX, Named, Shipped
from app.evidence.evaluation import Role
from app.evidence.needed import Needed
from app.forget_sets import service as forget_sets
from app.http.idempotency import Creation
from app.judgement.policy import Policy
from app.reports.build import conclude
from app.workers import service as workers


def locate_artifacts(session: Session, body: NewAudit) -> list[tuple[str, str | None]]:
    """The URI and the expected digest of each artifact, as `locate`."""
    found: list[tuple[str, str | None]] = []
    for index, asked in enumerate(body.artifacts):
        with naming(f"artifacts.{index}"):
            row = checkpoints.find(session, asked.uri)
        found.append((row.uri, row.digest) if row else (asked.uri, None))
    return found


def open_artifacts(
    body: NewAudit, located: Sequence[tuple[str, str | None]], sources: Mapping[Role, Source]
) -> list[tuple[Named, Source]]:
    """The artifacts' files, checked against the model that they were made from; touches no database.

    Raises:
        CheckpointRefused, InvalidRequest: as `open_all`, naming the artifact.
    """
    names = artifacts.names(
        [(asked.name, Path(uri).name) for asked, (uri, _) in zip(body.artifacts, located, strict=True)]
    )
    found: list[tuple[Named, Source]] = []
    for index, (asked, name) in enumerate(zip(body.artifacts, names, strict=True)):
        with naming(f"artifacts.{index}"):
            source = open_expected(*located[index], quantized=True)
            pair.check_artifact(sources[asked.of].files, source.files, body.policy.allowed_differences)
            assert source.files.quantization is not None
            found.append((Named(name, asked.of, source.files.quantization), source))
    artifacts.shipped([named for named, _ in found])
    return found


def create(
    session: Session,
    body: NewAudit,
    plan: Plan,
    sources: Mapping[Role, Source],
    shipped: Sequence[tuple[Named, Source]] = (),
    *,
    request: Creation,
) -> tuple[str, bool]:
    """Create the audit and those of its evaluations that do not exist.

    Returns its id, and whether an earlier request created it.

    Raises:
        ForgetSetRefused, Gone: when the forget set does not exist, or was purged.
        InvalidRequest: `nothing_to_measure`; `precision_unavailable`; `idempotency_key_reused`.
    """
    forget_set = forget_sets.find_usable(session, body.forget_set, lock=True)
    plans.measurable(plan, forget_set.info["unavailable"])
    workers.check_available(session, [*plan.precisions, *(named.format_precision for named, _ in shipped)])
    pairs = artifacts.shipped([named for named, _ in shipped])
    named_sources = {f"{PREFIX}{named.name}": source for named, source in shipped}
    every = register(session, {**sources, **named_sources})
    rows = {role: every[role] for role in sources}
    audit = new(body.name, rows, forget_set, needed.whole(plan, pairs), body.policy)
    made_before = idempotency.add_once(session, audit, request)
    if made_before is not None:
        return made_before, True
    for position, (named, _) in enumerate(shipped):
        row = every[f"{PREFIX}{named.name}"]
        session.add(
            AuditArtifact(audit_id=audit.id, name=named.name, position=position, of=named.of, checkpoint_id=row.id)
        )
    begin(
        session,
        audit,
        rows,
        forget_set,
        plan,
        pairs,
        {named.name: every[f"{PREFIX}{named.name}"] for named, _ in shipped},
    )
    return audit.id, False


def new(name: str | None, rows: Mapping[Role, Checkpoint], forget_set: ForgetSet, plan: Plan, policy: Policy) -> Audit:
    """A row for an audit that is not in the database yet."""
    return Audit(
        id=new_id(),
        name=name or f"{rows['original'].name} / {rows['unlearned'].name}"[:200],
        forget_set_id=forget_set.id,
        original_id=rows["original"].id,
        unlearned_id=rows["unlearned"].id,
        retrained_id=rows["retrained"].id if "retrained" in rows else None,
        plan=plan.model_dump(mode="json"),
        policy=policy.model_dump(mode="json"),
        policy_digest=policy.digest(),
    )


def begin(
    session: Session,
    audit: Audit,
    rows: Mapping[Role, Checkpoint],
    forget_set: ForgetSet,
    plan: Plan,
    shipped: Sequence[Shipped] = (),
    artifact_rows: Mapping[str, Checkpoint] = MappingProxyType({}),
) -> None:
    """Create those of a new audit's evaluations that do not exist; conclude the audit if it waits for nothing."""
    asked = needed.evaluations(plan, rows, shipped)
    parts = _add_parts(session, audit, asked, rows, artifact_rows, forget_set, plan)
    diagnosis = diagnoses.acquire(session, rows["original"], rows["unlearned"])
    session.add(AuditDiagnosis(audit_id=audit.id, diagnosis_id=diagnosis.id))
    _begin(session, audit, parts, diagnosis)


def _add_parts(
    session: Session,
    audit: Audit,
    asked: Sequence[Needed],
    rows: Mapping[Role, Checkpoint],
    artifact_rows: Mapping[str, Checkpoint],
    forget_set: ForgetSet,
    plan: Plan,
) -> list[Evaluation]:
    texts = {part.evaluated_at: evaluations.calibration_digest(part.evaluated_at) for part in asked}
    metrics = tuple(plans.measurable(plan, forget_set.info["unavailable"]))
    wanted = [
        Wanted(
            rows[part.role] if part.artifact is None else artifact_rows[part.artifact],
            rows["original"],
            forget_set.digest,
            part.evaluated_at,
            metrics,
            texts[part.evaluated_at],
            None if part.base is None else rows[part.base],
        )
        for part in asked
    ]
    found = evaluations.acquire(session, wanted)
    for position, (part, item) in enumerate(zip(asked, wanted, strict=True)):
        evaluation = found[item.key]
        session.add(
            AuditPart(
                audit_id=audit.id,
                role=part.role,
                precision=part.precision,
                position=position,
                evaluation_id=evaluation.id,
                reused=evaluation.state is EvaluationState.SUCCEEDED,
            )
        )
    session.flush()
    return list(found.values())


def _begin(session: Session, audit: Audit, parts: Sequence[Evaluation], diagnosis: Diagnosis) -> None:
    session.add(AuditEvent(audit_id=audit.id, kind=AuditState.QUEUED.value, data={}))
    session.flush()
    if any(row.state is EvaluationState.RUNNING for row in parts) or diagnosis.state is EvaluationState.RUNNING:
        move(audit, AuditState.RUNNING)
        session.add(AuditEvent(audit_id=audit.id, kind=AuditState.RUNNING.value, data={}))
    if all(evaluation.state is EvaluationState.SUCCEEDED for evaluation in parts):
        conclude(session, parts[0].id)
    session.flush()


def get(session: Session, audit_id: str) -> Audit:
    """The audit with all that a response shows, or NotFound."""
    statement = (
        sa.select(Audit)
        .where(Audit.id == audit_id)
        .options(
            joinedload(Audit.forget_set),
            joinedload(Audit.original),
            joinedload(Audit.unlearned),
            joinedload(Audit.retrained),
            selectinload(Audit.diagnosis).load_only(Diagnosis.id),
            selectinload(Audit.artifacts).joinedload(AuditArtifact.checkpoint),
            selectinload(Audit.judgements).load_only(Audit.id),
            selectinload(Audit.parts).joinedload(AuditPart.evaluation).defer(Evaluation.result),
        )
        .execution_options(populate_existing=True)
    )
    audit = session.scalars(statement).one_or_none()
    if audit is None:
        raise NotFound("not_found", f"there is no audit {audit_id}")
    return audit


def check_exists(session: Session, audit_id: str) -> None:
    """Raises NotFound when there is no such audit."""
    if session.scalar(sa.select(Audit.id).where(Audit.id == audit_id)) is None:
        raise NotFound("not_found", f"there is no audit {audit_id}")


def matching(state: str | None, verdict: str | None, checkpoint: str | None) -> sa.Select[Audit]:
    """The audits with this state and verdict in which a checkpoint of this id or digest has any role."""
    statement = sa.select(Audit)
    if state is not None:
        statement = statement.where(Audit.state == AuditState(state))
    if verdict is not None:
        statement = statement.where(Audit.verdict == verdict)
    if checkpoint is not None:
        ids = sa.select(Checkpoint.id).where(sa.or_(Checkpoint.id == checkpoint, Checkpoint.digest == checkpoint))
        roles = (Audit.original_id, Audit.unlearned_id, Audit.retrained_id)
        shipped = sa.select(AuditArtifact.audit_id).where(AuditArtifact.checkpoint_id.in_(ids))
        statement = statement.where(sa.or_(*(column.in_(ids) for column in roles), Audit.id.in_(shipped)))
    return statement


def cancel(session: Session, audit_id: str) -> None:
    """Cancel the audit, and those evaluations that no other live audit needs.

    Its diagnosis continues: it takes seconds, and others may have asked for it.

    Raises:
        NotFound: when there is no such audit.
        Conflict: when it is already finished or cancelled.
    """
    own = sa.select(AuditPart.evaluation_id).where(AuditPart.audit_id == audit_id)
    parts = session.scalars(
        sa.select(Evaluation)
        .where(Evaluation.id.in_(own))
        .order_by(Evaluation.id)
        .options(sa.orm.defer(Evaluation.result))
        .with_for_update()
    ).all()
    audit = session.scalars(sa.select(Audit).where(Audit.id == audit_id).with_for_update()).one_or_none()
    if audit is None:
        raise NotFound("not_found", f"there is no audit {audit_id}")
    check_cancel(audit.state)
    move(audit, AuditState.CANCELLED)
    audit.finished_at = utcnow()
    session.add(AuditEvent(audit_id=audit.id, kind=AuditState.CANCELLED.value, data={}))
    session.flush()
    needed = set(
        session.scalars(
            sa.select(AuditPart.evaluation_id)
            .join(Audit, Audit.id == AuditPart.audit_id)
            .where(AuditPart.evaluation_id.in_([part.id for part in parts]), Audit.state.in_(LIVE_AUDITS))
        )
    )
    for part in parts:
        if part.id in needed:
            continue
        if part.state is EvaluationState.QUEUED:
            move(part, EvaluationState.CANCELLED)
            part.finished_at = utcnow()
        elif part.state is EvaluationState.RUNNING:
            part.cancel_requested = True
    session.flush()
    by_id = {part.id: part for part in parts}
    for own_part in session.scalars(sa.select(AuditPart).where(AuditPart.audit_id == audit_id)):
        own_part.end(by_id[own_part.evaluation_id])
    session.flush()
