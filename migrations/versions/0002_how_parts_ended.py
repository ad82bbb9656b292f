"""How an audit's evaluations stood when it ended.

Revision: 0002, after 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATES = sa.Enum(
    "queued", "running", "succeeded", "failed", "cancelled", name="evaluationstate", native_enum=False, length=16
)
COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "end_state": STATES,
    "end_attempt": sa.Integer(),
    "end_done": sa.Integer(),
    "end_total": sa.Integer(),
    "end_error_code": sa.String(length=64),
    "end_error_detail": sa.Text(),
}


def upgrade() -> None:
    with op.batch_alter_table("audit_parts", schema=None) as batch_op:
        for name, kind in COLUMNS.items():
            batch_op.add_column(sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("audit_parts", schema=None) as batch_op:
        for name in reversed(COLUMNS):
            batch_op.drop_column(name)
