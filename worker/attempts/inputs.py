"""What evaluations, diagnoses and trials read from settings and database."""

import sqlalchemy as sa

from app.database.engine import reading
from app.database.models import ForgetSet, ForgetSetFile
from app.errors import Gone
from app.forget_sets.bundle import Bundle, parse
from app.settings import settings


def device() -> str | None:
    """The device of the settings, as the engine expects it."""
    return None if settings().device == "auto" else settings().device


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
