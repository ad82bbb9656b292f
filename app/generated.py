"""Parts of a README that a command writes between two markers, and that `make check` compares with the code."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple


class Section(NamedTuple):
    """One such part."""

    readme: Path
    what: str
    """What it shows, such as `states`."""
    module: str
    """What writes it: `python -m MODULE`; with `--check` it says by its exit code whether it is up to date."""

    @property
    def begin(self) -> str:
        """The first marker."""
        return f"<!-- {self.what}: written by `python -m {self.module}`; edits by hand are overwritten -->"

    @property
    def end(self) -> str:
        """The last marker."""
        return f"<!-- end of {self.what} -->"

    def rewritten(self, text: str, body: str) -> str:
        """The text with another body between its markers.

        Raises:
            ValueError: a marker is missing.
        """
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            raise ValueError(f"there is no place for the {self.what}; mark it with {self.begin} and {self.end}")
        return f"{before}{begin}\n\n{body.strip()}\n\n{end}{after}"

    def main(self, body: str) -> None:
        """Write the part, or check it."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=f"Write the {self.what}.")
        parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is out of date")
        checking = parser.parse_args().check
        text = self.readme.read_text(encoding="utf-8")
        if (wanted := self.rewritten(text, body)) == text:
            return
        if checking:
            sys.exit(f"{self.readme}: the {self.what} are out of date; run python -m {self.module}")
        self.readme.write_text(wanted, encoding="utf-8")
