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

LIVE_AUDITS = frozenset({AuditState.QUEUED, AuditState.RUNNING})
DONE_EVALUATIONS = frozenset({EvaluationState.SUCCEEDED, EvaluationState.FAILED, EvaluationState.CANCELLED})


def can_become(state: EvaluationState | AuditState, new: EvaluationState | AuditState) -> bool:
    """Whether the table allows `state -> new`."""
    if isinstance(state, EvaluationState):
        return new in EVALUATION_TRANSITIONS[state]
    return new in AUDIT_TRANSITIONS[state]


def can_cancel(state: AuditState) -> bool:
    """Whether an audit in this state can be cancelled."""
    return can_become(state, AuditState.CANCELLED)


def check_cancel(state: AuditState) -> None:
    """Raises Conflict where `can_cancel` is false."""
    if not can_cancel(state):
        raise Conflict("conflict", f"this audit is {state}; only a queued or running audit can be cancelled")
