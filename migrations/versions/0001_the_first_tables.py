"""The first tables.

Revision: 0001, after None
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("architecture", sa.String(length=200), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("digest", "uri", name=op.f("uq_checkpoints_digest")),
    )
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_checkpoints_digest"), ["digest"], unique=False)

    op.create_table(
        "forget_sets",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, comment="upload, or the directory that it was read from"),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("info", sa.JSON(), nullable=False, comment="reports.schemas.ForgetSetInfo"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forget_sets")),
    )
    with op.batch_alter_table("forget_sets", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_forget_sets_digest"), ["digest"], unique=False)
        batch_op.create_index(
            "uq_forget_sets_digest_unpurged",
            ["digest"],
            unique=True,
            sqlite_where=sa.text("purged_at IS NULL"),
            postgresql_where=sa.text("purged_at IS NULL"),
        )

    op.create_table(
        "audits",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column(
            "state",
            sa.Enum("queued", "running", "finished", "cancelled", name="auditstate", native_enum=False, length=16),
            nullable=False,
        ),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("forget_set_id", sa.String(length=36), nullable=False),
        sa.Column("original_id", sa.String(length=36), nullable=False),
        sa.Column("unlearned_id", sa.String(length=36), nullable=False),
        sa.Column("retrained_id", sa.String(length=36), nullable=True),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("policy_digest", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["forget_set_id"], ["forget_sets.id"], name=op.f("fk_audits_forget_set_id_forget_sets")
        ),
        sa.ForeignKeyConstraint(["original_id"], ["checkpoints.id"], name=op.f("fk_audits_original_id_checkpoints")),
        sa.ForeignKeyConstraint(["retrained_id"], ["checkpoints.id"], name=op.f("fk_audits_retrained_id_checkpoints")),
        sa.ForeignKeyConstraint(["unlearned_id"], ["checkpoints.id"], name=op.f("fk_audits_unlearned_id_checkpoints")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audits")),
    )
    with op.batch_alter_table("audits", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audits_verdict"), ["verdict"], unique=False)

    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("checkpoint_id", sa.String(length=36), nullable=False),
        sa.Column("forget_set_digest", sa.String(length=80), nullable=False),
        sa.Column("precision", sa.String(length=64), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="evaluationstate",
                native_enum=False,
                length=16,
            ),
            nullable=False,
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
        sa.Column("result", sa.JSON(), nullable=True, comment="reports.schemas.Evaluation"),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_evaluations_checkpoint_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("key", name=op.f("uq_evaluations_key")),
    )
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.create_index("ix_evaluations_claim", ["state", "lease_until", "created_at"], unique=False)

    op.create_table(
        "forget_set_files",
        sa.Column("forget_set_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["forget_set_id"], ["forget_sets.id"], name=op.f("fk_forget_set_files_forget_set_id_forget_sets")
        ),
        sa.PrimaryKeyConstraint("forget_set_id", "name", name=op.f("pk_forget_set_files")),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_audit_events_audit_id_audits")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    with op.batch_alter_table("audit_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_events_audit_id"), ["audit_id"], unique=False)

    op.create_table(
        "audit_parts",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False, comment="original, unlearned, retrained"),
        sa.Column("precision", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("evaluation_id", sa.String(length=36), nullable=False),
        sa.Column("reused", sa.Boolean(), nullable=False, comment="it had succeeded before this audit asked for it"),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_audit_parts_audit_id_audits")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_audit_parts_evaluation_id_evaluations")
        ),
        sa.PrimaryKeyConstraint("audit_id", "role", "precision", name=op.f("pk_audit_parts")),
    )
    with op.batch_alter_table("audit_parts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_parts_evaluation_id"), ["evaluation_id"], unique=False)

    op.create_table(
        "idempotency_keys",
        sa.Column("api_key_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_digest", sa.String(length=80), nullable=False),
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_idempotency_keys_api_key_id_api_keys")),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_idempotency_keys_audit_id_audits")),
        sa.PrimaryKeyConstraint("api_key_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "reports",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="RFC 8785 canonical JSON of reports.build.Report"),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_reports_audit_id_audits")),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_reports")),
    )


def downgrade() -> None:
    op.drop_table("reports")
    op.drop_table("idempotency_keys")
    with op.batch_alter_table("audit_parts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_parts_evaluation_id"))

    op.drop_table("audit_parts")
    with op.batch_alter_table("audit_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_events_audit_id"))

    op.drop_table("audit_events")
    op.drop_table("forget_set_files")
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.drop_index("ix_evaluations_claim")

    op.drop_table("evaluations")
    with op.batch_alter_table("audits", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audits_verdict"))

    op.drop_table("audits")
    with op.batch_alter_table("forget_sets", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_forget_sets_digest_unpurged",
            sqlite_where=sa.text("purged_at IS NULL"),
            postgresql_where=sa.text("purged_at IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_forget_sets_digest"))

    op.drop_table("forget_sets")
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_checkpoints_digest"))

    op.drop_table("checkpoints")
    op.drop_table("api_keys")
