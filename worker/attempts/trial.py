"""Training a trial: from its claim to a checkpoint in the model store.

Training saves its state in the data directory, so that the next attempt on the same machine resumes where a killed one
was; an attempt on another machine starts from the beginning. The model's place is written to the row before the model
is written there: whatever happens to this process, the row says what has to be deleted.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa
import structlog

from app.catalog.recipes import Recipe
from app.database import leases
from app.database.attempts import TrialClaim
from app.errors import InvalidRequest
from app.evidence.unlearning import LossPoint, Unlearned, thin
from app.forget_sets.bundle import Bundle
from app.settings import settings
from app.storage import model_store
from worker.attempts.heartbeat import Reason, Stopped
from worker.attempts.inputs import device, read_bundle
from worker.attempts.transactions import in_transaction

if TYPE_CHECKING:
    from app.remediations.trials import Trained

WRITE_SECONDS = 2.0
"""The loss curve is written at most this often."""

STATE = "state"

log = structlog.get_logger(__name__)

ReportProgress = Callable[[str, int, int], None]


class Unlearn(Protocol):
    """The engine's entry point, `worker.engine.unlearning.unlearn.unlearn`."""

    def __call__(
        self,
        original: Path,
        out: Path,
        bundle: Bundle,
        recipe: Recipe,
        *,
        work: Path | None = None,
        device: str | None = None,
        progress: ReportProgress | None = None,
        on_loss: Callable[[LossPoint], None] | None = None,
        expected: str | None = None,
        uri: str | None = None,
    ) -> Unlearned: ...


def folder(trial_id: str) -> Path:
    """The folder for the state and the checkpoint of a trial's training on this machine."""
    return settings().data_dir / "trials" / trial_id


def train(claim: TrialClaim, unlearn: Unlearn, progress: ReportProgress, texts: list[str]) -> "Trained":
    """Check the inputs, train, and store the checkpoint. Adds the forget set's texts to `texts`."""
    # Imported here, not at the top: they import the service's schemas, which few processes of the pool need.
    from app.remediations import trials
    from app.remediations.stored_models import cards

    uri, expected = claim.original
    progress("verify", 0, 1)
    original = model_store.local_path(uri, expected, progress)
    bundle = read_bundle(claim.forget_set_digest)
    texts.append(json.dumps(asdict(bundle), ensure_ascii=False))
    in_transaction(lambda session: trials.check_room(session, claim))
    progress("verify", 1, 1)
    out = _make_room(claim.id) / "out"

    def go(state: Path) -> Unlearned:
        return unlearn(
            original,
            out,
            bundle,
            Recipe.model_validate(claim.recipe),
            work=state,
            device=device(),
            progress=progress,
            on_loss=curve.add,
            expected=expected,
            uri=uri,
        )

    curve = Curve(claim)
    state = folder(claim.id) / STATE
    try:
        result = go(state)
    except InvalidRequest as error:
        if error.code != "state_mismatch":
            raise
        # It is from another version of Lethe or another device.
        log.warning("the state of an earlier attempt cannot be used here, training starts over", detail=error.detail)
        shutil.rmtree(state)
        result = go(state)
    checkpoint = trials.source(model_store.place(claim.id, result.digest), out, result.digest)
    _note(claim, checkpoint.uri)
    stored = model_store.store(out, checkpoint.uri, cards.card(result, None), progress)
    return trials.Trained(result, checkpoint, stored)


def _make_room(trial_id: str) -> Path:
    """The trial's folder, emptied of everything except the state that an earlier attempt left."""
    place = folder(trial_id)
    place.mkdir(parents=True, exist_ok=True)
    for left in place.iterdir():
        if left.name != STATE:
            shutil.rmtree(left)
    return place


def _note(claim: TrialClaim, uri: str) -> None:
    """Write to the row where the model will be; delete what an earlier attempt left elsewhere."""
    from app.remediations import trials

    former = in_transaction(lambda session: trials.model_uri(session, claim))
    if former is not None and former != uri:
        model_store.delete(former)
    if not in_transaction(lambda session: leases.note(session, claim, model_uri=uri)):
        raise Stopped(Reason.LOST)


class Curve:
    """The growing loss curve, which is written to the row from time to time."""

    def __init__(self, claim: TrialClaim) -> None:
        from app.remediations import trials

        self._claim = claim
        self._points = in_transaction(lambda session: trials.losses(session, claim))
        self._written_at = 0.0

    def add(self, point: LossPoint) -> None:
        """The engine's callback, after each optimiser step."""
        # An attempt that resumes from a saved state repeats the steps after it.
        while self._points and self._points[-1].step >= point.step:
            self._points.pop()
        self._points.append(point)
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self._written_at = time.monotonic()
            self._write()

    def _write(self) -> None:
        shown = [found.model_dump(mode="json") for found in thin(self._points)]
        try:
            in_transaction(lambda session: leases.note(session, self._claim, losses=shown), patience=0)
        except sa.exc.SQLAlchemyError as error:
            log.warning("the loss curve could not be written", error=type(error).__name__)
