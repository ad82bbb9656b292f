"""Errors are raised with codes that their classes have: another code hides the cause behind a ValueError."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import errors

ROOT = Path(errors.__file__).parents[1]
CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.AppError) and getattr(found, "codes", None)
}


def raised() -> Iterator[tuple[str, str, str]]:
    """(place, class, code) of every error that the code makes with a constant code."""
    for top in ("app", "worker"):
        for file in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                    continue
                code = node.args[0]
                if node.func.id in CLASSES and isinstance(code, ast.Constant) and isinstance(code.value, str):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node.func.id, code.value


def test_every_code_that_is_raised_belongs_to_its_class() -> None:
    found = list(raised())
    assert len(found) > 100
    assert [(place, name, code) for place, name, code in found if code not in CLASSES[name].codes] == []


def test_a_code_of_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no_such_code"):
        errors.Unavailable("no_such_code", "x")
