"""Creating and reading diagnoses. The same pair at the same precisions is the same diagnosis."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload

from app import canonical
from app.catalog.precisions import PRECISIONS
from app.database.engine import insert_missing
from app.database.leases import requeue
from app.database.models import Checkpoint, Diagnosis
from app.database.states import EvaluationState
from app.errors import NotFound
from app.evidence.diagnosis import DEFAULT_DIAGNOSED, DIAGNOSIS_VERSION


def acquire(
    session: Session,
    original: Checkpoint,
    unlearned: Checkpoint,
    precisions: Sequence[str] = DEFAULT_DIAGNOSED,
) -> Diagnosis:
    """The pair's diagnosis, created where there is none; locked until the transaction ends.

    One that failed is queued again, with a fresh budget of attempts. Call it after `evaluations.acquire`: evaluations
    are locked first.
    """
    ordered = [name for name in PRECISIONS if name in precisions]
    key = _key(original, unlearned, ordered)
    insert_missing(
        session,
        Diagnosis,
        {"key": key, "original_id": original.id, "unlearned_id": unlearned.id, "precisions": ordered},
    )
    row = session.scalars(sa.select(Diagnosis).where(Diagnosis.key == key).with_for_update()).one()
    requeue(row)
    if row.state is EvaluationState.QUEUED:
        # The same files may have moved since; use the places that were just read.
        row.original_id, row.unlearned_id = original.id, unlearned.id
    session.flush()
    return row


def _key(original: Checkpoint, unlearned: Checkpoint, precisions: Sequence[str]) -> str:
    """The diagnosis's content address: `sha256:…` over canonical JSON of all that decides its numbers."""
    content = {
        "original": original.digest,
        "unlearned": unlearned.digest,
        "precisions": precisions,
        "version": DIAGNOSIS_VERSION,
    }
    return canonical.digest(content)


def get(session: Session, diagnosis_id: str) -> Diagnosis:
    """The diagnosis with that id and its checkpoints, or NotFound."""
    row = session.scalars(
        sa.select(Diagnosis)
        .where(Diagnosis.id == diagnosis_id)
        .options(joinedload(Diagnosis.original), joinedload(Diagnosis.unlearned))
        .execution_options(populate_existing=True)
    ).one_or_none()
    if row is None:
        raise NotFound("not_found", f"there is no diagnosis {diagnosis_id}")
    return row
