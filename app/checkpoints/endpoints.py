"""Checkpoints over HTTP."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Query, Response

from app.checkpoints import service
from app.checkpoints.schemas import CheckpointOut, NewCheckpoint
from app.checkpoints.sources import open_checkpoint
from app.database.engine import reading, transaction
from app.database.models import Checkpoint
from app.http.auth import CanRead, CanWrite
from app.http.pagination import Cursor, Limit, Page, page_of
from app.http.problems import CHECKPOINT, WITH_BODY, problems
from app.http.request_types import Id

router = APIRouter(tags=["Checkpoints"])


@router.post(
    "/v1/checkpoints",
    status_code=201,
    responses=problems(*WITH_BODY, *CHECKPOINT)
    | {200: {"model": CheckpointOut, "description": "It was already registered."}},
)
def register_checkpoint(body: NewCheckpoint, key: CanWrite, response: Response) -> CheckpointOut:
    """Register a checkpoint: safetensors, config and tokenizer are checked and its digest is computed.

    Posting an audit with a path does the same. An already quantized checkpoint can be registered too: an audit names it
    among its artifacts.
    """
    source = open_checkpoint(body.uri, quantized=True)
    with transaction() as session:
        row, created = service.register(session, source, body.name)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/checkpoints/{row.id}"
    return CheckpointOut.model_validate(row)


@router.get("/v1/checkpoints", responses=problems("invalid_request"))
def list_checkpoints(
    key: CanRead,
    digest: Annotated[str | None, Query(max_length=80, pattern="^[0-9a-z:]*$")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[CheckpointOut]:
    """List checkpoints, newest first."""
    statement = sa.select(Checkpoint)
    if digest is not None:
        statement = statement.where(Checkpoint.digest == digest)
    view = CheckpointOut.model_validate
    return page_of(statement, Checkpoint.id, view, "/v1/checkpoints", limit, cursor, digest=digest)


@router.get("/v1/checkpoints/{checkpoint_id}", responses=problems("not_found", "invalid_request"))
def read_checkpoint(checkpoint_id: Id, key: CanRead) -> CheckpointOut:
    """Read one checkpoint."""
    with reading() as session:
        return CheckpointOut.model_validate(service.get(session, checkpoint_id))
