"""Trials and what follows, with a stand-in for the engine: interrupted anywhere, nothing is lost or doubled."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.database import engine as db
from app.database import leases
from app.database.attempts import TrialClaim
from app.database.models import Audit, Checkpoint, Remediation, RemediationEvent, Trial
from app.database.states import EvaluationState, RemediationState
from app.errors import Conflict, InvalidRequest, Unavailable
from app.remediations import service
from app.remediations.advance import advance
from app.remediations.stored_models import deletion
from app.settings import settings
from app.storage import model_store
from tests.support.remediations import queue_remediation
from tests.support.stand_ins.quick import diagnose
from tests.support.stand_ins.scored import ROBUST, Unlearning, evaluate
from worker.attempts import remediations
from worker.attempts import trial as training
from worker.loop import outcomes, runner
from worker.loop.reconcile import reconcile


@pytest.fixture(autouse=True)
def _no_shutdown() -> Iterator[None]:
    yield
    runner.SHUTDOWN.clear()


def now(remediation_id: str) -> Remediation:
    with db.reading() as session:
        return service.get(session, remediation_id)


def the_trial() -> Trial:
    with db.reading() as session:
        return session.scalars(sa.select(Trial)).one()


def claim() -> TrialClaim:
    with db.transaction() as session:
        found = leases.claim_trial(session, "w")
    assert found is not None
    return found


def expire() -> None:
    with db.transaction() as session:
        session.execute(sa.update(Trial).values(lease_until=db.clock() - 1))


def all_done_once(remediation_id: str) -> None:
    row = now(remediation_id)
    assert (row.state, row.verdict) == (RemediationState.FINISHED, "robust")
    (trial,) = row.trials
    assert (trial.state, trial.commits) == (EvaluationState.SUCCEEDED, 1)
    assert trial.model_uri is not None
    with db.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Audit)) == 2
        assert session.scalar(sa.select(sa.func.count()).select_from(Checkpoint)) == 3
        kinds = session.scalars(sa.select(RemediationEvent.kind).order_by(RemediationEvent.id)).all()
    assert kinds == ["queued", "running", "audit", "finished"]
    store = settings().data_dir / "models"
    assert [str(path) for path in store.glob("*/*")] == [trial.model_uri]


class Killed(BaseException):
    """As SIGKILL: nothing after it runs."""


def killed_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, *, after: bool) -> None:
    """Let the process die before or after a function of ours."""
    whole = getattr(place, name)

    def die(*args: Any, **kwargs: Any) -> Any:
        if after:
            whole(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(place, name, die)


@pytest.mark.parametrize(
    ("where", "name", "after"),
    [
        (model_store, "store", False),
        (model_store, "store", True),
        (outcomes, "finish_trial", False),
        (outcomes, "finish_trial", True),
        (remediations, "advance", False),
    ],
)
def test_a_worker_killed_around_the_storing_of_the_model_loses_and_doubles_nothing(
    remediation: str, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: bool
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, where, name, after=after)
        with pytest.raises(Killed):
            runner.drain(evaluate, diagnose, Unlearning())
    assert now(remediation).state in (RemediationState.QUEUED, RemediationState.RUNNING)
    expire()
    reconcile()
    runner.drain(evaluate, diagnose, Unlearning())
    reconcile()
    all_done_once(remediation)


def test_an_attempt_goes_on_where_the_one_before_it_was_killed(remediation: str) -> None:
    steps: list[int] = []

    def at(step: int) -> None:
        steps.append(step)
        if steps == [1, 2, 3]:
            raise Killed

    with pytest.raises(Killed):
        runner.drain(evaluate, diagnose, Unlearning(at=at))
    assert training.folder(the_trial().id).is_dir()
    expire()
    reconcile()  # sweeps, but not what is still wanted
    runner.drain(evaluate, diagnose, Unlearning(at=at))
    assert steps == [1, 2, 3, 3, 4]
    all_done_once(remediation)
    result = the_trial().result
    assert result is not None
    assert result["resumed"] == 1
    reconcile()
    assert not training.folder(the_trial().id).exists()


def test_a_state_that_another_version_left_is_thrown_away(remediation: str) -> None:
    state = training.folder(the_trial().id) / training.STATE
    state.mkdir(parents=True)
    (state / "step").write_text("3")
    steps: list[int] = []

    def at(step: int) -> None:
        if (state / "step").exists() and not steps:
            raise InvalidRequest("state_mismatch", "another version")
        steps.append(step)

    runner.drain(evaluate, diagnose, Unlearning(at=at))
    assert steps == [1, 2, 3, 4]
    all_done_once(remediation)


def test_a_stale_attempt_can_neither_finish_nor_leave_its_model(remediation: str) -> None:
    stale = claim()
    expire()
    fresh = claim()
    assert fresh.attempt == 2
    with pytest.raises(BaseException, match="lost"):
        training.train(stale, Unlearning(), lambda stage, done, total: None, [])
    runner.run_trial(fresh, Unlearning())
    runner.drain(evaluate, diagnose)
    all_done_once(remediation)


def test_a_model_of_an_attempt_that_came_out_otherwise_is_deleted(
    remediation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, model_store, "store", after=True)
        with pytest.raises(Killed):
            runner.drain(evaluate, diagnose, Unlearning())
    expire()
    runner.drain(evaluate, diagnose, Unlearning(lambda recipe: ROBUST | {"full": (9, 90)}))
    all_done_once(remediation)


def test_a_shutdown_gives_the_trial_back(remediation: str) -> None:
    def at(step: int) -> None:
        runner.SHUTDOWN.set()
        threading.Event().wait(0.05)

    runner.drain(evaluate, diagnose, Unlearning(at=at, steps=1000))
    trial = the_trial()
    assert (trial.state, trial.tries) == (EvaluationState.QUEUED, 0)
    runner.SHUTDOWN.clear()
    runner.drain(evaluate, diagnose, Unlearning())
    all_done_once(remediation)


def test_a_store_that_cannot_be_reached_costs_another_try_and_not_the_training(
    remediation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    whole = model_store.store

    def sometimes(*args: Any) -> int:
        calls.append(1)
        if len(calls) == 1:
            raise Unavailable("model_store_unavailable", "not now")
        return whole(*args)

    monkeypatch.setattr(model_store, "store", sometimes)
    runner.drain(evaluate, diagnose, Unlearning())
    assert the_trial().attempt == 2
    all_done_once(remediation)


def test_tries_run_out_and_the_remediation_fails(remediation: str) -> None:
    for _ in range(settings().max_attempts):
        claim()
        expire()
    reconcile()
    row = now(remediation)
    assert (row.state, row.error_code) == (RemediationState.FAILED, "worker_lost")


def test_a_trial_that_would_not_fit_any_more_is_not_trained(remediation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_MODEL_STORE_QUOTA", "1")
    settings.cache_clear()
    unlearning = Unlearning()
    runner.drain(evaluate, diagnose, unlearning)
    assert unlearning.recipes == []
    assert now(remediation).error_code == "model_store_full"


def test_what_an_earlier_attempt_left_does_not_count_against_the_next(
    remediation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHE_MODEL_STORE_QUOTA", str(the_trial().model_bytes))
    settings.cache_clear()
    with monkeypatch.context() as patch:
        killed_at(patch, model_store, "store", after=True)
        with pytest.raises(Killed):
            runner.drain(evaluate, diagnose, Unlearning())
    expire()
    runner.drain(evaluate, diagnose, Unlearning())
    all_done_once(remediation)


def test_a_model_is_not_deleted_while_it_is_being_written(remediation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the row would say that it is gone, and the rest of it would be written after that."""
    whole = model_store.store
    refused: list[str] = []

    def meanwhile(*args: Any) -> int:
        with db.transaction() as session:
            service.cancel(session, remediation)
        remediations.clean()
        assert the_trial().deleted_at is None
        with db.reading() as session, pytest.raises(Conflict, match="still writes") as conflict:
            deletion.check_deletable(session, remediation)
        refused.append(conflict.value.code)
        return whole(*args)

    monkeypatch.setattr(model_store, "store", meanwhile)
    runner.drain(evaluate, diagnose, Unlearning())
    assert refused == ["conflict"]
    remediations.clean()
    assert the_trial().deleted_at is not None
    assert list((settings().data_dir / "models").glob("*/*")) == []


def test_an_original_whose_files_changed_is_not_trained(remediation: str, tmp_path: Path) -> None:
    (tmp_path / "original" / "tokenizer.json").write_text('{"other": 1}')
    unlearning = Unlearning()
    runner.drain(evaluate, diagnose, unlearning)
    assert unlearning.recipes == []
    assert now(remediation).error_code == "checkpoint_changed"


def test_a_cancelled_audit_of_the_new_model_fails_the_remediation(
    remediation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(leases, "claim", lambda *args, **kwargs: None)
        runner.drain(evaluate, diagnose, Unlearning())
    audit_id = the_trial().audit_id
    assert audit_id is not None
    from app.audits import service as audits

    with db.transaction() as session:
        audits.cancel(session, audit_id)
    reconcile()
    assert now(remediation).error_code == "audit_cancelled"


def test_many_who_advance_at_once_take_each_step_once(remediation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(remediations, "advance", lambda: None)
        runner.drain(evaluate, diagnose, Unlearning())
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def go() -> None:
        try:
            barrier.wait()
            remediations.advance()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    runner.drain(evaluate, diagnose)
    all_done_once(remediation)


def test_a_remediation_that_cannot_be_advanced_holds_up_no_other(
    remediation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.remediations import advance as steps

    other = queue_remediation(now(remediation).audit_id)

    def broken(session: Any, remediation_id: str) -> bool:
        if remediation_id == remediation:
            raise ZeroDivisionError
        return advance(session, remediation_id)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "advance", broken)
        runner.drain(evaluate, diagnose, Unlearning())
        assert now(other).state is RemediationState.FINISHED
        assert now(remediation).state is RemediationState.QUEUED
    reconcile()
    runner.drain(evaluate, diagnose, Unlearning())
    assert now(remediation).state is RemediationState.FINISHED


def test_a_card_that_could_not_be_completed_is_completed_later(
    remediation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, card: str) -> None:
        raise Unavailable("model_store_unavailable", "not now")

    with monkeypatch.context() as patch:
        patch.setattr(model_store, "write_card", refuse)
        runner.drain(evaluate, diagnose, Unlearning())
    card = Path(the_trial().model_uri or "") / model_store.CARD
    assert "Not audited" in card.read_text()
    reconcile()
    assert "**ROBUST**" in card.read_text()
    assert the_trial().card_done
