"""Who may work on an evaluation, on both databases."""

import threading
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.database import engine as db
from app.database import leases
from app.database.attempts import Beat, Claim, Progress
from app.database.engine import transaction
from app.database.models import Audit, AuditEvent, Evaluation
from app.database.states import AuditState, EvaluationState
from app.settings import settings
from tests.support.worker_service import audit, evaluations, submit, until

STEP = Progress("knowmem_forget", 3, 10)


def claim(worker: str = "w", prefer: str | None = None) -> Claim | None:
    with transaction() as session:
        return leases.claim(session, worker, prefer)


def must_claim(worker: str = "w", prefer: str | None = None) -> Claim:
    found = claim(worker, prefer)
    assert found is not None
    return found


def expire() -> None:
    with transaction() as session:
        session.execute(sa.update(Evaluation).values(lease_until=db.clock() - 1))


def test_a_claim_says_all_that_the_engine_needs_and_starts_the_audit(place: str, tmp_path: Path) -> None:
    audit_id = submit(tmp_path)
    first = must_claim("somebody")
    assert first.checkpoint_uri == str(tmp_path / "original")
    assert (first.precision, first.metrics, first.attempt, first.worker) == ("full", ("knowmem_forget",), 1, "somebody")
    assert audit(audit_id).state is AuditState.RUNNING
    must_claim()
    with db.reading() as session:
        kinds = session.scalars(sa.select(AuditEvent.kind).where(AuditEvent.audit_id == audit_id)).all()
    assert kinds == ["running"]
    assert claim() is None


def test_a_claim_prefers_the_checkpoint_that_the_worker_read_last(place: str, tmp_path: Path) -> None:
    submit(tmp_path, precisions=("full", "rtn-int8", "rtn-int4"))
    checkpoints = [row.checkpoint_id for row in evaluations()]
    got = must_claim(prefer=checkpoints[-1])
    assert got.checkpoint_uri == str(tmp_path / "unlearned")
    assert must_claim(prefer=got.checkpoint_id).checkpoint_uri == str(tmp_path / "unlearned")
    assert must_claim(prefer="of nobody").checkpoint_uri == str(tmp_path / "original")


def test_of_many_claims_at_once_each_evaluation_is_claimed_by_one(place: str, tmp_path: Path) -> None:
    precisions = [f"p{number}" for number in range(12)]
    submit(tmp_path, precisions=precisions)
    claimed: list[str] = []
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while (mine := claim(name)) is not None:
                claimed.append(mine.evaluation_id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(Counter(claimed).values()) == [1] * 24
    assert {row.attempt for row in evaluations()} == {1}


def test_beats_keep_a_lease_and_carry_the_progress(place: str, tmp_path: Path) -> None:
    submit(tmp_path)
    mine = must_claim()
    until(lambda: _lease_left(mine) < settings().lease_seconds - 0.2, 5)
    with transaction() as session:
        assert leases.beat(session, mine, STEP) is Beat.GO_ON
    assert _lease_left(mine) > settings().lease_seconds - 0.2
    row = evaluations()[0]
    assert (row.stage, row.done, row.total) == STEP


def _lease_left(mine: Claim) -> float:
    with db.reading() as session:
        left = sa.select(Evaluation.lease_until - db.clock()).where(Evaluation.id == mine.evaluation_id)
        return session.execute(left).scalar_one() or 0.0


def test_an_expired_lease_is_claimed_again_and_the_stale_attempt_can_do_nothing(place: str, tmp_path: Path) -> None:
    submit(tmp_path, precisions=("full",))
    stale, other = must_claim("stale"), must_claim()
    assert claim() is None
    expire()
    fresh = must_claim("fresh")
    assert (fresh.evaluation_id, fresh.attempt) == (stale.evaluation_id, 2)
    with transaction() as session:
        assert leases.beat(session, stale, STEP) is Beat.LOST
        assert leases.release(session, stale) is None
        assert leases.fail(session, stale, "engine_error", "too late", retry=True) is None
        assert leases.fail(session, stale, "engine_error", "too late") is None
        assert leases.finish(session, stale, {"scores": "stale"}) is False
        assert leases.finish(session, fresh, {"scores": "fresh"}) is True
        assert leases.finish(session, fresh, {"scores": "again"}) is False
    row = evaluations()[0]
    assert (row.result, row.commits, row.state) == ({"scores": "fresh"}, 1, EvaluationState.SUCCEEDED)
    assert other.evaluation_id != fresh.evaluation_id


def test_an_attempt_whose_lease_ran_out_unclaimed_may_still_finish(place: str, tmp_path: Path) -> None:
    submit(tmp_path)
    mine = must_claim()
    expire()
    with transaction() as session:
        assert leases.beat(session, mine, STEP) is Beat.GO_ON
        assert leases.finish(session, mine, {}) is True


def test_tries_run_out_and_the_evaluation_fails_with_the_last_worker_named(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    for number in range(settings().max_attempts):
        assert must_claim(f"worker-{number}").attempt == number + 1
        with transaction() as session:
            assert leases.end_one_lost(session) is None
        expire()
    assert claim() is None
    with transaction() as session:
        assert leases.due(session) == 0
        assert leases.end_one_lost(session) is not None
        assert leases.end_one_lost(session) is None
    row = evaluations()[0]
    assert (row.state, row.error_code) == (EvaluationState.FAILED, "worker_lost")
    assert "worker-2" in (row.error_detail or "")


def test_a_retried_failure_queues_until_the_tries_are_used_up(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    states = []
    while (mine := claim()) is not None:
        with transaction() as session:
            states.append(leases.fail(session, mine, "too_slow", "no progress", retry=True))
    assert states == [EvaluationState.QUEUED, EvaluationState.QUEUED, EvaluationState.FAILED]
    assert evaluations()[0].error_code == "too_slow"


def test_a_release_does_not_count_as_a_try(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    for number in range(2 * settings().max_attempts):
        mine = must_claim()
        assert mine.attempt == number + 1
        with transaction() as session:
            assert leases.release(session, mine) is EvaluationState.QUEUED
    assert evaluations()[0].tries == 0


def test_a_cancelled_evaluation_is_told_so_and_ends_cancelled_when_it_is_released(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    mine = must_claim()
    _request_cancel()
    with transaction() as session:
        assert leases.beat(session, mine, STEP) is Beat.CANCEL
        assert leases.release(session, mine) is EvaluationState.CANCELLED
    assert claim() is None


def test_a_cancelled_evaluation_whose_worker_is_lost_is_not_claimed_again(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    must_claim()
    _request_cancel()
    expire()
    assert claim() is None
    with transaction() as session:
        assert leases.end_one_lost(session) is not None
    assert evaluations()[0].state is EvaluationState.CANCELLED


def test_an_evaluation_that_is_wanted_again_while_it_is_being_cancelled_goes_on(place: str, tmp_path: Path) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    mine = must_claim()
    _request_cancel()
    with transaction() as session:
        leases.requeue(session.scalars(sa.select(Evaluation)).one())
    with transaction() as session:
        assert leases.release(session, mine) is EvaluationState.QUEUED


def test_a_failed_evaluation_that_is_wanted_again_gets_its_tries_back_but_keeps_its_fence(
    place: str, tmp_path: Path
) -> None:
    submit(tmp_path, checkpoints=("one", "one"))
    stale = must_claim()
    with transaction() as session:
        leases.fail(session, stale, "engine_error", "a bug")
    with transaction() as session:
        leases.requeue(session.scalars(sa.select(Evaluation)).one())
    again = must_claim()
    row = evaluations()[0]
    assert (again.attempt, row.tries, row.error_code) == (2, 1, None)
    with transaction() as session:
        assert leases.finish(session, stale, {}) is False


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_a_claim_does_not_wait_for_a_row_that_another_transaction_holds(place: str, tmp_path: Path) -> None:
    submit(tmp_path)
    with transaction() as first, transaction() as second:
        one, two = leases.claim(first, "one"), _claim_other(second)
        assert one is not None
        assert two is not None
        assert one.evaluation_id != two


def _claim_other(session: sa.orm.Session) -> str | None:
    # Not leases.claim: it goes on to the audit, which the first transaction rightly holds.
    chosen = sa.select(Evaluation.id).where(leases._claimable(Evaluation)).limit(1).with_for_update(skip_locked=True)
    return session.scalars(chosen).first()


def test_a_live_audit_with_nothing_left_to_wait_for_is_found(place: str, tmp_path: Path) -> None:
    waiting, overdue = submit(tmp_path), submit(tmp_path, checkpoints=("three", "three"))
    mine = next(row for row in evaluations() if row.key == "three full")
    with transaction() as session:
        assert leases.unconcluded(session) == []
        session.execute(sa.update(Evaluation).where(Evaluation.id == mine.id).values(state="failed"))
    with transaction() as session:
        assert leases.unconcluded(session) == [mine.id]
        session.execute(sa.update(Audit).where(Audit.id == overdue).values(state="cancelled"))
    with transaction() as session:
        assert leases.unconcluded(session) == []
    assert audit(waiting).state is AuditState.QUEUED


def _request_cancel() -> None:
    with transaction() as session:
        session.execute(sa.update(Evaluation).values(cancel_requested=True))
