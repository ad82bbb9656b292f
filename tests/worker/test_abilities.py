"""What a worker says of itself."""

import pytest
import sqlalchemy as sa

from app import db
from app.artifacts import LIBRARIES
from app.models import Worker
from app.precisions import PRECISIONS
from worker import abilities
from worker.engine.precision import availability


def rows() -> list[Worker]:
    with db.reading() as session:
        return list(session.scalars(sa.select(Worker)))


def test_a_worker_tells_what_it_can_apply_and_is_gone_when_it_leaves(place: str) -> None:
    abilities.report()
    abilities.report()
    (row,) = rows()
    assert row.id == abilities.identity()
    assert list(row.precisions) == [*PRECISIONS, *LIBRARIES]
    assert row.precisions["full"] is None
    assert "torch" in row.libraries
    abilities.leave()
    assert rows() == []


def test_a_missing_library_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_present", lambda name: name != "llmcompressor")
    found = {item.precision.name: item.reason for item in availability.availability()}
    assert found["rtn-int4"] is None
    assert found["gguf-q4_0"] is None
    for name in ("gptq-int4", "awq-int4-channel", "mxfp4"):
        assert found[name] == "llmcompressor not installed on this worker; pip install 'lethe-audit[worker]'"
