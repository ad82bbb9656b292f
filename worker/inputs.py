"""What evaluations, diagnoses and trials read, checked to be what was asked about."""

from pathlib import Path

import sqlalchemy as sa

from app.checkpoints.files import digest
from app.db import reading
from app.errors import CheckpointRefused, Gone
from app.forget_sets.bundle import Bundle, parse
from app.models import ForgetSet, ForgetSetFile
from app.settings import settings


def digests() -> Path:
    """The cache of files' digests that all processes of this data directory share."""
    return settings().data_dir / "digests.sqlite"


def device() -> str | None:
    """The device of the settings, as the engine takes it."""
    return None if settings().device == "auto" else settings().device


def check_unchanged(path: Path, expected: str) -> None:
    """Raise unless the checkpoint in `path` has this digest; unchanged files cost a stat.

    Raises:
        CheckpointRefused: `checkpoint_changed`, `checkpoint_missing`.
    """
    found = digest(path, cache=digests())
    if found != expected:
        raise CheckpointRefused(
            "checkpoint_changed",
            f"the files in {path} are no longer those that were registered ({expected}, now {found});"
            " register the directory again and submit anew",
        )


def read_bundle(forget_set_digest: str) -> Bundle:
    """The forget set of this digest.

    Raises:
        Gone: `forget_set_purged`.
    """
    with reading() as session:
        rows = session.execute(
            sa.select(ForgetSetFile.name, ForgetSetFile.content)
            .join(ForgetSet, ForgetSet.id == ForgetSetFile.forget_set_id)
            .where(ForgetSet.digest == forget_set_digest, ForgetSet.purged_at.is_(None))
        ).all()
    if not rows:
        raise Gone("forget_set_purged", "the forget set's content was purged before this could run")
    return parse({row.name: row.content for row in rows})
