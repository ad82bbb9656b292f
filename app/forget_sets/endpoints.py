"""Forget sets over HTTP."""

from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import structlog
from fastapi import APIRouter, Depends, Response

from app.database.engine import empty_log, reading, transaction
from app.database.models import ForgetSet
from app.forget_sets import bundle, service
from app.forget_sets.layout import arrange
from app.forget_sets.schemas import ForgetSetOut, NewForgetSet
from app.forget_sets.sources import read_forget_set
from app.forget_sets.upload import Upload, read_body
from app.http.auth import CanRead, CanWrite
from app.http.pagination import Cursor, Limit, Page, page_of
from app.http.problems import FORGET_SET, WITH_BODY, problems
from app.http.request_types import Id

router = APIRouter(tags=["Forget sets"])
log = structlog.get_logger()

_BODIES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "Each file's path in the bundle is the name of its form field"
                    " (`-F verbmem/forget=@verbmem/forget.json`), or, in the field `files`, its file name"
                    " (`-F 'files=@knowmem/forget_qa.json;filename=knowmem/forget_qa.json'`)."
                    " A .zip or .tar.gz of the folder counts as its files (`-F files=@muse-news.tar.gz`).",
                    "properties": {
                        "name": {"type": "string", "maxLength": 200},
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                    "additionalProperties": {"type": "string", "format": "binary"},
                },
                "examples": {"archive": {"value": {"name": "MUSE-News", "files": ["muse-news.tar.gz"]}}},
            },
            "application/json": {"schema": NewForgetSet.model_json_schema()},
        },
    }
}


@router.post(
    "/v1/forget-sets",
    status_code=201,
    openapi_extra=_BODIES,
    responses=problems(*WITH_BODY, "unsupported_media_type", *FORGET_SET)
    | {200: {"model": ForgetSetOut, "description": "The same content was already there."}},
)
def add_forget_set(
    key: CanWrite, body: Annotated[Upload | NewForgetSet, Depends(read_body)], response: Response
) -> ForgetSetOut:
    """Upload a MUSE bundle, or name a directory on the service's machine to copy it from.

    A missing file makes its metric unavailable; a malformed one is refused with file, line and field. Other files of
    MUSE's own folders are ignored and listed as such; any other name is refused.
    """
    if isinstance(body, Upload):
        source, files = "upload", body.files
    else:
        source, files = read_forget_set(body.uri)
    parsed = bundle.parse(files)
    kept = {file.name: files[given] for given, file in arrange(list(files)).files.items()}
    folder = Path(source).name if source != "upload" else ""
    name = body.name or _printable(parsed.name or "") or _printable(folder) or "forget set"
    with transaction() as session:
        row, created = service.add(session, parsed, kept, name=name, source=source)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/forget-sets/{row.id}"
    return ForgetSetOut.of(row)


def _printable(name: str) -> str:
    return "".join(character for character in name if character.isprintable()).strip()[:200]


@router.get("/v1/forget-sets", responses=problems("invalid_request"))
def list_forget_sets(key: CanRead, limit: Limit = 50, cursor: Cursor = None) -> Page[ForgetSetOut]:
    """List forget sets, newest first, including purged ones."""
    return page_of(sa.select(ForgetSet), ForgetSet.id, ForgetSetOut.of, "/v1/forget-sets", limit, cursor)


@router.get("/v1/forget-sets/{forget_set_id}", responses=problems("not_found", "invalid_request"))
def read_one(forget_set_id: Id, key: CanRead) -> ForgetSetOut:
    """Read one: its digest, its counts and which metrics can be measured on it. The content is never returned."""
    with reading() as session:
        return ForgetSetOut.of(service.get(session, forget_set_id))


@router.delete("/v1/forget-sets/{forget_set_id}", status_code=204, responses=problems("not_found", "invalid_request"))
def purge_forget_set(forget_set_id: Id, key: CanWrite) -> None:
    """Purge it: the content is deleted; digest and counts stay. Queued evaluations on it fail at once."""
    with transaction() as session:
        service.purge(session, forget_set_id)
    if not empty_log():
        log.warning("purged texts are still in SQLite's log; workers will try again", forget_set=forget_set_id)
