"""Artifacts: already quantized checkpoints, and the audits that look at them.

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "checkpoints",
        sa.Column(
            "quantization",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="checkpoints.quantization.Quantization; null when it is not quantized",
        ),
    )
    # In place: Alembic's copy of the table would drop the one that audit_parts refers to.
    op.execute(
        "ALTER TABLE evaluations ADD COLUMN base_id VARCHAR(36)"
        " CONSTRAINT fk_evaluations_base_id_checkpoints REFERENCES checkpoints (id)"
    )
    op.create_table(
        "audit_artifacts",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("of", sa.String(length=16), nullable=False, comment="unlearned, original"),
        sa.Column("checkpoint_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_audit_artifacts_audit_id_audits")),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_audit_artifacts_checkpoint_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("audit_id", "name", name=op.f("pk_audit_artifacts")),
    )
    op.create_index(op.f("ix_audit_artifacts_checkpoint_id"), "audit_artifacts", ["checkpoint_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_audit_artifacts_checkpoint_id"), "audit_artifacts")
    op.drop_table("audit_artifacts")
    op.drop_column("evaluations", "base_id")
    op.drop_column("checkpoints", "quantization")
