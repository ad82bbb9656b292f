"""Diagnoses.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def upgrade() -> None:
    op.create_table(
        "diagnoses",
        sa.Column("original_id", sa.String(length=36), nullable=False),
        sa.Column("unlearned_id", sa.String(length=36), nullable=False),
        sa.Column("precisions", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("state", sa.Enum(*STATES, name="evaluationstate", native_enum=False, length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="fences: only its holder may finish"),
        sa.Column("tries", sa.Integer(), nullable=False, comment="attempts since it was last queued"),
        sa.Column("lease_until", sa.Double(), nullable=True, comment="epoch seconds by the database's clock"),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("stage", sa.String(length=64), nullable=True),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("commits", sa.Integer(), nullable=False, comment="results committed; never above 1"),
        sa.Column("result", sa.JSON(), nullable=True, comment="reports.diagnosis.Diagnosis"),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["original_id"], ["checkpoints.id"], name=op.f("fk_diagnoses_original_id_checkpoints")),
        sa.ForeignKeyConstraint(
            ["unlearned_id"], ["checkpoints.id"], name=op.f("fk_diagnoses_unlearned_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_diagnoses")),
        sa.UniqueConstraint("key", name=op.f("uq_diagnoses_key")),
    )
    op.create_index("ix_diagnoses_claim", "diagnoses", ["state", "lease_until", "created_at"])
    op.create_table(
        "audit_diagnoses",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("diagnosis_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_audit_diagnoses_audit_id_audits")),
        sa.ForeignKeyConstraint(
            ["diagnosis_id"], ["diagnoses.id"], name=op.f("fk_audit_diagnoses_diagnosis_id_diagnoses")
        ),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audit_diagnoses")),
    )
    op.create_index(op.f("ix_audit_diagnoses_diagnosis_id"), "audit_diagnoses", ["diagnosis_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_audit_diagnoses_diagnosis_id"), "audit_diagnoses")
    op.drop_table("audit_diagnoses")
    op.drop_index("ix_diagnoses_claim", "diagnoses")
    op.drop_table("diagnoses")
