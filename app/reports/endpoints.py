"""Reports over HTTP: the stored bytes, or a rendering of them."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app.database.engine import reading
from app.database.models import Audit, Report
from app.database.states import AuditState
from app.errors import Conflict, NotFound
from app.http.auth import CanRead
from app.http.negotiation import negotiate, unchanged
from app.http.problems import problems
from app.http.request_types import Id
from app.reports.model import AuditReport
from app.reports.rendering.formats import FORMATS, media_types, named

router = APIRouter(tags=["Reports"])

FORMAT = Query(
    alias="format",
    description="Overrides Accept.",
    json_schema_extra={"enum": [*FORMATS]},
)


@router.get(
    "/v1/audits/{audit_id}/report",
    response_class=Response,
    responses=problems("not_found", "report_not_ready", "conflict", "not_acceptable", "invalid_request")
    | {
        200: {
            "description": "The report: verdict, reasons, every figure and the evidence for it.",
            "content": {
                one.media_type: {"schema": {"$ref": "#/components/schemas/AuditReport"}}
                if one.example is None
                else {"schema": {"type": "string"}, "example": one.example}
                for one in FORMATS.values()
            },
            "headers": {
                "ETag": {"schema": {"type": "string"}, "description": "The ETag of this rendering of the report."}
            },
        },
        304: {"description": "The rendering that If-None-Match names is the current one."},
    },
)
def read_report(
    audit_id: Id,
    key: CanRead,
    format_: Annotated[str | None, FORMAT] = None,
    accept: Annotated[str, Header(max_length=1000)] = "*/*",
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """Read the report of a finished audit in the requested format. It never changes."""
    chosen = named(format_ or negotiate(accept, media_types()))
    with reading() as session:
        row = session.get(Report, audit_id)
        audit = session.get(Audit, audit_id)
    if row is None:
        raise _missing(audit_id, audit)
    stored = chosen.name == "json"
    etag = f'"{row.digest}"' if stored else f'"{row.digest}-{chosen.name}"'
    headers = {"ETag": etag, "Vary": "Accept", "Cache-Control": "private, no-cache"}
    if unchanged(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    body = row.body if stored else chosen.render(AuditReport.model_validate_json(row.body))
    return Response(body, media_type=chosen.media_type, headers=headers)


def _missing(audit_id: str, audit: Audit | None) -> Exception:
    if audit is None:
        return NotFound("not_found", f"there is no audit {audit_id}")
    if audit.state is AuditState.CANCELLED:
        return Conflict("conflict", "this audit was cancelled and has no report")
    return NotFound("report_not_ready", f"this audit is {audit.state}; it has a report once it is finished")
