"""States and the transitions between them; logic branches on states only, people read codes."""

from enum import StrEnum

from app.errors import Conflict


class EvaluationState(StrEnum):
    """Where an evaluation is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RemediationState(StrEnum):
    """Where a remediation is; a finished one has a checkpoint and the verdict of the audit that judged it."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AuditState(StrEnum):
    """Where an audit is; a finished audit has a report and a verdict."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


EVALUATION_TRANSITIONS: dict[EvaluationState, frozenset[EvaluationState]] = {
    EvaluationState.QUEUED: frozenset({EvaluationState.RUNNING, EvaluationState.FAILED, EvaluationState.CANCELLED}),
    # running -> running: the lease expired and another worker claimed it; -> queued: a soft shutdown released it.
    EvaluationState.RUNNING: frozenset(EvaluationState),
    EvaluationState.SUCCEEDED: frozenset(),
    # A later audit that needs the same evaluation tries it again.
    EvaluationState.FAILED: frozenset({EvaluationState.QUEUED}),
    EvaluationState.CANCELLED: frozenset({EvaluationState.QUEUED}),
}

AUDIT_TRANSITIONS: dict[AuditState, frozenset[AuditState]] = {
    AuditState.QUEUED: frozenset({AuditState.RUNNING, AuditState.FINISHED, AuditState.CANCELLED}),
    AuditState.RUNNING: frozenset({AuditState.FINISHED, AuditState.CANCELLED}),
    AuditState.FINISHED: frozenset(),
    AuditState.CANCELLED: frozenset(),
}

_ENDS = frozenset({RemediationState.FINISHED, RemediationState.FAILED, RemediationState.CANCELLED})
REMEDIATION_TRANSITIONS: dict[RemediationState, frozenset[RemediationState]] = {
    RemediationState.QUEUED: _ENDS | {RemediationState.RUNNING},
    RemediationState.RUNNING: _ENDS,
    **dict.fromkeys(_ENDS, frozenset()),
}

LIVE_REMEDIATIONS = frozenset({RemediationState.QUEUED, RemediationState.RUNNING})
LIVE_AUDITS = frozenset({AuditState.QUEUED, AuditState.RUNNING})
DONE_EVALUATIONS = frozenset({EvaluationState.SUCCEEDED, EvaluationState.FAILED, EvaluationState.CANCELLED})


State = EvaluationState | AuditState | RemediationState


def can_become(state: State, new: State) -> bool:
    """Whether the table allows `state -> new`."""
    match state:
        case EvaluationState():
            return new in EVALUATION_TRANSITIONS[state]
        case AuditState():
            return new in AUDIT_TRANSITIONS[state]
        case RemediationState():
            return new in REMEDIATION_TRANSITIONS[state]


def can_cancel(state: AuditState | RemediationState) -> bool:
    """Whether an audit or a remediation in this state can be cancelled."""
    return can_become(state, type(state).CANCELLED)


def check_cancel(state: AuditState | RemediationState) -> None:
    """Raises Conflict where `can_cancel` is false."""
    if not can_cancel(state):
        what = "audit" if isinstance(state, AuditState) else "remediation"
        raise Conflict("conflict", f"this {what} is {state}; only a queued or running {what} can be cancelled")


def can_delete_artifact(state: RemediationState) -> bool:
    """Whether a remediation in this state may lose its artifact."""
    return state not in LIVE_REMEDIATIONS


def check_delete_artifact(state: RemediationState) -> None:
    """Raises Conflict where `can_delete_artifact` is false."""
    if not can_delete_artifact(state):
        raise Conflict("conflict", f"this remediation is {state}; cancel it first, or wait for its end")
