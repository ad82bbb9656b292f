"""The unlearning methods as the catalog has them: every entry holds, and the README shows what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.catalog import methods_table
from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.recipes import recipe

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", UNLEARNING_METHODS)
def test_an_entry_names_a_file_and_makes_a_recipe(name: str) -> None:
    entry = UNLEARNING_METHODS[name]
    assert (REPOSITORY / "worker/engine/unlearning/methods" / f"{entry.module}.py").is_file()
    for given in ({}, *entry.ladder):
        assert recipe(name, "npo_gdr", given).method == name


def test_the_table_in_the_readme_is_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "app.catalog.methods_table", "--check"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_table_that_lacks_a_method_is_stale() -> None:
    text = methods_table.README.read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("| `sure` |"))
    assert methods_table.rewritten(text.replace(f"{row}\n", "")) == text
    with pytest.raises(ValueError, match="no place for the methods"):
        methods_table.rewritten(text.replace(methods_table.END, ""))
