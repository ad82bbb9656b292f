"""The tables."""

import re
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.sql.elements import ColumnElement

from app.database.engine import Base, UTCDateTime, new_id, utcnow
from app.database.states import DONE_EVALUATIONS, AuditState, EvaluationState, RemediationState

DIGEST = re.compile("sha256:[0-9a-f]{64}")
"""A digest as it is written everywhere."""


def _id() -> Mapped[str]:
    return mapped_column(sa.String(36), primary_key=True, default=new_id)


def _state(enum: type[Any], default: Any) -> Any:
    return mapped_column(
        sa.Enum(enum, native_enum=False, length=16, values_callable=lambda e: [m.value for m in e]), default=default
    )


class ApiKey(Base):
    """A key of the API. The secret itself is not kept, only its SHA-256 (it has 256 random bits: no salt is needed)."""

    __tablename__ = "api_keys"

    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(sa.String(200))
    prefix: Mapped[str] = mapped_column(sa.String(16))
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class ForgetSet(Base):
    """A MUSE bundle. After a purge the row stays, with digest and counts; its files are gone."""

    __tablename__ = "forget_sets"

    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(sa.String(200))
    source: Mapped[str] = mapped_column(sa.Text, comment="upload, or the directory that it was read from")
    digest: Mapped[str] = mapped_column(sa.String(80), index=True)
    info: Mapped[dict[str, Any]] = mapped_column(sa.JSON, comment="reports.schemas.ForgetSetInfo")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    purged_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    files: Mapped[list["ForgetSetFile"]] = relationship(cascade="all, delete-orphan", lazy="raise")

    __table_args__ = (
        sa.Index(
            "uq_forget_sets_digest_unpurged",
            "digest",
            unique=True,
            sqlite_where=sa.text("purged_at IS NULL"),
            postgresql_where=sa.text("purged_at IS NULL"),
        ),
    )


class ForgetSetFile(Base):
    """One file of a bundle, as it was sent."""

    __tablename__ = "forget_set_files"

    forget_set_id: Mapped[str] = mapped_column(sa.ForeignKey("forget_sets.id"), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(300), primary_key=True)
    content: Mapped[bytes] = mapped_column(sa.LargeBinary)


class Checkpoint(Base):
    """A directory of safetensors as it was when it was registered; the digest shows when it has changed."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(sa.String(200))
    uri: Mapped[str] = mapped_column(sa.Text)
    digest: Mapped[str] = mapped_column(sa.String(80), index=True)
    # Null in rows from before they were computed; nothing new refers to such rows.
    tensors: Mapped[str | None] = mapped_column(sa.String(80), comment="digest of the tensors alone")
    interface: Mapped[str | None] = mapped_column(sa.String(80), comment="digest of config and tokenizer")
    architecture: Mapped[str] = mapped_column(sa.String(200))
    parameters: Mapped[int] = mapped_column(sa.BigInteger)
    dtype: Mapped[str] = mapped_column(sa.String(16))
    quantization: Mapped[dict[str, Any] | None] = mapped_column(
        sa.JSON(none_as_null=True), comment="checkpoints.quantization.Quantization; null when it is not quantized"
    )
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    __table_args__ = (sa.UniqueConstraint("digest", "uri"),)


class Leased:
    """Work that one worker at a time does under a lease (`leases`); the key digests all that decides its result."""

    id: Mapped[str] = _id()
    key: Mapped[str] = mapped_column(sa.String(80), unique=True)
    state: Mapped[EvaluationState] = _state(EvaluationState, EvaluationState.QUEUED)
    attempt: Mapped[int] = mapped_column(sa.Integer, default=0, comment="fences: only its holder may finish")
    # `attempt` only ever grows; `tries` restarts when the work is queued again (see `leases.requeue`).
    tries: Mapped[int] = mapped_column(sa.Integer, default=0, comment="attempts since it was last queued")
    lease_until: Mapped[float | None] = mapped_column(sa.Double, comment="epoch seconds by the database's clock")
    worker: Mapped[str | None] = mapped_column(sa.String(200))
    cancel_requested: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    stage: Mapped[str | None] = mapped_column(sa.String(64))
    done: Mapped[int] = mapped_column(sa.Integer, default=0)
    total: Mapped[int] = mapped_column(sa.Integer, default=0)
    commits: Mapped[int] = mapped_column(sa.Integer, default=0, comment="results committed; never above 1")
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    error_detail: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Evaluation(Leased, Base):
    """One checkpoint at one precision on one forget set."""

    __tablename__ = "evaluations"

    checkpoint_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id"))
    interface_id: Mapped[str | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    """The original, whose tokenizer, end tokens, window and attention serve all roles; null for its own."""
    base_id: Mapped[str | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    """The checkpoint that an artifact is said to be made from; null for everything else."""
    forget_set_digest: Mapped[str] = mapped_column(sa.String(80))
    precision: Mapped[str] = mapped_column(sa.String(64))
    metrics: Mapped[list[str]] = mapped_column(sa.JSON)
    seed: Mapped[int] = mapped_column(sa.Integer, default=0)
    result: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON, comment="reports.schemas.Evaluation")

    checkpoint: Mapped[Checkpoint] = relationship(foreign_keys=[checkpoint_id], lazy="raise")
    interface: Mapped[Checkpoint | None] = relationship(foreign_keys=[interface_id], lazy="raise")
    base: Mapped[Checkpoint | None] = relationship(foreign_keys=[base_id], lazy="raise")

    __table_args__ = (sa.Index("ix_evaluations_claim", "state", "lease_until", "created_at"),)


class Diagnosis(Leased, Base):
    """A weights-only comparison of a pair."""

    __tablename__ = "diagnoses"

    original_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id"))
    unlearned_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id"))
    precisions: Mapped[list[str]] = mapped_column(sa.JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON, comment="reports.diagnosis.Diagnosis")

    original: Mapped[Checkpoint] = relationship(foreign_keys=[original_id], lazy="raise")
    unlearned: Mapped[Checkpoint] = relationship(foreign_keys=[unlearned_id], lazy="raise")

    __table_args__ = (sa.Index("ix_diagnoses_claim", "state", "lease_until", "created_at"),)


class Audit(Base):
    """The pair, at every precision of its plan, judged by a policy that was fixed before the run."""

    __tablename__ = "audits"

    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(sa.String(200))
    state: Mapped[AuditState] = _state(AuditState, AuditState.QUEUED)
    verdict: Mapped[str | None] = mapped_column(sa.String(16), index=True)
    forget_set_id: Mapped[str] = mapped_column(sa.ForeignKey("forget_sets.id"))
    original_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id"))
    unlearned_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id"))
    retrained_id: Mapped[str | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    plan: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    policy: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    policy_digest: Mapped[str] = mapped_column(sa.String(80))
    judged_again_from: Mapped[str | None] = mapped_column(sa.ForeignKey("audits.id"), index=True)
    """The audit whose stored scores it judges again; null for one that measured its own."""
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    forget_set: Mapped[ForgetSet] = relationship(lazy="raise")
    original: Mapped[Checkpoint] = relationship(foreign_keys=[original_id], lazy="raise")
    unlearned: Mapped[Checkpoint] = relationship(foreign_keys=[unlearned_id], lazy="raise")
    retrained: Mapped[Checkpoint | None] = relationship(foreign_keys=[retrained_id], lazy="raise")
    diagnosis: Mapped[Diagnosis | None] = relationship(secondary="audit_diagnoses", lazy="raise", viewonly=True)
    parts: Mapped[list["AuditPart"]] = relationship(lazy="raise", order_by="AuditPart.position")
    artifacts: Mapped[list["AuditArtifact"]] = relationship(lazy="raise", order_by="AuditArtifact.position")
    judgements: Mapped[list["Audit"]] = relationship(lazy="raise", order_by="Audit.id", viewonly=True)
    """The audits that judge its stored scores again."""

    @classmethod
    def needs(cls, row_id: str) -> ColumnElement[bool]:
        """The condition of audits that need this evaluation or this diagnosis."""
        parts = sa.select(AuditPart.audit_id).where(AuditPart.evaluation_id == row_id)
        diagnosed = sa.select(AuditDiagnosis.audit_id).where(AuditDiagnosis.diagnosis_id == row_id)
        return sa.or_(cls.id.in_(parts), cls.id.in_(diagnosed))


class AuditPart(Base):
    """Which evaluation an audit uses for which role; several audits may share one evaluation."""

    __tablename__ = "audit_parts"

    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"), primary_key=True)
    role: Mapped[str] = mapped_column(sa.String(16), primary_key=True, comment="original, unlearned, retrained")
    precision: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    position: Mapped[int] = mapped_column(sa.Integer)
    evaluation_id: Mapped[str] = mapped_column(sa.ForeignKey("evaluations.id"), index=True)
    reused: Mapped[bool] = mapped_column(sa.Boolean, comment="it had succeeded before this audit asked for it")

    # How the evaluation stood when the audit ended; null while the audit lives.
    end_state: Mapped[EvaluationState | None] = _state(EvaluationState, None)
    end_attempt: Mapped[int | None] = mapped_column(sa.Integer)
    end_done: Mapped[int | None] = mapped_column(sa.Integer)
    end_total: Mapped[int | None] = mapped_column(sa.Integer)
    end_error_code: Mapped[str | None] = mapped_column(sa.String(64))
    end_error_detail: Mapped[str | None] = mapped_column(sa.Text)

    evaluation: Mapped[Evaluation] = relationship(lazy="raise")

    def end(self, evaluation: Evaluation) -> None:
        """Record how the evaluation stands when the audit ends, because a later audit may queue it again.

        An unfinished one continues only if others need it: for this audit it was cancelled.
        """
        over = evaluation.state in DONE_EVALUATIONS
        self.end_state = evaluation.state if over else EvaluationState.CANCELLED
        self.end_attempt, self.end_done, self.end_total = evaluation.attempt, evaluation.done, evaluation.total
        self.end_error_code, self.end_error_detail = evaluation.error_code, evaluation.error_detail


class AuditArtifact(Base):
    """An already quantized checkpoint that is audited as it is (`app.evidence.artifacts`)."""

    __tablename__ = "audit_artifacts"

    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    position: Mapped[int] = mapped_column(sa.Integer)
    of: Mapped[str] = mapped_column(sa.String(16), comment="unlearned, original")
    checkpoint_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id"), index=True)

    checkpoint: Mapped[Checkpoint] = relationship(lazy="raise")


class AuditDiagnosis(Base):
    """Which diagnosis explains an audit's pair; an audit from before there were diagnoses has none."""

    __tablename__ = "audit_diagnoses"

    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"), primary_key=True)
    diagnosis_id: Mapped[str] = mapped_column(sa.ForeignKey("diagnoses.id"), index=True)


class AuditEvent(Base):
    """What happened to an audit, in order; the source of SSE's resumable events."""

    __tablename__ = "audit_events"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"), index=True)
    kind: Mapped[str] = mapped_column(sa.String(32))
    data: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Report(Base):
    """An audit's outcome, written once."""

    __tablename__ = "reports"

    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"), primary_key=True)
    body: Mapped[str] = mapped_column(sa.Text, comment="RFC 8785 canonical JSON of reports.model.AuditReport")
    digest: Mapped[str] = mapped_column(sa.String(80))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Remediation(Base):
    """Unlearning an audit's original again, by one recipe or a ladder of them, until an audit says `robust`."""

    __tablename__ = "remediations"

    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(sa.String(200))
    state: Mapped[RemediationState] = _state(RemediationState, RemediationState.QUEUED)
    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"), index=True, comment="the audit that led to it")
    method: Mapped[str] = mapped_column(sa.String(16), comment="a method, or auto")
    loss: Mapped[str | None] = mapped_column(sa.String(16))
    recipes: Mapped[list[dict[str, Any]]] = mapped_column(sa.JSON, comment="methods.Recipe, in the order of trials")
    budget: Mapped[dict[str, Any]] = mapped_column(sa.JSON, comment="remediations.schemas.Budget")
    chosen: Mapped[int | None] = mapped_column(sa.Integer, comment="position of the trial that it returns")
    verdict: Mapped[str | None] = mapped_column(sa.String(16))
    sentence: Mapped[str | None] = mapped_column(sa.Text, comment="how it ended, in words")
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    api_key_id: Mapped[str] = mapped_column(sa.ForeignKey("api_keys.id"))
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    body_digest: Mapped[str] = mapped_column(sa.String(80))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    audit: Mapped[Audit] = relationship(lazy="raise")
    trials: Mapped[list["Trial"]] = relationship(lazy="raise", order_by="Trial.position")

    __table_args__ = (
        sa.UniqueConstraint("api_key_id", "idempotency_key"),
        sa.Index("ix_remediations_state", "state"),
    )


class Trial(Leased, Base):
    """One recipe of a remediation: trained by a worker, then judged by audits."""

    __tablename__ = "trials"

    remediation_id: Mapped[str] = mapped_column(sa.ForeignKey("remediations.id"), index=True)
    position: Mapped[int] = mapped_column(sa.Integer)
    recipe: Mapped[dict[str, Any]] = mapped_column(sa.JSON, comment="methods.Recipe")
    losses: Mapped[list[dict[str, Any]]] = mapped_column(
        sa.JSON, default=list, comment="reports.unlearning.LossPoint: what is known so far, thinned"
    )
    result: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON, comment="reports.unlearning.Unlearned")
    checkpoint_id: Mapped[str | None] = mapped_column(sa.ForeignKey("checkpoints.id"))
    screening_id: Mapped[str | None] = mapped_column(sa.ForeignKey("audits.id"), comment="at few precisions")
    audit_id: Mapped[str | None] = mapped_column(sa.ForeignKey("audits.id"), comment="at all that the first audit had")
    model_uri: Mapped[str | None] = mapped_column(sa.Text, comment="URI; noted before anything is written there")
    model_bytes: Mapped[int] = mapped_column(sa.BigInteger, comment="an estimate until it is stored")
    card_done: Mapped[bool] = mapped_column(sa.Boolean, default=False, comment="the model card tells the verdict")
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime, comment="when the model was deleted")

    checkpoint: Mapped[Checkpoint | None] = relationship(lazy="raise")
    screening: Mapped[Audit | None] = relationship(foreign_keys=[screening_id], lazy="raise")
    audit: Mapped[Audit | None] = relationship(foreign_keys=[audit_id], lazy="raise")

    __table_args__ = (
        sa.UniqueConstraint("remediation_id", "position"),
        sa.Index("ix_trials_claim", "state", "lease_until", "created_at"),
    )


class RemediationEvent(Base):
    """What happened to a remediation, in order."""

    __tablename__ = "remediation_events"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    remediation_id: Mapped[str] = mapped_column(sa.ForeignKey("remediations.id"), index=True)
    kind: Mapped[str] = mapped_column(sa.String(32))
    data: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class IdempotencyKey(Base):
    """What a request to create something created; the request may be sent twice."""

    __tablename__ = "idempotency_keys"

    api_key_id: Mapped[str] = mapped_column(sa.ForeignKey("api_keys.id"), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    body_digest: Mapped[str] = mapped_column(sa.String(80))
    audit_id: Mapped[str] = mapped_column(sa.ForeignKey("audits.id"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Worker(Base):
    """A worker as it last reported: which precisions it can apply. It leaves the others to workers that can."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(sa.String(300), primary_key=True)
    host: Mapped[str] = mapped_column(sa.String(255))
    lethe: Mapped[str] = mapped_column(sa.String(64))
    libraries: Mapped[dict[str, str]] = mapped_column(sa.JSON, comment="library -> version")
    precisions: Mapped[dict[str, str | None]] = mapped_column(
        sa.JSON, comment="precision -> why it cannot be applied, or null"
    )
    seen: Mapped[float] = mapped_column(sa.Double, comment="seconds since the epoch, by the database's clock")
