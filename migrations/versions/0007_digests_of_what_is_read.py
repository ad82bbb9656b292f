"""What checkpoints are, by tensors and interface; whose interface an evaluation has.

Older rows stay as they are: their digests were computed differently, so nothing new refers to them.

Revision: 0007, after 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS = {
    "tensors": "digest of the tensors alone",
    "interface": "digest of config and tokenizer",
}


def upgrade() -> None:
    for name, comment in _COLUMNS.items():
        op.add_column("checkpoints", sa.Column(name, sa.String(length=80), nullable=True, comment=comment))
    # In place: Alembic's copy of the table would drop the one that audit_parts refers to.
    op.execute(
        "ALTER TABLE evaluations ADD COLUMN interface_id VARCHAR(36)"
        " CONSTRAINT fk_evaluations_interface_id_checkpoints REFERENCES checkpoints (id)"
    )


def downgrade() -> None:
    op.drop_column("evaluations", "interface_id")
    for name in _COLUMNS:
        op.drop_column("checkpoints", name)
