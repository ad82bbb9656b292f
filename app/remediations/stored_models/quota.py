"""How much the model store holds, and whether one more checkpoint fits."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.checkpoints.format.headers import BYTES
from app.database.models import Checkpoint, Trial
from app.database.states import LIVE_EVALUATIONS
from app.errors import StorageFull
from app.settings import settings

_MOST = 4
"""Bytes per parameter where the dtype is not known."""


def estimate(original: Checkpoint) -> int:
    """Bytes that a checkpoint like this one takes: unlearned models are stored in the original's dtype."""
    return original.parameters * BYTES.get(original.dtype, _MOST)


def stored(session: Session) -> int:
    """Bytes of all stored models."""
    there = sa.select(sa.func.sum(Trial.model_bytes)).where(Trial.model_uri.is_not(None), Trial.deleted_at.is_(None))
    return int(session.execute(there).scalar() or 0)


def reserved(session: Session) -> int:
    """Estimated bytes that waiting and running trials will take."""
    coming = sa.select(sa.func.sum(Trial.model_bytes)).where(
        Trial.model_uri.is_(None), Trial.state.in_(LIVE_EVALUATIONS)
    )
    return int(session.execute(coming).scalar() or 0)


def fits(used: int, wanted: int) -> bool:
    """Whether `wanted` more bytes fit within the quota."""
    quota = settings().model_store_quota
    return quota is None or used + wanted <= quota


def check(used: int, wanted: int) -> None:
    """Raises StorageFull (`model_store_full`, with what to do) where `fits` is false."""
    if not fits(used, wanted):
        raise StorageFull(
            "model_store_full",
            f"the new checkpoint would take about {wanted:,} bytes; {used:,} of {settings().model_store_quota:,} are in"
            " use or reserved. Delete models that are not needed (DELETE /v1/remediations/{id}/model,"
            " `lethe remediation delete`) or raise LETHE_MODEL_STORE_QUOTA",
        )
