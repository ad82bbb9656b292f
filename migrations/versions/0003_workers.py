"""Workers, and which precisions each can apply.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=300), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("lethe", sa.String(length=64), nullable=False),
        sa.Column("libraries", sa.JSON(), nullable=False, comment="library -> version"),
        sa.Column("precisions", sa.JSON(), nullable=False, comment="precision -> why it cannot be applied, or null"),
        sa.Column("seen", sa.Double(), nullable=False, comment="seconds since the epoch, by the database's clock"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    op.drop_table("workers")
