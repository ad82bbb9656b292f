"""Health and metrics, for machines, without a key."""

import socket
from typing import Literal
from urllib.parse import urlsplit

import sqlalchemy as sa
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from app.database import migrate
from app.database.engine import engine, reading
from app.database.models import Audit, Evaluation
from app.database.states import AuditState, EvaluationState
from app.http.problems import problems
from app.settings import settings

router = APIRouter(tags=["Health"])


class Alive(BaseModel):
    """The process is running."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """What the service needs to do its work."""

    status: Literal["ready", "not_ready"]
    database: Literal["ready", "not_migrated", "unreachable"]
    broker: Literal["reachable", "unreachable"] = Field(
        description="Without the broker audits are still accepted; workers find them a little later."
    )


@router.get("/livez")
def live() -> Alive:
    """Check that the process answers."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready."}})
def ready(response: Response) -> Readiness:
    """Check that the database can be used. A broker that is down is reported, but the service stays ready."""
    database = database_state()
    if database != "ready":
        response.status_code = 503
    return Readiness(
        status="ready" if database == "ready" else "not_ready",
        database=database,
        broker="reachable" if broker_reachable() else "unreachable",
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems(authenticated=False)
    | {200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics() -> Response:
    """Audits and evaluations by state, requests and their latency."""
    by_state = generate_latest(_States())
    return Response(generate_latest(REGISTRY) + by_state, media_type=CONTENT_TYPE_LATEST)


class _States(Collector):
    """Reads the counts from the database when asked, so that they survive restarts and cover all processes."""

    def collect(self) -> list[GaugeMetricFamily]:
        with reading() as session:
            audits = session.execute(sa.select(Audit.state, sa.func.count()).group_by(Audit.state)).all()
            evaluations = session.execute(sa.select(Evaluation.state, sa.func.count()).group_by(Evaluation.state)).all()
        return [
            _family("lethe_audits", "Audits by state.", [(state, dict(audits).get(state, 0)) for state in AuditState]),
            _family(
                "lethe_evaluations",
                "Evaluations by state.",
                [(state, dict(evaluations).get(state, 0)) for state in EvaluationState],
            ),
        ]


def _family(
    name: str, help_: str, counts: list[tuple[AuditState, int]] | list[tuple[EvaluationState, int]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_, labels=["state"])
    for state, count in counts:
        family.add_metric([state], count)
    return family


def database_state() -> Literal["ready", "not_migrated", "unreachable"]:
    """Whether the database of the settings answers and has this version's schema."""
    try:
        with engine().connect() as connection:
            return "ready" if migrate.is_current(connection) else "not_migrated"
    except SQLAlchemyError:
        return "unreachable"


def broker_reachable() -> bool:
    """Whether the broker of the settings answers; sends nothing to the workers."""
    parts = urlsplit(settings().resolved_broker_url)
    if parts.scheme == "filesystem":
        return settings().data_dir.is_dir()
    try:
        with socket.create_connection((parts.hostname or "localhost", parts.port or 6379), timeout=0.5):
            return True
    except OSError:
        return False
