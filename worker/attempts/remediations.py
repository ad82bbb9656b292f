"""What remediations need besides the training of their trials: their next steps, model cards and deletions."""

import os
import shutil
import time

import sqlalchemy as sa
import structlog

from app.database.engine import reading
from app.database.models import Remediation, Report, Trial
from app.database.states import DONE_EVALUATIONS, LIVE_REMEDIATIONS, RemediationState
from app.errors import AppError
from app.evidence.unlearning import Unlearned
from app.reports.model import AuditReport
from app.settings import settings
from app.storage import model_store
from worker.attempts.transactions import in_transaction

STALE_SECONDS = 24 * 3600.0
"""A partly fetched copy this old is abandoned."""

log = structlog.get_logger(__name__)


def advance() -> None:
    """Take the next steps of all live remediations; call it after every commit that ended something.

    A remediation that cannot be advanced is logged and tried again by the next call; it does not hold up others.
    """
    with reading() as session:
        live = session.scalars(sa.select(Remediation.id).where(Remediation.state.in_(LIVE_REMEDIATIONS))).all()
    if not live:
        return
    # Imported here, not at the top: it imports the service's schemas, which few processes of the pool need.
    from app.remediations.advance import advance as step

    for remediation_id in live:
        try:
            while in_transaction(lambda session, row=remediation_id: step(session, row)):  # type: ignore[misc]
                pass
        except Exception as error:
            log.exception("a remediation could not be advanced", remediation=remediation_id, error=type(error).__name__)
    complete_cards()


def complete_cards() -> None:
    """Write the verdict to the cards of models that were just judged: first the card, then the row."""
    with reading() as session:
        waiting = session.execute(
            sa.select(Trial.id, Trial.model_uri, Trial.result, Report.body)
            .join(Remediation, Remediation.id == Trial.remediation_id)
            .join(Report, Report.audit_id == Trial.audit_id)
            .where(
                Remediation.state == RemediationState.FINISHED,
                Remediation.chosen == Trial.position,
                Trial.card_done.is_(False),
                Trial.deleted_at.is_(None),
                Trial.model_uri.is_not(None),
            )
        ).all()
    if not waiting:
        return
    from app.remediations.stored_models.cards import card

    for trial_id, uri, result, body in waiting:
        text = card(Unlearned.model_validate(result), AuditReport.model_validate_json(body))
        try:
            model_store.write_card(uri, text)
        except AppError as error:
            log.warning("a model card could not be written, trying again later", trial=trial_id, detail=error.detail)
            continue
        done = sa.update(Trial).where(Trial.id == trial_id).values(card_done=True)
        in_transaction(lambda session, statement=done: session.execute(statement) and None)  # type: ignore[misc]


def clean() -> None:
    """Do what was left undone: cards, models that are no longer needed, folders of trials that are over."""
    complete_cards()
    for trial_id, why in _superfluous():
        from app.remediations.stored_models import deletion

        try:
            deletion.delete(trial_id, why)
        except AppError as error:
            log.warning("a model could not be deleted, trying again later", trial=trial_id, detail=error.detail)
    _sweep_trials()
    _sweep_copies()


def _superfluous() -> list[tuple[str, str]]:
    with reading() as session:
        if (
            session.scalar(sa.select(sa.func.count()).where(Trial.model_uri.is_not(None), Trial.deleted_at.is_(None)))
            == 0
        ):
            return []
        from app.remediations.stored_models import deletion

        return deletion.superfluous(session)


def _sweep_trials() -> None:
    place = settings().data_dir / "trials"
    here = os.listdir(place) if place.is_dir() else []
    if not here:
        return
    with reading() as session:
        going_on = set(
            session.scalars(sa.select(Trial.id).where(Trial.id.in_(here), Trial.state.not_in(DONE_EVALUATIONS)))
        )
    for name in here:
        if name not in going_on:
            shutil.rmtree(place / name, ignore_errors=True)


def _sweep_copies() -> None:
    place = settings().data_dir / "fetched"
    here = list(place.iterdir()) if place.is_dir() else []
    if not here:
        return
    with reading() as session:
        there = session.scalars(
            sa.select(Trial.model_uri).where(Trial.model_uri.is_not(None), Trial.deleted_at.is_(None))
        )
        wanted = {model_store.copy_of(uri).name for uri in there if uri is not None}
    for copy in here:
        old = copy.suffix == ".part" and time.time() - copy.stat().st_mtime > STALE_SECONDS
        if old or (copy.suffix != ".part" and copy.name not in wanted):
            shutil.rmtree(copy, ignore_errors=True)
