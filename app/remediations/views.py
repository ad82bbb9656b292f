"""Rows -> what responses show."""

from app.catalog.recipes import Recipe
from app.checkpoints.schemas import CheckpointRef
from app.database.models import Audit, Remediation, Trial
from app.database.states import DONE_EVALUATIONS, LIVE_AUDITS, LIVE_REMEDIATIONS, EvaluationState
from app.evidence.unlearning import LossPoint, Unlearned, thin
from app.remediations.schemas import (
    AuditRef,
    RemediationLinks,
    RemediationOut,
    RemediationSummary,
    StoredModel,
    TrialOut,
)


def path(remediation_id: str) -> str:
    """The remediation's own path."""
    return f"/v1/remediations/{remediation_id}"


def summary(row: Remediation) -> RemediationSummary:
    """A remediation in a list."""
    return RemediationSummary.model_validate(_summary(row))


def _summary(row: Remediation) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "audit": row.audit_id,
        "method": row.method,
        "loss": row.loss,
        "verdict": row.verdict,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
    }


def remediation(row: Remediation) -> RemediationOut:
    """A remediation as `service.get` loads it."""
    own = path(row.id)
    returned = None if row.chosen is None else row.trials[row.chosen].audit_id
    stage, done, total = _stage(row)
    return RemediationOut.model_validate(
        _summary(row)
        | {
            "stage": stage,
            "done": done,
            "total": total,
            "budget": row.budget,
            "recipes": row.recipes,
            "trials": [trial(item) for item in row.trials],
            "chosen": row.chosen,
            "sentence": row.sentence,
            "error_code": row.error_code,
            "started_at": row.started_at,
            "links": RemediationLinks(
                self=own,
                events=f"{own}/events",
                report=f"{own}/report",
                cancel=f"{own}/cancel",
                model=f"{own}/model",
                audit=None if returned is None else f"/v1/audits/{returned}",
            ),
        }
    )


def _stage(row: Remediation) -> tuple[str | None, int, int]:
    """The current stage and its progress."""
    if row.state not in LIVE_REMEDIATIONS or not row.trials:
        return None, 0, 0
    last = row.trials[-1]
    if last.state is EvaluationState.RUNNING:
        return last.stage, last.done, last.total
    for item in row.trials:
        for audit in (item.audit, item.screening):
            if audit is not None and audit.state in LIVE_AUDITS:
                return "audit", *_evaluations(audit)
    return None, 0, 0


def _evaluations(audit: Audit) -> tuple[int, int]:
    states = {part.evaluation_id: part.end_state or part.evaluation.state for part in audit.parts}
    return sum(state in DONE_EVALUATIONS for state in states.values()), len(states)


def trial(row: Trial) -> TrialOut:
    """One trial."""
    result = None if row.result is None else Unlearned.model_validate(row.result)
    losses = [LossPoint.model_validate(point) for point in row.losses] if result is None else result.losses
    checkpoint = row.checkpoint
    return TrialOut(
        id=row.id,
        position=row.position,
        recipe=Recipe.model_validate(row.recipe),
        state=row.state,
        attempt=row.attempt,
        stage=row.stage,
        done=row.done,
        total=row.total,
        error_code=row.error_code,
        error_detail=row.error_detail,
        losses=thin(losses),
        readings=[] if result is None else result.readings,
        saliency=None if result is None else result.saliency,
        stopped=None if result is None else result.stopped,
        steps=None if result is None else result.steps,
        resumed=None if result is None else result.resumed,
        parameters_total=None if result is None else result.parameters_total,
        parameters_trained=None if result is None else result.parameters_trained,
        parameters_changed=None if result is None else result.parameters_changed,
        peak_memory=None if result is None else result.peak_memory,
        checkpoint=None
        if checkpoint is None
        else CheckpointRef(id=checkpoint.id, name=checkpoint.name, uri=checkpoint.uri, digest=checkpoint.digest),
        model=None
        if checkpoint is None or row.model_uri is None
        else StoredModel(uri=row.model_uri, digest=checkpoint.digest, bytes=row.model_bytes, deleted_at=row.deleted_at),
        screening=_audit(row.screening),
        audit=_audit(row.audit),
    )


def _audit(row: Audit | None) -> AuditRef | None:
    if row is None:
        return None
    done, total = _evaluations(row)
    return AuditRef.model_validate(
        {"id": row.id, "state": row.state, "verdict": row.verdict, "done": done, "total": total}
    )
