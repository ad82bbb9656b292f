"""What comes next in a remediation: `advance` reads the state of its trials and audits, and takes the next step.

    queue a trial -> (a worker trains it) -> screen it -> audit it with the whole plan -> finish, or the next trial

A single trial is not screened. Each step is idempotent and begins with the remediation's lock. Whoever ended a trial or
concluded an audit calls `advance` after the commit; reconciling calls it for steps that were missed.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from sqlalchemy.orm import Session

from app.audits import service as audits
from app.catalog.plans import Plan
from app.catalog.recipes import Recipe, describe
from app.database.engine import utcnow
from app.database.models import Audit, Checkpoint, Remediation, Report, Trial
from app.database.states import (
    LIVE_AUDITS,
    LIVE_EVALUATIONS,
    LIVE_REMEDIATIONS,
    AuditState,
    EvaluationState,
    RemediationState,
    move,
)
from app.errors import AppError
from app.evidence.evaluation import Role
from app.forget_sets import service as forget_sets
from app.judgement.policy import stored
from app.judgement.verdict import Outcome
from app.remediations import outcome, ranking, service
from app.remediations.ranking import Standing
from app.remediations.schemas import Budget
from app.remediations.stored_models import quota
from app.reports.model import AuditReport


def advance(session: Session, remediation_id: str) -> bool:
    """Take the next step, if there is one; whether another may follow immediately."""
    row = service.lock(session, remediation_id)
    if row.state not in LIVE_REMEDIATIONS:
        return False
    trials = service.trials_of(session, remediation_id)
    started = [trial.started_at for trial in trials if trial.started_at is not None]
    if row.state is RemediationState.QUEUED and started:
        move(row, RemediationState.RUNNING)
        row.started_at = min(started)
        service.add_event(session, row, RemediationState.RUNNING.value)
    last = trials[-1]
    if last.state in LIVE_EVALUATIONS or any(_waits(trial) for trial in trials):
        return False
    try:
        with session.begin_nested():
            return _step(session, row, trials)
    except AppError as error:
        # For example, the forget set was purged meanwhile: no audit can be created.
        _fail(session, row, error.code, error.detail)
        return False


def _waits(trial: Trial) -> bool:
    return any(audit is not None and audit.state in LIVE_AUDITS for audit in (trial.screening, trial.audit))


def _step(session: Session, row: Remediation, trials: Sequence[Trial]) -> bool:
    if row.chosen is not None:
        return _conclude(session, row, trials, trials[row.chosen])
    last = trials[-1]
    if last.state is EvaluationState.SUCCEEDED:
        if _judged_by(last) is None:
            _audit(session, row, last, whole=len(row.recipes) == 1)
            return True
        if _verdict(last) == "robust" and last.audit is None:
            _audit(session, row, last, whole=True)
            return True
        if _verdict(last) == "robust" or len(row.recipes) == 1:
            return _choose(session, row, trials, last)
    if last.error_code == "forget_set_purged":
        _fail(session, row, last.error_code, last.error_detail or "")
        return False
    size = quota.estimate(session.get_one(Checkpoint, session.get_one(Audit, row.audit_id).original_id))
    if _may_go_on(session, row, trials, size):
        service.add_trial(session, row, len(trials), size)
        service.add_event(session, row, "trial", position=len(trials))
        session.flush()
        return False
    standings = {trial.position: _standing(session, row, trial) for trial in trials}
    found = [standing for standing in standings.values() if standing is not None]
    if not found:
        _fail(session, row, last.error_code or str(last.state), last.error_detail or f"the trial was {last.state}")
        return False
    return _choose(session, row, trials, trials[min(found).position])


def _may_go_on(session: Session, row: Remediation, trials: Sequence[Trial], size: int) -> bool:
    """Whether there is another recipe, and budget and storage for it."""
    budget = Budget.model_validate(row.budget)
    most = len(row.recipes) if budget.trials is None else min(budget.trials, len(row.recipes))
    if len(trials) >= most:
        return False
    if budget.minutes is not None and utcnow() - (row.started_at or utcnow()) >= timedelta(minutes=budget.minutes):
        return False
    return quota.fits(quota.stored(session) + quota.reserved(session), size)


def _choose(session: Session, row: Remediation, trials: Sequence[Trial], best: Trial) -> bool:
    row.chosen = best.position
    if best.audit is None:
        _audit(session, row, best, whole=True)
        return True
    return _conclude(session, row, trials, best)


def _conclude(session: Session, row: Remediation, trials: Sequence[Trial], best: Trial) -> bool:
    """End the remediation with the verdict of the whole audit of the trial that was chosen."""
    assert best.audit is not None
    if best.audit.state is not AuditState.FINISHED:
        _fail(session, row, "audit_cancelled", f"the audit {best.audit.id} of its new model was {best.audit.state}")
        return False
    row.verdict = best.audit.verdict
    row.sentence = outcome.ending(row, trials, best, _written(session, best.audit))
    service.end(session, row, RemediationState.FINISHED, verdict=row.verdict, chosen=best.position)
    return False


def _fail(session: Session, row: Remediation, code: str, detail: str) -> None:
    row.error_code, row.sentence = code, f"There is no new model: {detail}"
    service.end(session, row, RemediationState.FAILED, error_code=code)


def _judged_by(trial: Trial) -> Audit | None:
    """The trial's most complete audit."""
    return trial.audit or trial.screening


def _verdict(trial: Trial) -> Outcome | None:
    judged_by = _judged_by(trial)
    return None if judged_by is None else cast(Outcome | None, judged_by.verdict)


def _standing(session: Session, row: Remediation, trial: Trial) -> Standing | None:
    judged_by, verdict = _judged_by(trial), _verdict(trial)
    if judged_by is None or verdict is None:
        return None
    # Trials may have been audited at different precisions: compare those that all of them have.
    common = ranking.screening_precisions(_written(session, session.get_one(Audit, row.audit_id)))
    return ranking.standing(verdict, _written(session, judged_by), common, trial.position)


def _written(session: Session, audit: Audit) -> AuditReport:
    return AuditReport.model_validate_json(session.get_one(Report, audit.id).body)


def _audit(session: Session, row: Remediation, trial: Trial, *, whole: bool) -> None:
    """Create the audit of a trial's model with the first audit's plan and policy: the whole plan, or the screening."""
    first = session.get_one(Audit, row.audit_id)
    rows: dict[Role, Checkpoint] = {"original": session.get_one(Checkpoint, first.original_id)}
    assert trial.checkpoint is not None
    rows["unlearned"] = trial.checkpoint
    if first.retrained_id is not None:
        rows["retrained"] = session.get_one(Checkpoint, first.retrained_id)
    asked = Plan.model_validate(first.plan)
    plan = Plan(precisions=ranking.applied(asked.precisions), metrics=asked.metrics)
    if not whole:
        few = ranking.screening_precisions(_written(session, first))
        whole = set(few) == set(plan.precisions)
        plan = Plan(precisions=few, metrics=plan.metrics)
    forget_set = forget_sets.find_usable(session, first.forget_set_id, lock=True)
    kind = "audit" if whole else "screening"
    name = f"{first.name}: {describe(Recipe.model_validate(trial.recipe))}, {kind}"[:200]
    audit = audits.new(name, rows, forget_set, plan, stored(first.policy))
    session.add(audit)
    session.flush()
    audits.begin(session, audit, rows, forget_set, plan)
    trial.screening_id, trial.audit_id = (trial.screening_id, audit.id) if whole else (audit.id, trial.audit_id)
    service.add_event(session, row, kind, position=trial.position, audit=audit.id)
    session.flush()
