"""Health and metrics."""

import sqlalchemy as sa

from app.database import engine as db
from tests.support.service import Service
from tests.support.stand_ins.quick import evaluate
from worker.loop import runner


def test_health_needs_no_key(service: Service) -> None:
    anyone = {"Authorization": ""}
    assert service.get("/livez", headers=anyone).json() == {"status": "alive"}
    ready = service.get("/readyz", headers=anyone).json()
    assert ready == {"status": "ready", "database": "ready", "broker": "reachable"}
    assert service.get("/metrics", headers=anyone).status_code == 200


def test_a_database_of_another_version_is_not_ready(service: Service) -> None:
    with db.engine().begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'other'"))
    try:
        ready = service.get("/readyz")
        assert (ready.status_code, ready.json()["database"]) == (503, "not_migrated")
    finally:
        with db.engine().begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))


def test_metrics_count_audits_evaluations_and_requests(service: Service) -> None:
    service.audit()
    runner.drain(evaluate)
    service.audit()
    lines = service.get("/metrics").text.splitlines()
    assert 'lethe_audits{state="finished"} 1.0' in lines
    assert 'lethe_audits{state="queued"} 1.0' in lines
    assert 'lethe_evaluations{state="succeeded"} 4.0' in lines
    assert 'lethe_evaluations{state="queued"} 4.0' in lines
    assert any(
        line.startswith('lethe_http_requests_total{method="POST",route="/v1/audits",status="202"}') for line in lines
    )
    assert not any("01" in line and "/v1/audits/0" in line for line in lines), "ids are no labels"
