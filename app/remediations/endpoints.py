"""Remediations over HTTP."""

from collections.abc import AsyncIterable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app import canonical, queue
from app.database.engine import reading, transaction
from app.database.models import Remediation, Report
from app.database.states import LIVE_REMEDIATIONS, RemediationState
from app.errors import Conflict, NotFound
from app.http import sse
from app.http.auth import CanRead, CanRemediate
from app.http.idempotency import KeyHeader, answered, headers
from app.http.negotiation import negotiate
from app.http.pagination import Cursor, Limit, Page, page_of
from app.http.problems import WITH_BODY, look_again, problems
from app.http.request_types import Id
from app.http.sse import LastEventId
from app.remediations import events, recipes, report, service, views
from app.remediations.schemas import Ladder, NewRemediation, RemediationOut, RemediationSummary
from app.remediations.stored_models import deletion
from app.reports.model import AuditReport

router = APIRouter(tags=["Remediations"])

Format = Literal["json", "markdown"]
MEDIA_TYPES: dict[str, str] = {"json": "application/json", "markdown": "text/markdown"}
"""The formats of a remediation's report, which is not an audit's and has its own renderings."""

_HEADERS = headers("remediation")


@router.post(
    "/v1/audits/{audit_id}/remediations",
    status_code=202,
    responses=problems(
        *WITH_BODY,
        "not_found",
        "conflict",
        "forget_set_purged",
        "unknown_method",
        "unknown_loss",
        "forget_set_incomplete",
        "idempotency_key_reused",
        "model_store_full",
    )
    | {
        200: {"model": RemediationOut, "description": "An earlier request created it, now over.", "headers": _HEADERS},
        202: {"description": "Accepted.", "headers": _HEADERS},
    },
)
def create_remediation(
    audit_id: Id, body: NewRemediation, key: CanRemediate, response: Response, idempotency_key: KeyHeader = None
) -> RemediationOut:
    """Unlearn the audit's original again so that forgetting survives quantization, and audit the result.

    A worker trains the recipe on the forget set's raw texts and stores a checkpoint in the model store; the audit's own
    plan and policy judge it. `auto` tries the service's ladder, step by step, until a model is robust.
    """
    with transaction() as session:
        remediation_id, replayed = service.create(
            session, audit_id, body, api_key_id=key.id, idempotency_key=idempotency_key
        )
    if not replayed:
        queue.ring()
    found = _shown(remediation_id)
    answered(response, found.links.self, replayed=replayed, live=found.state in LIVE_REMEDIATIONS)
    return found


@router.get("/v1/remediations", responses=problems("invalid_request"))
def list_remediations(
    key: CanRead,
    state: RemediationState | None = None,
    audit: Annotated[
        str | None, Query(max_length=100, pattern="^[0-9A-Za-z-]+$", description="The audit that led to it.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[RemediationSummary]:
    """List remediations, newest first."""
    found = service.matching(state, audit)
    return page_of(found, Remediation.id, views.summary, "/v1/remediations", limit, cursor, state=state, audit=audit)


@router.get("/v1/remediations/ladder", responses=problems())
def read_ladder(key: CanRead) -> Ladder:
    """List the recipes that the method `auto` tries, in order."""
    return Ladder(steps=recipes.ladder())


@router.get("/v1/remediations/{remediation_id}", responses=problems("not_found", "invalid_request"))
def read_remediation(remediation_id: Id, key: CanRead, response: Response) -> RemediationOut:
    """Read one remediation: its stage, its trials with their loss curves and saliency, and how it ended."""
    found = _shown(remediation_id)
    if found.state in LIVE_REMEDIATIONS:
        look_again(response)
    return found


@router.post("/v1/remediations/{remediation_id}/cancel", responses=problems("not_found", "conflict", "invalid_request"))
def cancel_remediation(remediation_id: Id, key: CanRemediate) -> RemediationOut:
    """Cancel a remediation and the audits that it started."""
    with transaction() as session:
        service.cancel(session, remediation_id)
    return _shown(remediation_id)


@router.delete(
    "/v1/remediations/{remediation_id}/model",
    status_code=204,
    responses=problems("not_found", "conflict", "model_store_unavailable", "invalid_request"),
)
def delete_model(remediation_id: Id, key: CanRemediate) -> None:
    """Delete the new model. Its digest, its record and its audit's report stay; deleting it again does nothing."""
    with reading() as session:
        trials = deletion.check_deletable(session, remediation_id)
    for trial_id in trials:
        deletion.delete(trial_id, f"requested with the key {key.prefix}…")


def _after(
    remediation_id: Id,
    key: CanRead,
    last_event_id: LastEventId = None,
) -> int:
    with reading() as session:
        service.check_exists(session, remediation_id)
    return sse.resume_after(last_event_id)


@router.get(
    "/v1/remediations/{remediation_id}/events",
    response_class=EventSourceResponse,
    responses=problems("not_found", "invalid_request"),
)
async def follow_remediation(
    remediation_id: Id, after: Annotated[int, Depends(_after)]
) -> AsyncIterable[ServerSentEvent]:
    """Follow a remediation as server-sent events.

    `queued`, `running`, `trial`, `screening`, `audit`, `finished`, `failed`, `cancelled`, `model_deleted` carry
    ids to resume after; `progress` events (stage, done, total, and the latest loss) come between them. The stream
    ends once the remediation is over.
    """
    async for event in sse.follow(lambda session, last: events.look(session, remediation_id, last), after):
        yield event


@router.get(
    "/v1/remediations/{remediation_id}/report",
    response_class=Response,
    responses=problems("not_found", "report_not_ready", "conflict", "not_acceptable", "invalid_request")
    | {
        200: {
            "description": "The original, the first unlearned model and the new one, side by side.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/RemediationReport"}},
                "text/markdown": {"schema": {"type": "string"}, "example": "# Remediation …: RECOVERED, now ROBUST\n…"},
            },
            "headers": {"ETag": {"schema": {"type": "string"}, "description": "The ETag of this report."}},
        },
    },
)
def read_remediation_report(
    remediation_id: Id,
    key: CanRead,
    format_: Annotated[Format | None, Query(alias="format", description="Overrides Accept.")] = None,
    accept: Annotated[str, Header(max_length=1000)] = "*/*",
) -> Response:
    """Before and after: every metric at every precision, utility kept, verdicts, the recipe and how training went."""
    chosen = format_ or negotiate(accept, MEDIA_TYPES)
    with reading() as session:
        row = service.get(session, remediation_id)
        if row.state in LIVE_REMEDIATIONS:
            raise NotFound("report_not_ready", f"this remediation is {row.state}; it has a report once it is finished")
        if row.state is not RemediationState.FINISHED or row.chosen is None:
            raise Conflict(
                "conflict", f"this remediation was {row.state} and has no report: {row.sentence or ''}".rstrip(": ")
            )
        bodies = [
            session.get_one(Report, audit_id).body for audit_id in (row.audit_id, row.trials[row.chosen].audit_id)
        ]
    before, after = (AuditReport.model_validate_json(found) for found in bodies)
    made = report.make(row, row.trials, before, after)
    body = made.canonical()
    headers = {"ETag": f'"{canonical.sha256(body)}-{chosen}"', "Vary": "Accept", "Cache-Control": "private, no-cache"}
    return Response(
        body if chosen == "json" else report.markdown(made), media_type=MEDIA_TYPES[chosen], headers=headers
    )


def _shown(remediation_id: str) -> RemediationOut:
    with reading() as session:
        return views.remediation(service.get(session, remediation_id))
