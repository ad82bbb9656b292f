"""States: nothing changes them but the transition tables."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.database import diagram
from app.database.engine import Base, make_engine
from app.database.models import Audit, Checkpoint, Diagnosis, Evaluation, Remediation, Trial
from app.database.states import (
    TABLES,
    AuditState,
    EvaluationState,
    ForbiddenTransition,
    RemediationState,
    State,
    can_become,
    can_cancel,
    can_delete_model,
    move,
    moving,
    sources,
)
from tests.support.places import REPOSITORY

ROWS: dict[type[State], tuple[type[Any], ...]] = {
    EvaluationState: (Evaluation, Diagnosis, Trial),
    AuditState: (Audit,),
    RemediationState: (Remediation,),
}
PAIRS: list[tuple[Any, State | None, State]] = [
    pair for kind, tables in ROWS.items() for pair in product(tables, (None, *kind), kind)
]
FORBIDDEN = [pair for pair in PAIRS if not can_become(*pair[1:])]
ALLOWED = [pair for pair in PAIRS if can_become(*pair[1:])]
STATEFUL = {table.__name__ for tables in ROWS.values() for table in tables}


def _named(pair: tuple[Any, State | None, State]) -> str:
    table, state, new = pair
    return f"{table.__tablename__}-{state or 'new'}-{new}"


@pytest.mark.parametrize(("table", "state", "new"), FORBIDDEN, ids=map(_named, FORBIDDEN))
def test_a_forbidden_transition_is_refused_and_leaves_the_row_as_it_is(
    table: Any, state: State | None, new: State
) -> None:
    row = table(state=state)
    with pytest.raises(ForbiddenTransition, match=f"a {table.__name__.lower()} cannot become {new}"):
        move(row, new)
    assert row.state is state


@pytest.mark.parametrize(("table", "state", "new"), ALLOWED, ids=map(_named, ALLOWED))
def test_a_transition_in_the_table_is_made(table: Any, state: State | None, new: State) -> None:
    row = table(state=state)
    move(row, new)
    assert row.state is new


def test_a_state_of_another_kind_is_refused() -> None:
    row = Audit(state=AuditState.QUEUED)
    for new in (EvaluationState.FAILED, EvaluationState.RUNNING, RemediationState.RUNNING):
        with pytest.raises(ForbiddenTransition):
            move(row, new)
    assert row.state is AuditState.QUEUED


def test_what_is_over_stays_over_except_what_can_be_tried_again() -> None:
    assert sources(EvaluationState.QUEUED) == {
        EvaluationState.RUNNING,
        EvaluationState.FAILED,
        EvaluationState.CANCELLED,
    }
    for over in (AuditState.FINISHED, AuditState.CANCELLED, EvaluationState.SUCCEEDED, RemediationState.FAILED):
        assert not any(can_become(over, new) for new in type(over))


@pytest.mark.parametrize("new", EvaluationState)
def test_an_update_in_sql_passes_over_the_rows_that_may_not_become_it(new: EvaluationState, tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/lethe.db")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        pair = Checkpoint(name="a", uri="/a", digest="sha256:a", architecture="None", parameters=1, dtype="F32")
        session.add(pair)
        session.flush()
        for state in EvaluationState:
            row = Diagnosis(key=state, state=state, original_id=pair.id, unlearned_id=pair.id, precisions=[])
            session.add(row)
        session.flush()
        session.execute(moving(Diagnosis, new), execution_options={"synchronize_session": False})
        states = dict(session.execute(sa.select(Diagnosis.key, Diagnosis.state)).all())
    engine.dispose()
    assert states == {state: new if can_become(state, new) else state for state in EvaluationState}


def test_every_state_has_its_place_in_its_table() -> None:
    for kind in ROWS:
        table = TABLES[kind]
        assert set(table) == {None, *kind}
        assert {new for following in table.values() for new in following} == set(kind)


def test_nothing_but_the_transition_tables_assigns_a_state() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}:{line}"
        for room in ("app", "worker")
        for file in sorted((REPOSITORY / room).rglob("*.py"))
        if file != REPOSITORY / "app" / "database" / "states.py"
        for line in _assignments(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "row.state = FAILED",
        "row.state, row.finished_at = FAILED, now",
        "row.state: State = FAILED",
        "setattr(row, 'state', FAILED)",
        "sa.update(table).values(state=FAILED)",
        "sa.update(table).values({'state': FAILED})",
        "sa.update(table).values({table.state: FAILED})",
        "ending = {'state': FAILED}\nsa.update(table).values(ending)",
        "insert_missing(session, Trial, {'state': FAILED})",
        "Audit(id=new_id(), state=FINISHED)",
        "models.Audit(id=new_id(), state=FINISHED)",
    ],
)
def test_an_assignment_by_hand_would_be_found(code: str) -> None:
    assert list(_assignments(ast.parse(code)))


def _assignments(tree: ast.AST) -> Iterator[int]:
    writes = any(_writes_rows(node) for node in ast.walk(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="state", ctx=ast.Store()):
                yield node.lineno
            case ast.Call(args=[_, ast.Constant(value="state"), _]) if _called(node) == "setattr":
                yield node.lineno
            case ast.Call(keywords=keywords) if _called(node) in {"values", *STATEFUL}:
                yield from (keyword.value.lineno for keyword in keywords if keyword.arg == "state")
            case ast.Dict(keys=keys) if writes:
                yield from (key.lineno for key in keys if key is not None and _names_the_state(key))


def _writes_rows(node: ast.AST) -> bool:
    # `values` without arguments is a dictionary's.
    return isinstance(node, ast.Call) and _called(node) in {"values", "insert_missing"} and bool(node.args)


def _called(node: ast.AST) -> str | None:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name
    return None


def _names_the_state(key: ast.expr) -> bool:
    return (isinstance(key, ast.Constant) and key.value == "state") or (
        isinstance(key, ast.Attribute) and key.attr == "state"
    )


def test_the_drawing_of_the_states_is_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "app.database.diagram", "--check"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_drawing_that_lacks_a_transition_is_stale() -> None:
    text = diagram.README.read_text(encoding="utf-8")
    assert diagram.redrawn(text) == text
    assert diagram.redrawn(text.replace("    queued --> running: a worker claims it\n", "")) == text
    with pytest.raises(ValueError, match="no place for the states"):
        diagram.redrawn(text.replace(diagram.END, ""))


def test_a_remediation_that_is_over_stays_so() -> None:
    live = {RemediationState.QUEUED, RemediationState.RUNNING}
    for state in RemediationState:
        assert can_cancel(state) == (state in live)
        assert can_delete_model(state) == (state not in live)
        assert any(can_become(state, new) for new in RemediationState) == (state in live)
