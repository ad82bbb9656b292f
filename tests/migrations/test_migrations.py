"""The migrations, on both databases: up from nothing, no difference to the models, and down again."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from app.database import engine as db
from app.database import migrate
from app.database.models import AuditPart
from app.settings import settings
from tests.support.servers import fresh_database


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
        unnamed = [key for key in inspector.get_foreign_keys(table) if key["name"] is None]
        for key in unnamed:  # SQLite's, of a column that was added in place: reflection does not see its name
            column, other = key["constrained_columns"][0], key["referred_table"]
            with empty.connect() as connection:
                ddl = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table})
            assert f"CONSTRAINT fk_{table}_{column}_{other} REFERENCES" in ddl


def test_data_of_the_first_schema_goes_up_and_down(empty: sa.Engine) -> None:
    migrate.upgrade("0001")
    tables_then = sa.MetaData()
    tables_then.reflect(empty)
    now = sa.func.current_timestamp()
    rows: dict[str, dict[str, object]] = {
        "checkpoints": {"id": "c", "name": "n", "uri": "/u", "digest": "d", "architecture": "a", "parameters": 1,
                        "dtype": "F32", "created_at": now},
        "forget_sets": {"id": "f", "name": "n", "source": "upload", "digest": "d", "info": {}, "created_at": now},
        "audits": {"id": "a", "name": "n", "state": "finished", "forget_set_id": "f", "original_id": "c",
                   "unlearned_id": "c", "plan": {}, "policy": {}, "policy_digest": "p", "created_at": now},
        "evaluations": {"id": "e", "key": "k", "checkpoint_id": "c", "forget_set_digest": "d", "precision": "full",
                        "metrics": [], "seed": 0, "state": "failed", "attempt": 1, "tries": 1,
                        "cancel_requested": False, "done": 0, "total": 0, "commits": 0, "created_at": now},
        "audit_parts": {"audit_id": "a", "role": "original", "precision": "full", "position": 0, "evaluation_id": "e",
                        "reused": False},
    }  # fmt: skip
    with empty.begin() as connection:
        for name, row in rows.items():
            connection.execute(sa.insert(tables_then.tables[name]).values(row))
    migrate.upgrade()
    with db.reading() as session:
        assert [(part.audit_id, part.end_state) for part in session.scalars(sa.select(AuditPart))] == [("a", None)]
    command.downgrade(migrate.config(), "0001")
    with empty.connect() as connection:
        assert connection.execute(sa.select(tables_then.tables["audit_parts"])).one().role == "original"
