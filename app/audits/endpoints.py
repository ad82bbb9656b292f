"""Audits over HTTP."""

from collections.abc import AsyncIterable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app import queue
from app.audits import events, idempotency, judgements, service, views
from app.audits.schemas import AuditOut, AuditSummary, NewAudit, NewJudgement
from app.catalog import plans
from app.checkpoints import roles
from app.database.engine import reading, transaction
from app.database.models import Audit
from app.database.states import LIVE_AUDITS, AuditState
from app.http import sse
from app.http.auth import CanRead, CanWrite
from app.http.idempotency import Creation, KeyHeader, answered, digest, headers
from app.http.pagination import Cursor, Limit, Page, page_of
from app.http.problems import CHECKPOINT, WITH_BODY, look_again, problems
from app.http.request_types import Id
from app.http.sse import LastEventId
from app.judgement.verdict import Outcome

router = APIRouter(tags=["Audits"])

_HEADERS = headers("audit")
_MADE = {name: _HEADERS[name] for name in ("Location", "Idempotency-Replayed")}


@router.post(
    "/v1/audits",
    status_code=202,
    responses=problems(
        *WITH_BODY,
        *CHECKPOINT,
        "forget_set_missing",
        "forget_set_purged",
        "unknown_precision",
        "precision_unavailable",
        "unknown_metric",
        "pair_mismatch",
        "nothing_to_measure",
        "idempotency_key_reused",
    )
    | {
        200: {"model": AuditOut, "description": "An earlier request created it, and it is over.", "headers": _HEADERS},
        202: {"description": "Accepted.", "headers": _HEADERS},
    },
)
def create_audit(body: NewAudit, key: CanWrite, response: Response, idempotency_key: KeyHeader = None) -> AuditOut:
    """Audit a pair: is what was unlearned still forgotten at every precision of the plan?

    Evaluations that exist already are shared, so the same original is evaluated once.
    """
    request = Creation(key.id, idempotency_key, digest(body))
    with reading() as session:
        audit_id = idempotency.find(session, request)
        located = {} if audit_id else roles.locate(session, body)
        shipped = [] if audit_id else service.locate_artifacts(session, body)
    replayed = audit_id is not None
    if audit_id is None:
        plan = plans.check_names(body.plan.precisions, body.plan.metrics)
        sources = roles.open_all(located, body.policy.allowed_differences)
        opened = service.open_artifacts(body, shipped, sources)
        with transaction() as session:
            audit_id, replayed = service.create(session, body, plan, sources, opened, request=request)
        queue.ring()
    audit = _shown(audit_id)
    answered(response, audit.links.self, replayed=replayed, live=audit.state in LIVE_AUDITS)
    return audit


@router.get("/v1/audits", responses=problems("invalid_request"))
def list_audits(
    key: CanRead,
    state: AuditState | None = None,
    verdict: Outcome | None = None,
    checkpoint: Annotated[
        str | None, Query(max_length=100, pattern="^[0-9a-z:-]+$", description="Id or digest, in any role.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AuditSummary]:
    """List audits, newest first."""
    found = service.matching(state, verdict, checkpoint)
    filters = {"state": state, "verdict": verdict, "checkpoint": checkpoint}
    return page_of(found, Audit.id, views.summary, "/v1/audits", limit, cursor, **filters)


@router.get("/v1/audits/{audit_id}", responses=problems("not_found", "invalid_request"))
def read_audit(audit_id: Id, key: CanRead, response: Response) -> AuditOut:
    """Read one audit with every evaluation's state and progress."""
    audit = _shown(audit_id)
    if audit.state in LIVE_AUDITS:
        look_again(response)
    return audit


@router.post(
    "/v1/audits/{audit_id}/judgements",
    status_code=201,
    responses=problems(
        *WITH_BODY,
        "not_found",
        "conflict",
        "report_malformed",
        "report_inconsistent",
        "idempotency_key_reused",
    )
    | {
        200: {"model": AuditOut, "description": "An earlier request created it.", "headers": _MADE},
        201: {"description": "Created, and finished.", "headers": _MADE},
    },
)
def judge_audit(
    audit_id: Id, body: NewJudgement, key: CanWrite, response: Response, idempotency_key: KeyHeader = None
) -> AuditOut:
    """Judge the stored scores of a finished audit again, by another policy or by this version's rules.

    The answer is a new audit with a report of its own. It is finished at once: nothing is measured, so neither the
    checkpoints nor the forget set need to exist any more. The earlier audit and its report stay as they are.
    """
    request = Creation(key.id, idempotency_key, digest(body, audit=audit_id))
    with reading() as session:
        made = idempotency.find(session, request)
        earlier = None if made else judgements.read(session, audit_id)
    replayed = earlier is None
    if earlier is not None:
        judged = judgements.judge(earlier, body)
        with transaction() as session:
            made, replayed = judgements.create(session, earlier.audit, judged, request)
    assert made is not None
    audit = _shown(made)
    answered(response, audit.links.self, replayed=replayed, live=False)
    return audit


@router.post("/v1/audits/{audit_id}/cancel", responses=problems("not_found", "conflict", "invalid_request"))
def cancel_audit(audit_id: Id, key: CanWrite) -> AuditOut:
    """Cancel an audit. Evaluations that another audit waits for continue."""
    with transaction() as session:
        service.cancel(session, audit_id)
    return _shown(audit_id)


def _shown(audit_id: str) -> AuditOut:
    with reading() as session:
        return views.audit(service.get(session, audit_id))


def _after(
    audit_id: Id,
    key: CanRead,
    last_event_id: LastEventId = None,
) -> int:
    with reading() as session:
        service.check_exists(session, audit_id)
    return sse.resume_after(last_event_id)


@router.get(
    "/v1/audits/{audit_id}/events",
    response_class=EventSourceResponse,
    responses=problems("not_found", "invalid_request"),
)
async def follow_audit(audit_id: Id, after: Annotated[int, Depends(_after)]) -> AsyncIterable[ServerSentEvent]:
    """Follow an audit as server-sent events.

    `queued`, `running`, `finished`, `cancelled` carry ids to resume after; `progress` events come between them, for one
    evaluation at a time. The stream ends after the event that ends the audit.
    """
    async for event in sse.follow(lambda session, last: events.look(session, audit_id, last), after):
        yield event
