"""Remediations.

Revision: 0006, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

REMEDIATION_STATES = ("queued", "running", "finished", "failed", "cancelled")
TRIAL_STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def upgrade() -> None:
    op.create_table(
        "remediations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column(
            "state",
            sa.Enum(*REMEDIATION_STATES, name="remediationstate", native_enum=False, length=16),
            nullable=False,
        ),
        sa.Column("audit_id", sa.String(length=36), nullable=False, comment="the audit that led to it"),
        sa.Column("method", sa.String(length=16), nullable=False, comment="a method, or auto"),
        sa.Column("base", sa.String(length=16), nullable=True),
        sa.Column("recipes", sa.JSON(), nullable=False, comment="methods.Recipe, in the order of trials"),
        sa.Column("budget", sa.JSON(), nullable=False, comment="remediations.schemas.Budget"),
        sa.Column("chosen", sa.Integer(), nullable=True, comment="position of the trial that it returns"),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("sentence", sa.Text(), nullable=True, comment="how it ended, in words"),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("api_key_id", sa.String(length=36), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("body_digest", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_remediations_audit_id_audits")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_remediations_api_key_id_api_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remediations")),
        sa.UniqueConstraint("api_key_id", "idempotency_key", name=op.f("uq_remediations_api_key_id")),
    )
    op.create_index(op.f("ix_remediations_audit_id"), "remediations", ["audit_id"])
    op.create_index("ix_remediations_state", "remediations", ["state"])
    op.create_table(
        "remediation_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("remediation_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["remediation_id"], ["remediations.id"], name=op.f("fk_remediation_events_remediation_id_remediations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remediation_events")),
    )
    op.create_index(op.f("ix_remediation_events_remediation_id"), "remediation_events", ["remediation_id"])
    op.create_table(
        "trials",
        sa.Column("remediation_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False, comment="methods.Recipe"),
        sa.Column(
            "losses",
            sa.JSON(),
            nullable=False,
            comment="reports.unlearning.LossPoint: what is known so far, thinned",
        ),
        sa.Column("result", sa.JSON(), nullable=True, comment="reports.unlearning.Unlearned"),
        sa.Column("checkpoint_id", sa.String(length=36), nullable=True),
        sa.Column("screening_id", sa.String(length=36), nullable=True, comment="at few precisions"),
        sa.Column("audit_id", sa.String(length=36), nullable=True, comment="at all that the first audit had"),
        sa.Column("artifact", sa.Text(), nullable=True, comment="URI; noted before anything is written there"),
        sa.Column("artifact_bytes", sa.BigInteger(), nullable=False, comment="an estimate until it is stored"),
        sa.Column("card_done", sa.Boolean(), nullable=False, comment="the model card tells the verdict"),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True, comment="when the artifact was deleted"),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column(
            "state", sa.Enum(*TRIAL_STATES, name="evaluationstate", native_enum=False, length=16), nullable=False
        ),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="fences: only its holder may finish"),
        sa.Column("tries", sa.Integer(), nullable=False, comment="attempts since it was last queued"),
        sa.Column("lease_until", sa.Double(), nullable=True, comment="epoch seconds by the database's clock"),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("stage", sa.String(length=64), nullable=True),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("commits", sa.Integer(), nullable=False, comment="results committed; never above 1"),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["remediation_id"], ["remediations.id"], name=op.f("fk_trials_remediation_id_remediations")
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_trials_checkpoint_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(["screening_id"], ["audits.id"], name=op.f("fk_trials_screening_id_audits")),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_trials_audit_id_audits")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("key", name=op.f("uq_trials_key")),
        sa.UniqueConstraint("remediation_id", "position", name=op.f("uq_trials_remediation_id")),
    )
    op.create_index(op.f("ix_trials_remediation_id"), "trials", ["remediation_id"])
    op.create_index("ix_trials_claim", "trials", ["state", "lease_until", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_trials_claim", "trials")
    op.drop_index(op.f("ix_trials_remediation_id"), "trials")
    op.drop_table("trials")
    op.drop_index(op.f("ix_remediation_events_remediation_id"), "remediation_events")
    op.drop_table("remediation_events")
    op.drop_index("ix_remediations_state", "remediations")
    op.drop_index(op.f("ix_remediations_audit_id"), "remediations")
    op.drop_table("remediations")
