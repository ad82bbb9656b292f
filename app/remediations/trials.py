"""What a worker writes of a trial while it trains and when it is done."""

from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.checkpoints.format import digests, files
from app.checkpoints.sources import Source
from app.database import leases
from app.database.attempts import TrialClaim
from app.database.models import Remediation, Trial
from app.evidence.unlearning import LossPoint, Unlearned
from app.remediations.stored_models import quota


class Trained(NamedTuple):
    """The result of a trial: its record, and where the checkpoint is."""

    result: Unlearned
    checkpoint: Source
    bytes: int


def source(uri: str, folder: Path, expected: str) -> Source:
    """The new checkpoint as it will be registered, checked like any other.

    Raises:
        CheckpointRefused: for everything that would keep it from being audited, or when it has another digest.
    """
    found = files.inspect(folder)
    known = digests.identity(found)
    digests.check_digest(folder, known.digest, expected)
    return Source(uri, known, found)


def check_room(session: Session, claim: TrialClaim) -> None:
    """Raise unless this trial's model fits within the quota.

    Raises:
        StorageFull: `model_store_full`.
    """
    trial = session.get_one(Trial, claim.id)
    # An earlier attempt's model is replaced, not added to.
    own = 0 if trial.model_uri is None else trial.model_bytes
    quota.check(quota.stored(session) - own, trial.model_bytes)


def losses(session: Session, claim: TrialClaim) -> list[LossPoint]:
    """The loss curve of earlier attempts."""
    return [LossPoint.model_validate(point) for point in session.get_one(Trial, claim.id).losses]


def model_uri(session: Session, claim: TrialClaim) -> str | None:
    """Where an earlier attempt at this trial has, or may have, left a model."""
    return session.get_one(Trial, claim.id).model_uri


def finish(session: Session, claim: TrialClaim, trained: Trained) -> bool:
    """Register the new checkpoint and end the trial; False when another attempt owns the trial now."""
    mine = leases.finish(
        session,
        claim,
        trained.result.model_dump(mode="json"),
        model_uri=trained.checkpoint.uri,
        model_bytes=trained.bytes,
        losses=[],
    )
    if not mine:
        return False
    remediation = session.scalars(sa.select(Remediation).join(Trial).where(Trial.id == claim.id)).one()
    trial = session.get_one(Trial, claim.id)
    number = f", trial {trial.position + 1}" if len(remediation.recipes) > 1 else ""
    row, _ = checkpoints.register(session, trained.checkpoint, f"{remediation.name[:180]}{number}")
    trial.checkpoint_id = row.id
    session.flush()
    return True
