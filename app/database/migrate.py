"""The database's schema: brought up to date by Alembic's migrations, wherever the package is installed."""

from importlib import resources

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.database.engine import engine

_LOCK = 0x1E74E
"""PostgreSQL's advisory lock that migrations hold: API and workers may all start at once."""


def config() -> Config:
    """Alembic's configuration for the migrations that came with this package."""
    found = Config()
    found.set_main_option("script_location", str(resources.files("migrations")).replace("%", "%%"))
    return found


def upgrade(revision: str = "head") -> None:
    """Bring the database of the settings up to date, in one transaction; does nothing if it already is."""
    with engine().begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        ours = config()
        ours.attributes["connection"] = connection
        command.upgrade(ours, revision)


def is_current(connection: sa.Connection) -> bool:
    """Whether the database has exactly the schema that this code expects."""
    expected = ScriptDirectory.from_config(config()).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == expected
