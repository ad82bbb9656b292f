"""Audits that judge the stored scores of another one again.

Revision: 0008, after 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In place: Alembic's copy of the table would drop the one that other tables refer to.
    op.execute(
        "ALTER TABLE audits ADD COLUMN judged_again_from VARCHAR(36)"
        " CONSTRAINT fk_audits_judged_again_from_audits REFERENCES audits (id)"
    )
    op.create_index("ix_audits_judged_again_from", "audits", ["judged_again_from"])


def downgrade() -> None:
    op.drop_index("ix_audits_judged_again_from", "audits")
    op.drop_column("audits", "judged_again_from")
