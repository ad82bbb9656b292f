"""States and the transitions between them. Logic branches only on states; codes are for people.

A row's state changes through `move`, in SQL through `moving`, and nowhere else: both look it up in the tables below.
`app.database.diagram` draws them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from app.errors import Conflict


class EvaluationState(StrEnum):
    """Where an evaluation, a diagnosis or a trial is."""

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


State = EvaluationState | AuditState | RemediationState

_S = TypeVar("_S", bound=State)
Table = Mapping[_S | None, Mapping[_S, str]]
"""State -> the states that may follow it, and when each does. None stands before a row's first state."""

EVALUATION_TRANSITIONS: Table[EvaluationState] = {
    None: {EvaluationState.QUEUED: "something needs it"},
    EvaluationState.QUEUED: {
        EvaluationState.RUNNING: "a worker claims it",
        EvaluationState.FAILED: "its forget set is purged",
        EvaluationState.CANCELLED: "nothing needs it any more",
    },
    EvaluationState.RUNNING: {
        EvaluationState.RUNNING: "its lease expires, another worker claims it",
        EvaluationState.QUEUED: "its worker shuts down, or it is tried again",
        EvaluationState.SUCCEEDED: "its result is committed",
        EvaluationState.FAILED: "it is refused, or its tries are used up",
        EvaluationState.CANCELLED: "its worker stops, as requested",
    },
    EvaluationState.SUCCEEDED: {},
    EvaluationState.FAILED: {EvaluationState.QUEUED: "it is needed again"},
    EvaluationState.CANCELLED: {EvaluationState.QUEUED: "it is needed again"},
}

AUDIT_TRANSITIONS: Table[AuditState] = {
    None: {
        AuditState.QUEUED: "someone asks for it",
        AuditState.FINISHED: "stored scores are judged again",
    },
    AuditState.QUEUED: {
        AuditState.RUNNING: "a worker claims what it waits for",
        AuditState.FINISHED: "nothing is left to wait for",
        AuditState.CANCELLED: "someone cancels it",
    },
    AuditState.RUNNING: {
        AuditState.FINISHED: "nothing is left to wait for",
        AuditState.CANCELLED: "someone cancels it",
    },
    AuditState.FINISHED: {},
    AuditState.CANCELLED: {},
}

REMEDIATION_TRANSITIONS: Table[RemediationState] = {
    None: {RemediationState.QUEUED: "someone asks for it"},
    RemediationState.QUEUED: {
        RemediationState.RUNNING: "its first trial starts",
        RemediationState.FAILED: "its first trial never starts",
        RemediationState.CANCELLED: "someone cancels it",
    },
    RemediationState.RUNNING: {
        RemediationState.FINISHED: "the audit of the chosen model is finished",
        RemediationState.FAILED: "there is no new model",
        RemediationState.CANCELLED: "someone cancels it",
    },
    RemediationState.FINISHED: {},
    RemediationState.FAILED: {},
    RemediationState.CANCELLED: {},
}

TABLES: Mapping[type[Any], Table[Any]] = {
    EvaluationState: EVALUATION_TRANSITIONS,
    AuditState: AUDIT_TRANSITIONS,
    RemediationState: REMEDIATION_TRANSITIONS,
}

LIVE_REMEDIATIONS = frozenset({RemediationState.QUEUED, RemediationState.RUNNING})
LIVE_AUDITS = frozenset({AuditState.QUEUED, AuditState.RUNNING})
LIVE_EVALUATIONS = frozenset({EvaluationState.QUEUED, EvaluationState.RUNNING})
DONE_EVALUATIONS = frozenset({EvaluationState.SUCCEEDED, EvaluationState.FAILED, EvaluationState.CANCELLED})


class ForbiddenTransition(RuntimeError):
    """A state was to change to one that the table does not allow: a bug in Lethe, which no request may cause."""


class Stateful(Protocol):
    """A row of a table whose rows have states."""

    state: Any


def can_become(state: State | None, new: State) -> bool:
    """Whether the tables allow `state -> new`; None is the state of a row that is not in the database yet."""
    # States of different kinds compare equal where their values are equal strings.
    return (state is None or type(state) is type(new)) and new in TABLES[type(new)].get(state, {})


def check_become(state: State | None, new: State, what: str = "row") -> None:
    """Raises ForbiddenTransition where `can_become` is false."""
    if not can_become(state, new):
        raise ForbiddenTransition(f"a {what} cannot become {new}: it is {state or 'new'}")


def sources(new: _S) -> frozenset[_S]:
    """The states from which a row may become `new`."""
    return frozenset(state for state, following in TABLES[type(new)].items() if state is not None and new in following)


def move(row: Stateful, new: State) -> None:
    """Give a row, or a new one that is not in the database yet, its next state. The caller holds the row's lock.

    Raises:
        ForbiddenTransition: where the table does not allow it; the row stays as it is.
    """
    check_become(row.state, new, type(row).__name__.lower())
    row.state = new


def moving(table: type[Any], new: State) -> sa.Update:
    """An UPDATE that gives rows of a table this state and skips those for which the transition is not allowed."""
    return sa.update(table).where(table.state.in_(sorted(sources(new)))).values(state=new)


def can_cancel(state: AuditState | RemediationState) -> bool:
    """Whether an audit or a remediation in this state can be cancelled."""
    return can_become(state, type(state).CANCELLED)


def check_cancel(state: AuditState | RemediationState) -> None:
    """Raises Conflict where `can_cancel` is false."""
    if not can_cancel(state):
        what = "audit" if isinstance(state, AuditState) else "remediation"
        raise Conflict("conflict", f"this {what} is {state}; only a queued or running {what} can be cancelled")


def can_delete_model(state: RemediationState) -> bool:
    """Whether the model of a remediation in this state may be deleted."""
    return state not in LIVE_REMEDIATIONS


def check_delete_model(state: RemediationState) -> None:
    """Raises Conflict where `can_delete_model` is false."""
    if not can_delete_model(state):
        raise Conflict("conflict", f"this remediation is {state}; cancel it first, or wait until it ends")
