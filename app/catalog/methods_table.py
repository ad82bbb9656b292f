"""The unlearning methods, as a table in the engine's README.

python -m app.catalog.methods_table            write it
python -m app.catalog.methods_table --check    say by the exit code whether it is up to date
"""

from pathlib import Path

from app.catalog.methods import UNLEARNING_METHODS
from app.generated import Section

SECTION = Section(Path(__file__).parents[2] / "worker/engine/README.md", "methods", "app.catalog.methods_table")


def table() -> str:
    """Markdown: a row for each method, in the catalog's order."""
    lines = ["| method | what it may change | where it comes from |", "|---|---|---|"]
    lines += [f"| `{one.name}` | {one.summary} | {one.source} |" for one in UNLEARNING_METHODS.values()]
    return "\n".join(lines)


if __name__ == "__main__":
    SECTION.main(table())
