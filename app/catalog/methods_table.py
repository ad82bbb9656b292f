"""The unlearning methods, as a table in the engine's README.

python -m app.catalog.methods_table            write it
python -m app.catalog.methods_table --check    say whether it is up to date, by the exit code
"""

import argparse
import sys
from pathlib import Path

from app.catalog.methods import UNLEARNING_METHODS

README = Path(__file__).parents[2] / "worker/engine/README.md"
BEGIN = "<!-- methods: written by `python -m app.catalog.methods_table`; what stands here by hand is overwritten -->"
END = "<!-- end of methods -->"


def table() -> str:
    """Markdown: a row for each method, in the catalog's order."""
    lines = ["| method | what it may change | where it comes from |", "|---|---|---|"]
    lines += [f"| `{one.name}` | {one.summary} | {one.source} |" for one in UNLEARNING_METHODS.values()]
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """The text with the table between its two marks as it should be.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for the methods; it begins with {BEGIN} and ends with {END}")
    return f"{before}{begin}\n\n{table()}\n\n{end}{after}"


def main() -> None:
    """Write, or check what is written."""
    parser = argparse.ArgumentParser(prog="python -m app.catalog.methods_table", description="The methods' table.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the table is stale")
    checking = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    if (wanted := rewritten(text)) == text:
        return
    if checking:
        sys.exit(f"{README}: the methods are not those of the catalog; run python -m app.catalog.methods_table")
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
