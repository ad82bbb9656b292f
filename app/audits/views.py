"""Rows -> what responses show."""

from typing import Any, cast

from pydantic import ValidationError

from app.audits.schemas import (
    ArtifactOut,
    AuditLinks,
    AuditOut,
    AuditSummary,
    PartOut,
    PlanOut,
)
from app.catalog import plans
from app.catalog.metrics import DEFAULT_METRICS, METRICS
from app.checkpoints.schemas import CheckpointRef
from app.database.models import Audit, AuditPart, Checkpoint
from app.evidence.artifacts import Of
from app.evidence.evaluation import Role
from app.evidence.quantization import Quantization
from app.judgement.policy import Policy


def path(audit_id: str) -> str:
    """The audit's own path."""
    return f"/v1/audits/{audit_id}"


def summary(row: Audit) -> AuditSummary:
    """An audit in a list."""
    return AuditSummary.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "state": row.state,
            "verdict": row.verdict,
            "forget_set": row.forget_set_id,
            "original": row.original_id,
            "unlearned": row.unlearned_id,
            "retrained": row.retrained_id,
            "judged_again_from": row.judged_again_from,
            "created_at": row.created_at,
            "finished_at": row.finished_at,
        }
    )


def audit(row: Audit) -> AuditOut:
    """An audit as `service.get` loads it."""
    roles: dict[Role, Checkpoint | None] = {
        "original": row.original,
        "unlearned": row.unlearned,
        "retrained": row.retrained,
    }
    own = path(row.id)
    return AuditOut.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "state": row.state,
            "verdict": row.verdict,
            "forget_set": {
                "id": row.forget_set.id,
                "name": row.forget_set.name,
                "digest": row.forget_set.digest,
            },
            "checkpoints": {role: _ref(found) for role, found in roles.items() if found is not None},
            "artifacts": [
                ArtifactOut(
                    name=one.name,
                    of=cast(Of, one.of),
                    checkpoint=_ref(one.checkpoint),
                    quantization=Quantization.model_validate(one.checkpoint.quantization),
                )
                for one in row.artifacts
            ],
            "plan": PlanOut(
                precisions=row.plan["precisions"],
                metrics=row.plan["metrics"],
                left_out=_left_out(row),
            ),
            "policy": _policy(row),
            "policy_digest": row.policy_digest,
            "parts": [part(item) for item in row.parts],
            "judged_again_from": row.judged_again_from,
            "judgements": [item.id for item in row.judgements],
            "created_at": row.created_at,
            "finished_at": row.finished_at,
            "links": AuditLinks(
                self=own,
                events=f"{own}/events",
                report=f"{own}/report",
                cancel=f"{own}/cancel",
                diagnosis=None if row.diagnosis is None else f"/v1/diagnoses/{row.diagnosis.id}",
            ),
        }
    )


def _policy(row: Audit) -> Policy | dict[str, Any]:
    """As it was hashed: one that an earlier version stored may have other fields, and gets none of today's defaults."""
    try:
        found = Policy.model_validate(row.policy)
    except ValidationError:
        return row.policy
    return found if found.model_dump(mode="json") == row.policy else row.policy


def _left_out(row: Audit) -> dict[str, str]:
    asked, unavailable = row.plan["metrics"], row.forget_set.info["unavailable"]
    expected = [metric for metric in METRICS if metric in DEFAULT_METRICS or metric in asked]
    return plans.left_out(expected, [metric for metric in asked if metric not in unavailable], unavailable)


def _ref(row: Checkpoint) -> CheckpointRef:
    return CheckpointRef(id=row.id, name=row.name, uri=row.uri, digest=row.digest)


def part(row: AuditPart) -> PartOut:
    """One evaluation of an audit: its progress, or, once the audit is over, how it stood then."""
    now = row.evaluation
    shown = {
        "state": now.state,
        "attempt": now.attempt,
        "stage": now.stage,
        "done": now.done,
        "total": now.total,
        "error_code": now.error_code,
        "error_detail": now.error_detail,
    }
    if row.end_state is not None:
        shown |= {
            "state": row.end_state,
            "attempt": row.end_attempt,
            "stage": None,
            "done": row.end_done,
            "total": row.end_total,
            "error_code": row.end_error_code,
            "error_detail": row.end_error_detail,
        }
    own = {"role": row.role, "precision": row.precision, "evaluation": now.id, "reused": row.reused}
    return PartOut.model_validate(own | shown)
