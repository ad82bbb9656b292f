"""A database that the version before 0009 made is brought up to date, and all that it holds reads as it did.

`tests/data/databases/0008.sql` is the dump of its SQLite database after a run of its own service and worker on tiny
models: an audit of two precisions and an artifact, judged again once, and three remediations of it (one recipe, whose
model was deleted; the ladder; one that was cancelled). `0008.json` is what its API answered then.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from app.database import engine as db
from app.database import migrate
from app.settings import settings
from tests.support.places import DATABASES
from tests.support.running_service import running_service
from tests.support.servers import fresh_database
from tests.support.service import Service
from tests.support.worker_service import forget_settings

DUMP = DATABASES / "0008.sql"
THEN: dict[str, Any] = json.loads(DUMP.with_suffix(".json").read_text())
ID: dict[str, str] = THEN["ids"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database with the dump's rows and the dump's schema."""
    with ExitStack() as stack:
        if request.param == "postgresql":
            found = stack.enter_context(fresh_database(request.getfixturevalue("postgres_url")))
        else:
            found = f"sqlite:///{tmp_path / 'before.db'}"
            with closing(sqlite3.connect(tmp_path / "before.db")) as made:
                made.executescript(DUMP.read_text())
        monkeypatch.setenv("LETHE_DATABASE_URL", found)
        monkeypatch.setenv("LETHE_DATA_DIR", str(tmp_path / "data"))
        forget_settings()
        if request.param == "postgresql":
            _copy_rows()
        yield settings().resolved_database_url
        db.engine().dispose()
        forget_settings()


@pytest.fixture
def service(url: str, tmp_path: Path) -> Iterator[Service]:
    """Today's service on that database, with a key for everything."""
    folder = tmp_path / "service"
    folder.mkdir()
    with running_service(folder, database_url=url) as service:
        service.begin()
        yield service


def _copy_rows() -> None:
    """Put the dump's rows into a schema of its revision, whose columns say how SQLite's values are to be read."""
    migrate.upgrade("0008")
    tables = sa.MetaData()
    tables.reflect(db.engine())
    with closing(sqlite3.connect(":memory:")) as made, db.engine().begin() as connection:
        made.executescript(DUMP.read_text())
        made.row_factory = sqlite3.Row
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            rows = [dict(row) for row in made.execute(f"SELECT * FROM {table.name}")]
            for row in rows:
                for column in table.columns:
                    row[column.name] = _read(row[column.name], column.type)
            if rows:
                connection.execute(sa.insert(table), rows)
            if isinstance(table.columns.get("id", sa.null()).type, sa.Integer):
                last = sa.func.max(table.columns["id"])
                connection.execute(sa.select(sa.func.setval(f"{table.name}_id_seq", last)))


def _read(value: Any, kind: sa.types.TypeEngine[Any]) -> Any:
    if value is None:
        return None
    if isinstance(kind, sa.JSON):
        return json.loads(value)
    if isinstance(kind, sa.DateTime):
        return f"{value}+00:00"
    return bool(value) if isinstance(kind, sa.Boolean) else value


def _all_rows() -> dict[str, list[Any]]:
    """Table -> its rows; the revision left out."""
    tables = sa.MetaData()
    tables.reflect(db.engine())
    with db.engine().connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)).mappings()))
            for table in tables.sorted_tables
            if table.name != "alembic_version"
        }


def _today(content: Any) -> Any:
    """What the version before answered, by today's names."""
    if isinstance(content, list):
        return [_today(one) for one in content]
    if not isinstance(content, dict):
        return content
    names = {"artifact": "model"}
    if {"method", "base"} <= set(content):
        names |= {"base": "loss"}
    if {"optimizer", "gradients"} <= set(content):
        names |= {"held_rows": "frozen_rows", "kept": "last_good"}
    return {names.get(name, name): _today(value) for name, value in content.items()}


def test_audits_and_what_they_refer_to_read_as_before(service: Service) -> None:
    for path in (
        "/v1/audits",
        "/v1/checkpoints",
        "/v1/forget-sets",
        f"/v1/audits/{ID['audit']}",
        f"/v1/audits/{ID['again']}",
    ):
        assert service.get(path).json() == THEN["answers"][path], path


def test_reports_have_the_bytes_and_the_etags_that_they_had(service: Service) -> None:
    assert len(THEN["reports"]) == 4
    for path, then in THEN["reports"].items():
        response = service.get(path)
        assert (response.headers["etag"], sha256(response.content).hexdigest()) == (then["etag"], then["sha256"])
        assert service.get(path, headers={"If-None-Match": then["etag"]}).status_code == 304
        assert service.get(path, headers={"Accept": "text/markdown"}).text.startswith("# ")


def test_remediations_read_as_before_by_todays_names(service: Service) -> None:
    for path, then in THEN["answers"].items():
        if not path.startswith("/v1/remediations") or path.endswith("/report"):
            continue
        expected = _today(then)
        if "links" in then:
            expected["links"]["model"] = f"{path}/model"
        assert service.get(path).json() == expected, path
    of_audit = service.get("/v1/remediations", params={"audit": ID["audit"], "state": "finished"}).json()
    assert [item["loss"] for item in of_audit["items"]] == ["npo", "npo"]
    deleted = service.get(f"/v1/remediations/{ID['one']}/events").text
    assert "event: model_deleted" in deleted
    assert "artifact" not in deleted.replace("/artifacts/", "/")


def test_reports_of_remediations_read_as_before_by_todays_names(service: Service) -> None:
    for remediation in (ID["one"], ID["auto"]):
        path = f"/v1/remediations/{remediation}/report"
        expected = _today(THEN["answers"][path])
        expected |= {"schema": "lethe-remediation-2", "training": expected.pop("loss")}
        assert service.get(path).json() == expected
        assert "## Recipe: sure over " in service.get(path, params={"format": "markdown"}).text


def test_a_new_audit_can_be_queued_beside_them(service: Service) -> None:
    audit = service.audit(forget_set=ID["forget_set"])
    assert audit["state"] == "queued"
    listed = [item["id"] for item in service.get("/v1/audits").json()["items"]]
    assert listed == [audit["id"], *(item["id"] for item in THEN["answers"]["/v1/audits"]["items"])]


def test_down_again_every_row_is_what_it_was(url: str) -> None:
    with db.engine().begin() as connection:
        for table, code in (("evaluations", "artifacts_unavailable"), ("trials", "artifacts_full")):
            connection.execute(sa.text(f"UPDATE {table} SET error_code = '{code}'"))
        connection.execute(
            sa.text("UPDATE remediation_events SET data = :data WHERE kind = 'finished'"),
            {"data": json.dumps({"error_code": "artifacts_full"})},
        )
    before = _all_rows()
    migrate.upgrade()
    after = _all_rows()
    for old in ("artifacts_unavailable", "artifacts_full", "artifact_deleted", "'base'", "held_rows", "artifact_bytes"):
        assert any(old in row for rows in before.values() for row in rows), old
        assert not any(old in row for name in ("trials", "remediations", "remediation_events") for row in after[name])
    command.downgrade(migrate.config(), "0008")
    assert _all_rows() == before
