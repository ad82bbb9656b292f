"""How Alembic reaches the database: by the connection that `app.database.migrate` passes, else by the settings."""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context

from app.database import models  # noqa: F401 - the tables
from app.database.engine import Base, UTCDateTime, engine


def plain_types(kind: str, value: Any, autogen_context: Any) -> str | Literal[False]:
    """Render our own column types as the database's types: migrations outlive the code they were made from."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, UTCDateTime) else False


def run(connection: sa.Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_item=plain_types,
        # SQLite can alter little in place; Alembic copies the table instead.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline SQL is not supported: these migrations read the database that they change")

handed = context.config.attributes.get("connection")
if handed is not None:
    run(handed)
else:
    with engine().begin() as own:
        run(own)
