"""Registering and finding checkpoints."""

import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.checkpoints.sources import Source
from app.database.engine import insert_missing
from app.database.models import DIGEST, Checkpoint
from app.errors import CheckpointRefused, NotFound

_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def register(session: Session, source: Source, name: str | None = None) -> tuple[Checkpoint, bool]:
    """The row for a checkpoint, and whether it is new; the same files in the same place are one checkpoint."""
    created = insert_missing(
        session,
        Checkpoint,
        {
            "name": name or Path(source.uri).name[:200] or "checkpoint",
            "uri": source.uri,
            **source.identity._asdict(),
            "architecture": source.files.architecture[:200],
            "parameters": source.files.parameters,
            "dtype": source.files.dtype,
            "quantization": source.files.quantization and source.files.quantization.model_dump(mode="json"),
        },
    )
    same = sa.select(Checkpoint).where(Checkpoint.digest == source.digest, Checkpoint.uri == source.uri)
    return session.scalars(same).one(), created


def get(session: Session, checkpoint_id: str) -> Checkpoint:
    """The checkpoint with that id, or NotFound."""
    row = session.get(Checkpoint, checkpoint_id)
    if row is None:
        raise NotFound("not_found", f"there is no checkpoint {checkpoint_id}")
    return row


def find(session: Session, reference: str) -> Checkpoint | None:
    """The checkpoint that an id or a digest names (its newest place); None where the reference is a URI.

    Raises:
        CheckpointRefused: `checkpoint_missing` for an id or digest that is not registered.
    """
    if _ID.fullmatch(reference):
        found = session.get(Checkpoint, reference)
    elif DIGEST.fullmatch(reference):
        newest = sa.select(Checkpoint).where(Checkpoint.digest == reference).order_by(Checkpoint.id.desc()).limit(1)
        found = session.scalars(newest).first()
    else:
        return None
    if found is None:
        raise CheckpointRefused("checkpoint_missing", f"no checkpoint {reference} is registered; give its path instead")
    return found
