"""The real worker with the real engine: killed while it trains, it goes on and ends with the same model."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app import queue
from app.database import engine as db
from app.database.models import Remediation, Trial
from app.database.states import EvaluationState, RemediationState
from app.http import auth
from app.remediations import service
from app.remediations.schemas import NewRemediation
from tests.support.factories import bundle_files, tiny_checkpoint
from tests.support.worker_service import finished, submit, until, worker

STEPS = 250
"""Enough that training is still going on when its progress has been seen, on a fast machine too."""
FILES = bundle_files(6)


def begin(audit_id: str, name: str) -> str:
    with db.transaction() as session:
        key, _ = auth.create_key(session, name, ["admin"])
        own: dict[str, Any] = {"max_steps": STEPS, "checkpoint_every": 5, "stop": None, "saliency_percentile": 50}
        body = NewRemediation(method="sure", loss="npo", hyperparameters=own, name=name)
        return service.create(session, audit_id, body, api_key_id=key.id, idempotency_key=None)[0]


def trial_of(remediation_id: str) -> Trial:
    with db.reading() as session:
        statement = sa.select(Trial).where(Trial.remediation_id == remediation_id)
        return session.scalars(statement.options(sa.orm.joinedload(Trial.checkpoint))).one()


def over(remediation_id: str) -> bool:
    with db.reading() as session:
        row = session.get_one(Remediation, remediation_id)
    assert row.state is not RemediationState.FAILED, row.sentence
    return row.state is RemediationState.FINISHED


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_worker_killed_while_it_trains_ends_with_the_same_model(place: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("original", "unlearned")):
        tiny_checkpoint(tmp_path / name, seed=seed)
    audit_id = submit(tmp_path, precisions=("full", "rtn-int4"), files=FILES)
    with worker(tmp_path / "log", engine="worker") as first:
        until(lambda: finished(audit_id), 90)
        undisturbed = begin(audit_id, "undisturbed")
        queue.ring()
        until(lambda: over(undisturbed), 120)
        struck = begin(audit_id, "struck")
        queue.ring()
        until(lambda: trial_of(struck).stage == "train" and trial_of(struck).done >= 12, 60)
        os.killpg(first.pid, signal.SIGKILL)
    assert trial_of(struck).state is EvaluationState.RUNNING
    with worker(tmp_path / "log", engine="worker"):
        until(lambda: over(struck), 120)
    one, other = trial_of(undisturbed), trial_of(struck)
    assert other.attempt == 2
    assert one.result is not None
    assert other.result is not None
    assert (one.result["resumed"], other.result["resumed"]) == (0, 1)
    assert one.checkpoint is not None
    assert other.checkpoint is not None
    assert one.checkpoint.digest == other.checkpoint.digest
    assert one.result["losses"] == other.result["losses"]
    assert len(other.result["losses"]) == STEPS
    assert other.result["parameters_trained"] < other.result["parameters_total"]
    assert (other.commits, other.model_uri) == (1, other.checkpoint.uri)
