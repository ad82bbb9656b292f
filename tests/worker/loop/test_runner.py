"""From the claim to the end of an attempt, with a stand-in for the engine, on both databases."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog.testing

from app.checkpoints.format import digests
from app.checkpoints.format.digests import Expected
from app.checkpoints.format.files import inspect
from app.database import engine as db
from app.database import leases
from app.database.attempts import Claim, Progress
from app.database.models import Evaluation, ForgetSet, ForgetSetFile, Report
from app.database.states import AuditState, EvaluationState
from app.errors import EvaluationFailed
from app.evidence.diagnosis import Diagnosis
from app.judgement.verdict import Failure
from app.reports import build
from app.reports.model import AuditReport
from app.settings import settings
from tests.support import worker_service
from tests.support.checkpoints import write_checkpoint
from tests.support.stand_ins import quick
from tests.support.worker_service import audit, evaluations, submit, until
from worker.loop import outcomes, runner
from worker.loop.reconcile import reconcile


@pytest.fixture(autouse=True)
def _no_shutdown() -> Iterator[None]:
    yield
    runner.SHUTDOWN.clear()


def report_of(audit_id: str) -> Report | None:
    with db.reading() as session:
        return session.get(Report, audit_id)


def change(evaluation: Evaluation, **values: Any) -> None:
    with db.transaction() as session:
        session.execute(sa.update(Evaluation).where(Evaluation.id == evaluation.id).values(**values))


def test_draining_does_all_there_is_and_writes_the_report(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path, precisions=("full", "rtn-int8"))
    assert runner.drain(quick.evaluate) == 4
    assert {(row.state, row.commits) for row in evaluations()} == {(EvaluationState.SUCCEEDED, 1)}
    assert audit(audit_id).state is AuditState.FINISHED
    assert report_of(audit_id) is not None
    assert runner.drain(quick.evaluate) == 0


def test_an_audit_whose_evaluations_are_done_is_concluded_by_its_diagnosis(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path, diagnosed=True)
    with db.transaction() as session:
        claim = leases.claim_diagnosis(session, "slow")
    assert claim is not None
    assert audit(audit_id).state is AuditState.RUNNING
    assert runner.drain(quick.evaluate, quick.diagnose) == 2
    assert audit(audit_id).state is AuditState.RUNNING
    reconcile()
    assert report_of(audit_id) is None
    runner.run_diagnosis(claim, quick.diagnose)
    found = report_of(audit_id)
    assert found is not None
    diagnosed = AuditReport.model_validate_json(found.body).diagnosis
    assert isinstance(diagnosed, Diagnosis)
    assert diagnosed.precisions == ["rtn-int4"]


def test_a_failed_diagnosis_does_not_fail_its_audit(place: str, tmp_path: Path) -> None:
    audit_id, without = submit(tmp_path, diagnosed=True), submit(tmp_path)

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    runner.drain(quick.evaluate, failing)
    one, other = report_of(audit_id), report_of(without)
    assert one is not None
    assert other is not None
    explained, unexplained = (AuditReport.model_validate_json(row.body) for row in (one, other))
    assert isinstance(explained.diagnosis, Failure)
    assert explained.diagnosis.code == "engine_error"
    assert unexplained.diagnosis is None
    # It decides nothing.
    assert (explained.verdict, explained.reasons) == (unexplained.verdict, unexplained.reasons)


def test_an_evaluation_that_two_audits_share_runs_once_and_concludes_both(place: str, tmp_path: Path) -> None:
    first = submit(tmp_path)
    second = submit(tmp_path, checkpoints=("original", "candidate"))
    assert runner.drain(quick.evaluate) == 3
    assert worker_service.finished(first, second)


def test_progress_reaches_the_row(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))

    def watching(*args: Any, progress: Any, **kwargs: Any) -> Any:
        progress("verbmem", 7, 100)
        until(lambda: evaluations()[0].done == 7, 5)
        assert (evaluations()[0].stage, evaluations()[0].total) == ("verbmem", 100)
        return quick.evaluate(*args, progress=progress, **kwargs)

    runner.drain(watching)
    assert evaluations()[0].state is EvaluationState.SUCCEEDED


def test_a_changed_checkpoint_fails_its_evaluations_and_the_audit_still_ends(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    write_checkpoint(tmp_path / "unlearned", value=1)
    runner.drain(quick.evaluate)
    assert [row.error_code for row in evaluations()] == [None, "checkpoint_changed"]
    assert audit(audit_id).verdict == "inconclusive"


def test_what_an_artifact_is_said_to_be_of_is_read_and_must_not_change_either(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("artifact", "base"))
    with db.transaction() as session:
        artifact, base = session.scalars(sa.select(Evaluation).order_by(Evaluation.created_at, Evaluation.id))
        artifact.base_id = base.checkpoint_id
    seen = []

    def seeing(checkpoint: Path, *args: Any, base: Path | None, **kwargs: Any) -> Any:
        seen.append((checkpoint.name, base and base.name))
        return quick.evaluate(checkpoint, *args, base=base, **kwargs)

    write_checkpoint(tmp_path / "base", value=1)
    runner.drain(seeing)
    assert seen == [("artifact", "base"), ("base", None)]
    assert [row.error_code for row in evaluations()] == ["checkpoint_changed"] * 2


def test_tokenizer_and_end_tokens_of_the_original_are_named_to_the_engine_with_their_digest(
    place: str, tmp_path: Path
) -> None:
    submit(tmp_path)
    with db.transaction() as session:
        original, unlearned = session.scalars(sa.select(Evaluation).order_by(Evaluation.created_at, Evaluation.id))
        unlearned.interface_id = original.checkpoint_id
    seen = []

    def seeing(checkpoint: Path, *args: Any, interface: Path | None, expected: Expected, **kwargs: Any) -> Any:
        seen.append((checkpoint.name, interface and interface.name, expected.interface))
        return quick.evaluate(checkpoint, *args, **kwargs)

    runner.drain(seeing)
    whose = digests.interface(inspect(tmp_path / "original"))
    assert seen == [("original", None, None), ("unlearned", "original", whose)]


def test_a_missing_checkpoint_fails(place: str, tmp_path: Path) -> None:
    submit(tmp_path)
    shutil.rmtree(tmp_path / "original")
    runner.drain(quick.evaluate)
    assert [row.error_code for row in evaluations()] == ["checkpoint_missing", None]


def test_a_forget_set_purged_while_its_audit_waits_fails_it(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    with db.transaction() as session:
        session.execute(sa.delete(ForgetSetFile))
        session.execute(sa.update(ForgetSet).values(purged_at=db.utcnow()))
    runner.drain(quick.evaluate)
    assert {row.error_code for row in evaluations()} == {"forget_set_purged"}
    assert audit(audit_id).verdict == "inconclusive"


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (EvaluationFailed("not_quantized", "two modules are not on the grid"), "not_quantized", "two modules"),
        (OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA"),
        (ZeroDivisionError("division by zero"), "engine_error", "ZeroDivisionError: division by zero"),
        (KeyError("Who painted the old mill?"), "engine_error", "KeyError: (the message is withheld"),
    ],
)
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_an_error_of_the_engine_keeps_its_code_and_quotes_no_forget_set(
    place: str, tmp_path: Path, error: Exception, code: str, detail: str
) -> None:
    submit(tmp_path)

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    with structlog.testing.capture_logs() as logs:
        runner.drain(failing)
    assert {(row.state, row.error_code) for row in evaluations()} == {(EvaluationState.FAILED, code)}
    assert (evaluations()[0].error_detail or "").startswith(detail)
    assert "old mill" not in str(logs)
    assert [row.attempt for row in evaluations()] == [1, 1]


def test_a_cancelled_evaluation_stops_at_its_next_progress(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path, checkpoints=("one", "one"))

    def cancelled(*args: Any, progress: Any, **kwargs: Any) -> Any:
        change(evaluations()[0], cancel_requested=True)
        _go_on(progress)

    runner.drain(cancelled)
    row = evaluations()[0]
    assert (row.state, row.cancel_requested, row.result) == (EvaluationState.CANCELLED, False, None)
    assert worker_service.finished(audit_id)


def test_an_attempt_that_lost_its_lease_stops_and_leaves_the_row_alone(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))

    def lost(*args: Any, progress: Any, **kwargs: Any) -> Any:
        change(evaluations()[0], attempt=7, worker="another", lease_until=db.clock() + 60)
        _go_on(progress)

    runner.drain(lost)
    row = evaluations()[0]
    assert (row.state, row.attempt, row.worker) == (EvaluationState.RUNNING, 7, "another")


def test_a_result_of_an_attempt_that_lost_its_lease_is_dropped(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))

    def slow(*args: Any, **kwargs: Any) -> Any:
        result = quick.evaluate(*args, **kwargs)
        change(evaluations()[0], attempt=7, lease_until=db.clock() + 60)
        return result

    runner.drain(slow)
    row = evaluations()[0]
    assert (row.state, row.result, row.commits) == (EvaluationState.RUNNING, None, 0)


def test_a_shutdown_gives_the_evaluation_back_and_claims_no_other(place: str, tmp_path: Path) -> None:
    submit(tmp_path)

    def ended(*args: Any, progress: Any, **kwargs: Any) -> Any:
        runner.SHUTDOWN.set()
        _go_on(progress)

    assert runner.drain(ended) == 1
    assert [(row.state, row.tries) for row in evaluations()] == [(EvaluationState.QUEUED, 0)] * 2


def _go_on(progress: Any) -> None:
    for step in range(100):
        progress("verbmem", step, 100)
        threading.Event().wait(0.1)
    raise AssertionError("nobody stopped it")


def test_a_report_that_cannot_be_built_does_not_cost_the_evaluation_and_is_built_later(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_id = submit(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(build, "_report", lambda *args: 1 / 0)
        runner.drain(quick.evaluate)
    assert {row.state for row in evaluations()} == {EvaluationState.SUCCEEDED}
    assert audit(audit_id).state is AuditState.RUNNING
    assert reconcile() == 0
    assert audit(audit_id).state is AuditState.FINISHED
    assert report_of(audit_id) is not None


def test_reconciling_ends_what_used_up_its_tries_and_concludes_its_audit(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    first, second = evaluations()
    exhausted = {"state": "running", "tries": settings().max_attempts, "lease_until": db.clock() - 1}
    change(first, **exhausted)
    assert reconcile() == 1
    change(second, **exhausted)
    assert reconcile() == 0
    assert {row.error_code for row in evaluations()} == {"worker_lost"}
    assert audit(audit_id).verdict == "inconclusive"


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_a_database_that_drops_all_connections_costs_no_result(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    drop = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        result = quick.evaluate(*args, pause=0.1, **kwargs)
        administrator = sa.create_engine(settings().resolved_database_url)
        with administrator.connect() as connection:
            connection.execute(drop)
        administrator.dispose()
        return result

    runner.drain(interrupted)
    assert [(row.state, row.attempt) for row in evaluations()] == [(EvaluationState.SUCCEEDED, 1)]


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_reconciling_rings_only_where_something_waits_and_someone_is_idle(place: str, tmp_path: Path) -> None:
    messages = settings().data_dir / "broker" / "messages"

    def count() -> int:
        return len(os.listdir(messages)) if messages.exists() else 0

    reconcile()
    assert count() == 0
    submit(tmp_path)
    reconcile(idle=False)
    assert count() == 0
    for _ in range(100):
        reconcile()
    assert 1 <= count() <= 8


def test_many_threads_that_end_evaluations_of_many_audits_at_once_do_not_deadlock(place: str, tmp_path: Path) -> None:
    audits = [submit(tmp_path, checkpoints=("shared", f"own{number}")) for number in range(6)]
    claims = []
    with db.transaction() as session:
        while (claim := leases.claim(session, "w")) is not None:
            claims.append(claim)
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(claims))

    def end(claim: Claim) -> None:
        try:
            barrier.wait()
            with db.transaction() as session:
                leases.beat(session, claim, Progress("verbmem", 1, 2))
            outcomes.fail(claim, "engine_error", "all at once")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=end, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert worker_service.finished(*audits)
