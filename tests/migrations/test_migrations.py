"""The migrations, on both databases: up from nothing, no difference to the models, and down again."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from app import db, migrate
from app.settings import settings
from tests.servers import fresh_database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    for name in [name for name in os.environ if name.startswith("LETHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LETHE_DATA_DIR", str(tmp_path))
    with ExitStack() as stack:
        if request.param == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_url")))
            monkeypatch.setenv("LETHE_DATABASE_URL", url)
        settings.cache_clear()
        db.engine.cache_clear()
        yield db.engine()
        db.engine().dispose()
    settings.cache_clear()
    db.engine.cache_clear()


def tables(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names()) - {"alembic_version"}


def test_upgrade_makes_the_tables_of_the_models_and_downgrade_removes_them(empty: sa.Engine) -> None:
    with empty.connect() as connection:
        assert not migrate.is_current(connection)
    migrate.upgrade()
    migrate.upgrade()
    with empty.connect() as connection:
        assert migrate.is_current(connection)
    assert tables(empty) == set(db.Base.metadata.tables)
    command.check(migrate.config())
    command.downgrade(migrate.config(), "base")
    assert tables(empty) == set()
    migrate.upgrade()
    assert tables(empty) == set(db.Base.metadata.tables)


def test_a_failing_migration_leaves_nothing_behind(empty: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("in the middle")

    migrate.upgrade("base")
    make, calls = op.create_table, iter(range(100))
    monkeypatch.setattr(op, "create_table", lambda *a, **k: fail() if next(calls) == 5 else make(*a, **k))
    with pytest.raises(RuntimeError, match="in the middle"):
        migrate.upgrade()
    assert tables(empty) == set()


def test_constraints_have_the_names_that_later_migrations_need(empty: sa.Engine) -> None:
    migrate.upgrade()
    inspector = sa.inspect(empty)
    for table in sorted(tables(empty)):
        assert inspector.get_pk_constraint(table)["name"] == f"pk_{table}"
        assert all(key["name"] for key in inspector.get_foreign_keys(table))
