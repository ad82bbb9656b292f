"""The states, drawn from the transition tables into this folder's README.

python -m app.database.diagram            draw them
python -m app.database.diagram --check    say whether the drawing is up to date, by the exit code
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.database.states import TABLES, AuditState, EvaluationState, RemediationState, Table
from app.generated import Section

SECTION = Section(Path(__file__).parent / "README.md", "states", "app.database.diagram")
TITLES: dict[type[Any], str] = {
    EvaluationState: "Evaluations, diagnoses, trials",
    AuditState: "Audits",
    RemediationState: "Remediations",
}


def draw() -> str:
    """Markdown: under each title a state diagram in Mermaid."""
    return "\n".join(f"### {TITLES[kind]}\n\n```mermaid\n{mermaid(table)}\n```\n" for kind, table in TABLES.items())


def mermaid(table: Table[Any]) -> str:
    """A state diagram: an arrow for each transition, labelled with when it is taken; final states lead to an end."""
    return "\n".join(["stateDiagram-v2", *(f"    {arrow}" for arrow in _arrows(table))])


def _arrows(table: Table[Any]) -> Iterator[str]:
    for state, following in table.items():
        for new, when in following.items():
            yield f"{state or '[*]'} --> {new}: {when}"
    yield from (f"{state} --> [*]" for state, following in table.items() if not following)


if __name__ == "__main__":
    SECTION.main(draw())
