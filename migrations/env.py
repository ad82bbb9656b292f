"""How Alembic reaches the database: on the connection that `app.database.migrate` hands it, else on the settings'."""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context

from app.database import models  # noqa: F401 - the tables
from app.database.engine import Base, UTCDateTime, engine


def plain_types(kind: str, value: Any, autogen_context: Any) -> str | Literal[False]:
    """Our own column types as what they are in the database: migrations outlive the code they were made from."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, UTCDateTime) else False


def run(connection: sa.Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_item=plain_types,
        # SQLite alters little in place; Alembic copies the table instead.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline SQL is not offered: these migrations look at the database they change")

handed = context.config.attributes.get("connection")
if handed is not None:
    run(handed)
else:
    with engine().begin() as own:
        run(own)
