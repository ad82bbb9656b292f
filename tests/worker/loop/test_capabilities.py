"""What a worker says of itself."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.catalog.precisions import PRECISIONS, parse
from app.database import engine as db
from app.database import leases
from app.database.models import Worker
from app.database.states import AuditState, EvaluationState
from app.errors import EvaluationFailed
from app.evidence.artifacts import LIBRARIES
from app.workers import service as workers
from tests.support import worker_service
from tests.support.stand_ins import quick
from worker.engine import precisions as registry
from worker.engine.quantizers import availability
from worker.loop import capabilities, runner
from worker.loop.reconcile import reconcile


def rows() -> list[Worker]:
    with db.reading() as session:
        return list(session.scalars(sa.select(Worker)))


def test_a_worker_tells_what_it_can_apply_and_is_gone_when_it_leaves(place: str) -> None:
    capabilities.report()
    capabilities.report()
    (row,) = rows()
    assert row.id == capabilities.identity()
    assert list(row.precisions) == [*PRECISIONS, *LIBRARIES]
    assert row.precisions["full"] is None
    assert "torch" in row.libraries
    capabilities.leave()
    assert rows() == []


def test_a_missing_library_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_present", lambda name: name not in ("llmcompressor", "torchao"))
    found = {item.precision.name: item.reason for item in availability.availability()}
    assert found["rtn-int4"] is None
    assert found["gguf-q4_0"] is None
    for name in ("gptq-int4", "awq-int4-channel", "mxfp4"):
        assert found[name] == "llmcompressor not installed on this worker; pip install 'lethe-audit[worker]'"
    assert found["torchao-int4"] == "torchao not installed on this worker; pip install 'lethe-audit[worker,torchao]'"


PLAN = ("full", "gptq-int4@forget", "gguf-q4_0", "gptq-int4")


@pytest.fixture
def without_llmcompressor(monkeypatch: pytest.MonkeyPatch) -> None:
    """This worker lacks a library, and rings nobody."""
    monkeypatch.setattr(availability, "_present", lambda name: name != "llmcompressor")


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The rings of this worker."""
    rung: list[bool] = []
    monkeypatch.setattr(runner, "ring", lambda: rung.append(True))
    monkeypatch.setattr(runner, "_passed_on", float("-inf"))
    return rung


def another_worker_can(**precisions: str | None) -> None:
    said = workers.WorkerReport("gpu:1", "gpu", "0.2.0", {}, dict.fromkeys(PRECISIONS) | precisions)
    with db.transaction() as session:
        workers.report(session, said)
        session.execute(sa.update(Worker).values(seen=Worker.seen + 1800))  # a slow test must not lose it


def states() -> dict[str, EvaluationState]:
    return {row.precision: row.state for row in worker_service.evaluations()}


def test_what_this_worker_cannot_apply_is_left_to_one_that_can(
    place: str, tmp_path: Path, without_llmcompressor: None, rings: list[bool]
) -> None:
    audit_id = worker_service.submit(tmp_path, ("one", "one"), PLAN)
    another_worker_can()
    done, waits = EvaluationState.SUCCEEDED, EvaluationState.QUEUED
    assert runner.drain(quick.evaluate) == 2
    assert states() == {"full": done, "gguf-q4_0": done, "gptq-int4@forget": waits, "gptq-int4": waits}
    assert worker_service.audit(audit_id).state is AuditState.RUNNING
    with db.transaction() as session:
        assert leases.due(session) == 2
        other = leases.claim(session, "gpu:1")
    assert other is not None
    assert other.precision == "gptq-int4@forget"


def test_a_ring_that_this_worker_cannot_answer_is_passed_on_once(
    place: str, tmp_path: Path, without_llmcompressor: None, rings: list[bool]
) -> None:
    worker_service.submit(tmp_path, ("one", "one"), ("gptq-int4",))
    another_worker_can()
    assert [runner.drain(quick.evaluate), runner.drain(quick.evaluate)] == [0, 0]
    assert rings == [True]
    assert reconcile() == 0


def test_what_no_live_worker_can_apply_is_taken_and_fails_with_the_reason(
    place: str, tmp_path: Path, without_llmcompressor: None
) -> None:
    """Also what another could until it was lost: nothing waits for a worker that may never come back."""
    audit_id = worker_service.submit(tmp_path, ("one", "one"), ("full", "gptq-int4@forget"))
    another_worker_can()
    with db.transaction() as session:
        session.execute(sa.update(Worker).values(seen=Worker.seen - 3600))
    assert reconcile() == 2

    def evaluate(checkpoint: Path, precision: str, *args: Any, **kwargs: Any) -> Any:
        reason = availability.unavailable(parse(precision))
        if reason is not None:
            raise EvaluationFailed("precision_unavailable", f"{precision}: {reason}")
        return quick.evaluate(checkpoint, precision, *args, **kwargs)

    assert runner.drain(evaluate) == 2
    row = next(row for row in worker_service.evaluations() if row.precision != "full")
    assert (row.state, row.error_code) == (EvaluationState.FAILED, "precision_unavailable")
    assert "llmcompressor not installed" in (row.error_detail or "")
    assert worker_service.finished(audit_id)


def test_the_engine_refuses_what_this_machine_cannot_apply(without_llmcompressor: None) -> None:
    from tests.support.factories import tiny_model

    with pytest.raises(EvaluationFailed, match="gptq-int4@forget: llmcompressor not installed"):
        registry.apply(tiny_model(), parse("gptq-int4@forget"))


def test_a_precision_of_a_newer_lethe_is_left_to_a_worker_that_knows_it(place: str, tmp_path: Path) -> None:
    worker_service.submit(tmp_path, ("one", "one"), ("full", "int4-of-tomorrow"))
    another_worker_can(**{"int4-of-tomorrow": None})
    assert runner.drain(quick.evaluate) == 1
    assert states()["int4-of-tomorrow"] is EvaluationState.QUEUED
