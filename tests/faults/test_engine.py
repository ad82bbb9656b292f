"""The real worker with the real engine: killed in the middle of a metric, the audit ends as if nothing had been."""

import os
import signal
from pathlib import Path

import pytest

from app import queue
from app.catalog.metrics import METRICS
from app.database.models import Evaluation
from app.database.states import AuditState, EvaluationState
from tests.support.factories import bundle_files, tiny_checkpoint
from tests.support.worker_service import audit, evaluations, finished, submit, until, worker


def measuring() -> Evaluation | None:
    return next((row for row in evaluations() if row.stage in METRICS), None)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_an_audit_with_the_real_engine_survives_a_kill(place: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("original", "unlearned")):
        tiny_checkpoint(tmp_path / name, seed=seed)
    audit_id = submit(tmp_path, precisions=("full", "rtn-int4"), files=bundle_files(400))
    with worker(tmp_path / "log", engine="worker") as first:
        queue.ring()
        struck = until(measuring, 200)
        os.killpg(first.pid, signal.SIGKILL)
    with worker(tmp_path / "log", engine="worker"):
        until(lambda: finished(audit_id), 200)
    assert {(row.state, row.commits) for row in evaluations()} == {(EvaluationState.SUCCEEDED, 1)}
    assert next(row for row in evaluations() if row.id == struck.id).attempt == 2
    assert audit(audit_id).state is AuditState.FINISHED
