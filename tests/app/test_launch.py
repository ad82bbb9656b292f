"""What of PYTHONPATH a process of ours is started with."""

import os
import sys
from pathlib import Path

import pytest

from app import launch
from tests.support.places import REPOSITORY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, beside two others."""
    for name in ("here/vendored", "libraries", "theirs/worker", "flat"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flat" / "migrations.py").touch()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("", []),
        (".", []),
        ("vendored", []),
        (":", []),
        ("{up}/here", []),
        ("{up}/here/../here/.", []),
        ("{up}/link", []),
        ("{up}/here/vendored", []),
        ("{up}/theirs", []),
        ("{up}/flat", []),
        ("../libraries", []),
        ("{up}/libraries", ["{up}/libraries"]),
        (".:{up}/libraries:{up}/theirs:{up}/nowhere", ["{up}/libraries", "{up}/nowhere"]),
        ("{root}", ["{root}"]),
    ],
)
def test_only_absolute_places_outside_the_current_directory_without_our_names_are_kept(
    value: str, kept: list[str], here: Path
) -> None:
    names = {"up": here.parent, "root": REPOSITORY}
    given = value.format(**names)
    found = launch.sort_path(given)
    assert found.kept == [entry.format(**names) for entry in kept]
    assert sorted(found.kept + found.left_out) == sorted(given.split(os.pathsep) if given else [])


def test_at_the_root_directory_only_that_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert launch.sort_path(f"/:{tmp_path}") == ([str(tmp_path)], ["/"])


def test_in_a_directory_that_was_deleted_relative_places_are_left_out_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert launch.sort_path(f".:{tmp_path}") == ([str(tmp_path)], ["."])


def test_children_find_our_own_packages_first_and_nothing_in_the_current_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f".:{here.parent}/libraries:{REPOSITORY}")
    found = launch.environment()
    assert found["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), f"{here.parent}/libraries"]
    assert found["PYTHONSAFEPATH"] == "1"
    assert launch.command("worker.commands.run", "--help")[:2] == [sys.executable, "-P"]
