"""The evaluations that an audit needs: those that exist are shared, the others are created."""

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import canonical
from app.catalog.metrics import MetricId
from app.catalog.precisions import parse
from app.database.engine import insert_missing
from app.database.leases import requeue
from app.database.models import Checkpoint, Evaluation
from app.database.states import EvaluationState
from app.errors import InvalidRequest
from app.evidence import artifacts
from app.evidence.evaluation import SUITE_VERSION
from app.settings import settings

SEED = 0


class Wanted(NamedTuple):
    """What decides an evaluation's scores."""

    checkpoint: Checkpoint
    original: Checkpoint
    """Whose tokenizer, end tokens, window and attention it is run with."""
    forget_set_digest: str
    precision: str
    metrics: tuple[MetricId, ...]
    calibration: str | None = None
    """The digest of the operator's calibration file, where the precision uses it."""
    base: Checkpoint | None = None
    """What an artifact is said to be of."""

    @property
    def places(self) -> dict[str, str | None]:
        """The rows of the checkpoints that are read."""
        return {
            "checkpoint_id": self.checkpoint.id,
            "interface_id": None if self.original.id == self.checkpoint.id else self.original.id,
            "base_id": self.base.id if self.base else None,
        }

    @property
    def key(self) -> str:
        """The evaluation's content address: `sha256:…` over canonical JSON of all that decides its scores."""
        content = {
            "tensors": _tensors(self.checkpoint),
            "own_interface": self.checkpoint.interface,
            "interface": self.original.interface,
            "precision": self.precision,
            "forget_set": self.forget_set_digest,
            "metrics": sorted(self.metrics),
            "suite": SUITE_VERSION,
            "seed": SEED,
            "device": settings().device,
        }
        if self.calibration is not None:
            content["calibration_file"] = self.calibration
        if self.base is not None:
            content["base"] = _tensors(self.base)
        return canonical.digest(content)


def _tensors(checkpoint: Checkpoint) -> str:
    # A row of an earlier version has only the digest of its files; no worker will find a checkpoint with that digest.
    return checkpoint.tensors or checkpoint.digest


def calibration_digest(precision: str) -> str | None:
    """The digest of the operator's calibration file, if the precision uses it.

    Raises:
        InvalidRequest: `precision_unavailable` when none is set or it cannot be read.
    """
    if precision in artifacts.LIBRARIES or parse(precision).calibration != "file":
        return None
    file = settings().calibration_file
    try:
        content = file.read_bytes() if file is not None else None
    except OSError as error:
        raise InvalidRequest(
            "precision_unavailable", f"{precision}: {file} cannot be read: {error.strerror}"
        ) from error
    if content is None:
        raise InvalidRequest(
            "precision_unavailable",
            f"{precision}: no file is set; start the service and its workers with LETHE_CALIBRATION_FILE",
        )
    return canonical.sha256(content)


def acquire(session: Session, wanted: Iterable[Wanted]) -> dict[str, Evaluation]:
    """Key -> evaluation, each succeeded, running or queued; locked until the transaction ends.

    Those that failed or were cancelled are queued again with a fresh budget of attempts.
    """
    by_key = {item.key: item for item in wanted}
    # In the order of keys: two audits that insert the same evaluations at once must not deadlock.
    for key in sorted(by_key):
        _insert(session, key, by_key[key])
    statement = sa.select(Evaluation).where(Evaluation.key.in_(by_key)).order_by(Evaluation.id).with_for_update()
    rows = session.scalars(statement).all()
    for row in rows:
        requeue(row)
        if row.state is EvaluationState.QUEUED:
            # The same files may have moved since; use the place that was just read.
            for column, place in by_key[row.key].places.items():
                setattr(row, column, place)
    session.flush()
    return {row.key: row for row in rows}


def _insert(session: Session, key: str, wanted: Wanted) -> None:
    insert_missing(
        session,
        Evaluation,
        {
            "key": key,
            **wanted.places,
            "forget_set_digest": wanted.forget_set_digest,
            "precision": wanted.precision,
            "metrics": sorted(wanted.metrics),
            "seed": SEED,
        },
    )
