"""A recipe's loss and a trial's model by these names, in columns, stored recipes, events and error codes.

Reports and evaluations stay as they were written: they have digests.

Revision: 0009, after 0008
"""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("remediations", "base", "loss"),
    ("trials", "artifact", "model_uri"),
    ("trials", "artifact_bytes", "model_bytes"),
)
_COMMENTS = (
    ("trials", "deleted_at", "when the artifact was deleted", "when the model was deleted"),
    (
        "reports",
        "body",
        "RFC 8785 canonical JSON of reports.build.Report",
        "RFC 8785 canonical JSON of reports.model.AuditReport",
    ),
)
_CODES = {"artifacts_unavailable": "model_store_unavailable", "artifacts_full": "model_store_full"}
_HAVE_CODES = (
    ("evaluations", "error_code"),
    ("diagnoses", "error_code"),
    ("trials", "error_code"),
    ("remediations", "error_code"),
    ("audit_parts", "end_error_code"),
)
_MEMORY = {"held_rows": "frozen_rows", "kept": "last_good"}


def upgrade() -> None:
    for table, old, new in _COLUMNS:
        # In place: Alembic's copy of the table would drop the one that other tables refer to.
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    _comment([(table, column, new) for table, column, _, new in _COMMENTS])
    _rename({"base": "loss"}, _MEMORY, _CODES, {"artifact_deleted": "model_deleted"})


def downgrade() -> None:
    _rename({"loss": "base"}, _turned(_MEMORY), _turned(_CODES), {"model_deleted": "artifact_deleted"})
    _comment([(table, column, old) for table, column, old, _ in _COMMENTS])
    for table, old, new in _COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {new} TO {old}")


def _rename(
    recipe: Mapping[str, str], memory: Mapping[str, str], codes: Mapping[str, str], events: Mapping[str, str]
) -> None:
    """Rename in the rows' contents: the keys of recipes and of measured memory, error codes, kinds of events."""
    _rewrite("remediations", "recipes", lambda recipes: [_keys(one, recipe) for one in recipes])
    _rewrite("trials", "recipe", lambda one: _keys(one, recipe))
    _rewrite(
        "trials",
        "result",
        lambda record: (
            record | {"recipe": _keys(record["recipe"], recipe), "peak_memory": _keys(record["peak_memory"], memory)}
        ),
    )
    _rewrite("remediation_events", "data", lambda data: _value(data, "error_code", codes))
    for table, column in (*_HAVE_CODES, ("remediation_events", "kind")):
        here = sa.table(table, sa.column(column))
        for old, new in (events if column == "kind" else codes).items():
            op.execute(sa.update(here).where(here.c[column] == old).values({column: new}))


def _rewrite(table: str, column: str, change: Callable[[Any], Any]) -> None:
    here = sa.table(table, sa.column("id"), sa.column(column, sa.JSON()))
    connection = op.get_bind()
    for row_id, content in connection.execute(sa.select(here.c.id, here.c[column])).all():
        if content is not None and (changed := change(content)) != content:
            connection.execute(sa.update(here).where(here.c.id == row_id).values({column: changed}))


def _keys(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in content.items()}


def _value(content: Mapping[str, Any], name: str, values: Mapping[str, str]) -> dict[str, Any]:
    return dict(content) | ({name: values[content[name]]} if content.get(name) in values else {})


def _turned(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _comment(comments: list[tuple[str, str, str]]) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, column, comment in comments:
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")
