"""What can be asked for, and what live workers say to it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.catalog.precisions import PRECISIONS
from app.database import engine as db
from app.database.models import Evaluation, Worker
from app.workers import service as workers
from app.workers.service import WorkerReport
from tests.support.service import Service

ABLE: dict[str, str | None] = dict.fromkeys(PRECISIONS)
MISSING = "llmcompressor is not installed on this worker; pip install 'lethe-audit[worker]'"
LIMITED = ABLE | dict.fromkeys(("gptq-int4", "awq-int4"), MISSING)


def say(name: str, precisions: dict[str, str | None]) -> None:
    with db.transaction() as session:
        workers.report(session, WorkerReport(f"{name}:1", name, "0.2.0", {"torch": "2.13.0"}, precisions))


def listed(service: Service, name: str) -> Any:
    answer = service.get("/v1/precisions")
    assert answer.status_code == 200
    return next(item for item in answer.json()["items"] if item["name"] == name)


def test_all_precisions_are_listed_with_bits_library_and_calibrations(service: Service) -> None:
    found = service.get("/v1/precisions").json()
    assert [item["name"] for item in found["items"]] == list(PRECISIONS)
    assert found["workers"] == []
    assert found["plans"]["quick"] == ["full", "rtn-int4"]
    assert listed(service, "gptq-int4") == {
        "name": "gptq-int4",
        "method": "gptq",
        "bits": 4,
        "granularity": "group",
        "group_size": 128,
        "calibrations": ["generic", "retain", "forget", "file"],
        "library": "llmcompressor",
        "available": None,
        "reason": None,
    }


def test_what_live_workers_can_do_is_told_with_their_reasons(service: Service) -> None:
    say("gpu-1", LIMITED)
    assert listed(service, "gptq-int4")["available"] is False
    assert listed(service, "gptq-int4")["reason"] == f"gpu-1: {MISSING}"
    assert listed(service, "rtn-int4")["available"] is True
    found = service.get("/v1/precisions").json()["workers"]
    assert found[0]["unavailable"] == {"gptq-int4": MISSING, "awq-int4": MISSING}
    assert found[0]["libraries"] == {"torch": "2.13.0"}
    say("gpu-2", ABLE)
    assert listed(service, "gptq-int4")["available"] is True
    with db.transaction() as session:
        workers.leave(session, "gpu-2:1")
    assert listed(service, "gptq-int4")["available"] is False


def test_workers_that_no_longer_report_do_not_count(service: Service) -> None:
    say("gpu-1", LIMITED)
    with db.transaction() as session:
        session.execute(sa.update(Worker).values(seen=Worker.seen - 3600))
    assert listed(service, "gptq-int4")["available"] is None
    with db.transaction() as session:
        session.execute(sa.update(Worker).values(seen=Worker.seen - 48 * 3600))
    say("gpu-2", ABLE)
    with db.reading() as session:
        assert session.scalars(sa.select(Worker.host)).all() == ["gpu-2"]


def test_a_worker_of_an_older_lethe_is_not_asked_for_what_it_does_not_know(service: Service) -> None:
    say("old", {"full": None, "rtn-int4": None})
    assert "does not know it" in listed(service, "mxfp4")["reason"]


@pytest.fixture
def audit(service: Service) -> dict[str, Any]:
    return service.audit_body()


def test_a_plan_that_no_live_worker_can_run_is_refused_before_anything_is_queued(
    service: Service, audit: dict[str, Any]
) -> None:
    say("gpu-1", LIMITED)
    for plan in ({"precisions": ["gptq-int4@forget"]}, "paper"):
        problem = service.refused(service.post("/v1/audits", json=audit | {"plan": plan}), 422, "precision_unavailable")
        assert "no worker can apply gptq-int4" in problem["detail"]
        assert MISSING in problem["detail"]
    with db.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Evaluation)) == 0
    assert service.post("/v1/audits", json=audit | {"plan": "quick"}).status_code == 202


def test_without_any_known_worker_every_plan_is_accepted_because_one_may_start_later(
    service: Service, audit: dict[str, Any]
) -> None:
    answer = service.post("/v1/audits", json=audit | {"plan": {"name": "deploy"}})
    assert answer.status_code == 202
    assert answer.json()["plan"]["precisions"] == [
        "full",
        "bnb-nf4",
        "gptq-int4",
        "awq-int4",
        "mxfp4",
        "gguf-q4_0",
        "bnb-int8",
    ]


def test_precisions_calibrated_on_a_file_need_one(
    service: Service, audit: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = audit | {"plan": {"precisions": ["gptq-int4@file"]}}
    problem = service.refused(service.post("/v1/audits", json=wanted), 422, "precision_unavailable")
    assert "LETHE_CALIBRATION_FILE" in problem["detail"]


def test_the_command_lists_them_without_importing_torch() -> None:
    program = (
        "import sys; from worker.commands import precisions; from typer.testing import CliRunner;"
        "result = CliRunner().invoke(precisions.app, sys.argv[1:]); print(result.output);"
        "sys.exit(result.exit_code or ('torch' in sys.modules))"
    )
    for arguments, expected in (([], "Not offered: gguf-q4_k_m"), (["--json"], '"name": "mxfp4"')):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
