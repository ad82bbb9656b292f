"""Reports over HTTP: the stored bytes, or a rendering of them."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response

from app.database.engine import reading
from app.database.models import Audit
from app.database.models import Report as ReportRow
from app.database.states import AuditState
from app.errors import Conflict, NotAcceptable, NotFound
from app.http.auth import CanRead
from app.http.fields import Id
from app.http.problems import problems
from app.reports.model import Report
from app.reports.rendering.markdown import markdown

router = APIRouter(tags=["Reports"])

Format = Literal["json", "markdown"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "markdown": "text/markdown"}


def _json(body: str) -> str:
    return body


def _markdown(body: str) -> str:
    return markdown(Report.model_validate_json(body))


RENDERERS: dict[Format, Callable[[str], str]] = {"json": _json, "markdown": _markdown}


@router.get(
    "/v1/audits/{audit_id}/report",
    response_class=Response,
    responses=problems("not_found", "report_not_ready", "conflict", "not_acceptable", "invalid_request")
    | {
        200: {
            "description": "The report: verdict, reasons, every figure and the evidence for it.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Report"}},
                "text/markdown": {"schema": {"type": "string"}, "example": "# recovered: release 2026-03\n…"},
            },
            "headers": {"ETag": {"schema": {"type": "string"}, "description": "Of this rendering of this report."}},
        },
        304: {"description": "The rendering that If-None-Match names is the current one."},
    },
)
def read_report(
    audit_id: Id,
    key: CanRead,
    format_: Annotated[Format | None, Query(alias="format", description="Goes before Accept.")] = None,
    accept: Annotated[str, Header(max_length=1000)] = "*/*",
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """The report of a finished audit, as JSON or Markdown. It never changes."""
    chosen = format_ or negotiate(accept)
    with reading() as session:
        row = session.get(ReportRow, audit_id)
        audit = session.get(Audit, audit_id)
    if row is None:
        raise _missing(audit_id, audit)
    etag = f'"{row.digest}"' if chosen == "json" else f'"{row.digest}-{chosen}"'
    headers = {"ETag": etag, "Vary": "Accept", "Cache-Control": "private, no-cache"}
    if if_none_match is not None and _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(RENDERERS[chosen](row.body), media_type=MEDIA_TYPES[chosen], headers=headers)


def _missing(audit_id: str, audit: Audit | None) -> Exception:
    if audit is None:
        return NotFound("not_found", f"there is no audit {audit_id}")
    if audit.state is AuditState.CANCELLED:
        return Conflict("conflict", "this audit was cancelled and has no report")
    return NotFound("report_not_ready", f"this audit is {audit.state}; its report comes when it is finished")


def negotiate(accept: str) -> Format:
    """The offered format that an Accept header likes best; JSON where it has no preference.

    Raises:
        NotAcceptable: when it wants none of them.
    """
    wishes = [_wish(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best: tuple[float, Format] | None = None
    for name, media_type in MEDIA_TYPES.items():
        quality = _quality(media_type, wishes)
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, name)
    if best is None:
        raise NotAcceptable(
            "not_acceptable",
            f"the report comes as {', '.join(MEDIA_TYPES.values())}; ?format= goes before Accept",
        )
    return best[1]


def _wish(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, float(value)
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _quality(media_type: str, wishes: list[tuple[str, float]]) -> float:
    # The most specific range decides (RFC 9110, 12.5.1).
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for wanted, quality in wishes if wanted == media_range]
        if found:
            return max(found)
    return 0.0


def _matches(if_none_match: str, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in given or etag in given
