"""Real workers, killed, stopped, cancelled, left without messages: nothing is lost, nothing is done twice."""

import os
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from app import queue
from app.database import engine as db
from app.database.models import Evaluation
from app.database.states import AuditState, EvaluationState
from app.settings import settings
from tests.support.servers import free_port, redis_server
from tests.support.worker_service import audit, diagnosis, evaluations, finished, submit, until, worker

SLOW, FAST = 0.12, 0.01
"""Seconds per step of the stand-in, which has ten."""


def in_the_middle() -> Evaluation | None:
    return next((row for row in evaluations() if row.state is EvaluationState.RUNNING and row.done >= 2), None)


def now(evaluation: Evaluation) -> Evaluation:
    return next(row for row in evaluations() if row.id == evaluation.id)


def process_of(evaluation: Evaluation) -> int:
    assert evaluation.worker is not None
    return int(evaluation.worker.rpartition(":")[2])


def each_done_once(audit_id: str) -> None:
    assert audit(audit_id).state is AuditState.FINISHED
    assert {(row.state, row.commits) for row in evaluations()} == {(EvaluationState.SUCCEEDED, 1)}


def test_a_worker_killed_in_mid_evaluation_loses_nothing(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path, precisions=("full", "rtn-int8"))
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=SLOW) as first:
        queue.ring()
        struck = until(in_the_middle)
        os.killpg(first.pid, signal.SIGKILL)
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=FAST):
        until(lambda: finished(audit_id))
    each_done_once(audit_id)
    assert now(struck).attempt == 2


def test_a_worker_killed_in_mid_diagnosis_loses_nothing(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path, diagnosed=True)
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=SLOW) as first:
        queue.ring()
        until(lambda: diagnosis().done >= 2)
        # It goes first: no evaluation was touched.
        assert {row.attempt for row in evaluations()} == {0}
        os.killpg(first.pid, signal.SIGKILL)
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=FAST):
        until(lambda: finished(audit_id))
    each_done_once(audit_id)
    row = diagnosis()
    assert (row.state, row.attempt, row.commits) == (EvaluationState.SUCCEEDED, 2, 1)


def test_a_killed_process_of_the_pool_is_replaced_and_needs_no_message_to_go_on(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=SLOW):
        struck = until(in_the_middle)
        os.kill(process_of(struck), signal.SIGKILL)
        until(lambda: finished(audit_id))
    each_done_once(audit_id)
    assert now(struck).attempt == 2


@pytest.mark.parametrize(("place", "everyone"), [("sqlite", True), ("postgresql", False)], indirect=["place"])
def test_a_worker_that_is_told_to_end_gives_its_evaluation_back_at_once(
    place: str, tmp_path: Path, everyone: bool
) -> None:
    submit(tmp_path)
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=SLOW, LETHE_LEASE_SECONDS=60) as process:
        struck = until(in_the_middle)
        told = time.monotonic()
        if everyone:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
        until(lambda: now(struck).state is EvaluationState.QUEUED, 3)
        assert process.wait(15) == 0
        assert time.monotonic() - told < 12
    row = now(struck)
    assert (row.tries, row.attempt, row.lease_until) == (0, 1, None)


def test_a_cancelled_evaluation_that_hangs_ends_with_its_process_and_others_go_on(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    (tmp_path / "original" / "behaviour").write_text("hang")
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=FAST):
        hanging = until(lambda: next((row for row in evaluations() if row.stage == "knowmem_forget"), None))
        with db.transaction() as session:
            session.execute(sa.update(Evaluation).where(Evaluation.id == hanging.id).values(cancel_requested=True))
        until(lambda: finished(audit_id))
    assert [row.state for row in evaluations()] == [EvaluationState.CANCELLED, EvaluationState.SUCCEEDED]
    assert audit(audit_id).verdict == "inconclusive"


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_an_evaluation_without_progress_is_tried_again_and_then_fails(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    (tmp_path / "original" / "behaviour").write_text("hang")
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=FAST, LETHE_STALL_SECONDS=0.5, LETHE_MAX_ATTEMPTS=2):
        until(lambda: finished(audit_id))
    hung, fine = evaluations()
    assert (hung.state, hung.error_code, hung.attempt) == (EvaluationState.FAILED, "too_slow", 2)
    assert fine.state is EvaluationState.SUCCEEDED
    assert audit(audit_id).verdict == "inconclusive"


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_broker_that_is_down_when_the_bell_rings_loses_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("LETHE_BROKER_URL", f"redis://127.0.0.1:{port}/0")
    settings.cache_clear()
    with worker(tmp_path / "log", LETHE_TEST_PAUSE=FAST):
        audit_id = submit(tmp_path)
        rung = time.monotonic()
        assert queue.ring() is False
        assert time.monotonic() - rung < 3
        with redis_server(port):
            until(lambda: finished(audit_id))
            each_done_once(audit_id)
        with redis_server(port):
            assert queue.ring() is True
            again = submit(tmp_path, checkpoints=("original", "another"))
            until(lambda: finished(again))


def test_superfluous_messages_to_several_workers_cost_nothing(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path, precisions=["full", *(f"p{number}" for number in range(4))])
    for _ in range(30):
        queue.ring()
    with worker(tmp_path / "one", LETHE_TEST_PAUSE=FAST), worker(tmp_path / "two", LETHE_TEST_PAUSE=FAST):
        until(lambda: finished(audit_id))
    each_done_once(audit_id)
    assert {row.attempt for row in evaluations()} == {1}
