"""The states, drawn from the transition tables into this folder's README.

python -m app.database.diagram            draw them
python -m app.database.diagram --check    say whether the drawing is up to date, by the exit code
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.database.states import TABLES, AuditState, EvaluationState, RemediationState, Table

README = Path(__file__).with_name("README.md")
BEGIN = "<!-- states: drawn by `python -m app.database.diagram`; edits by hand are overwritten -->"
END = "<!-- end of states -->"
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


def redrawn(text: str) -> str:
    """The text with an up-to-date drawing between its two markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for the states; mark it with {BEGIN} and {END}")
    return f"{before}{begin}\n\n{draw()}\n{end}{after}"


def main() -> None:
    """Draw the states, or check the drawing."""
    parser = argparse.ArgumentParser(prog="python -m app.database.diagram", description="Draw the states.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the drawing is out of date")
    checking = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    if (wanted := redrawn(text)) == text:
        return
    if checking:
        sys.exit(f"{README}: the state diagrams are out of date; run python -m app.database.diagram")
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
