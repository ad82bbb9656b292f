"""`lethe` runs nothing that lies in the current directory, and no broken import ends with a verdict's exit code."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.embedded import free_port
from tests.support.commands import INSTALLED, installed, user_environment
from tests.support.factories import tiny_bundle, tiny_checkpoint
from tests.support.worker_service import until

OURS = ["app", "worker", "migrations"]
THEIRS = [
    "sitecustomize",
    "usercustomize",
    "typer",
    "celery",
    "billiard",
    "kombu",
    "torch",
    "transformers",
    "sqlalchemy",
]
STDLIB = ["encodings", "json", "subprocess", "pickle", "socket", "importlib", "logging", "tempfile"]


def hostile(folder: Path, *names: str) -> Path:
    """A directory in which packages of these names leave a trace and end whoever imports them with 0: `robust`."""
    for name in names:
        (folder / name).mkdir(parents=True)
        trace = folder / "ran"
        code = f"import os\nwith open({str(trace)!r}, 'a') as file: file.write({name!r})\nos._exit(0)\n"
        (folder / name / "__init__.py").write_text(code)
    return folder


def what_ran(folder: Path) -> str:
    """The names of the packages of a hostile directory that were imported."""
    return (folder / "ran").read_text() if (folder / "ran").exists() else ""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pair and a bundle of 20 items: an audit of it is inconclusive, and ends with 2."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_checkpoint(folder / "original", seed=0)
    tiny_checkpoint(folder / "unlearned", seed=1)
    tiny_bundle(folder / "bundle", n=20)
    return folder


def arguments(command: str, pair: Path, out: Path) -> list[object]:
    """A command's, for work that it really does."""
    two = [pair / "original", pair / "unlearned"]
    return {
        "--version": [],
        "precisions": [],
        "diagnose": [*two, "--threads", 1],
        "unlearn": [
            two[0], "--forget-set", pair / "bundle", "--out", out / "new", "--loss", "npo", "--threads", 1,
            "--set", "max_steps=1", "--set", "stop=null",
        ],
        "run": [
            "--original", two[0], "--unlearned", two[1], "--forget-set", pair / "bundle", "--threads", 1,
            "--plan", "full", "--metrics", "knowmem_forget,knowmem_retain",
        ],
    }[command]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code", "path"),
    [
        ("--version", 0, "."),
        ("precisions", 0, None),
        ("precisions", 0, "."),
        ("diagnose", 0, "."),
        ("unlearn", 0, "."),
        ("run", 2, "."),
    ],
)
def test_no_command_runs_what_lies_in_the_current_directory(
    command: str, code: int, path: str | None, pair: Path, tmp_path: Path
) -> None:
    here = hostile(tmp_path / "here", *OURS, *THEIRS, *STDLIB)
    environment = {} if path is None else {"PYTHONPATH": path}
    done = installed(command, *arguments(command, pair, tmp_path), cwd=here, env=environment)
    assert what_ran(here) == ""
    assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("names", "path"), [(["app"], "{here}"), (["worker"], None), (["worker"], ":"), (OURS, "here:.")]
)
def test_whichever_of_our_names_it_takes(names: list[str], path: str | None, tmp_path: Path) -> None:
    here = hostile(tmp_path / "here", *names)
    environment = {} if path is None else {"PYTHONPATH": path.format(here=here)}
    done = installed("precisions", "--json", cwd=here, env=environment)
    assert (done.returncode, done.stdout[:1], what_ran(here)) == (0, "[", "")


def test_lethe_as_an_argument_of_python_is_lethe(tmp_path: Path) -> None:
    here = hostile(tmp_path, *OURS)
    line = [sys.executable, "-P", str(INSTALLED), "--version"]
    done = subprocess.run(line, cwd=here, env=user_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6], what_ran(here)) == (0, "lethe ", "")


def test_a_lethe_whose_packages_are_gone_ends_with_usage_and_a_sentence(tmp_path: Path) -> None:
    alone = shutil.copy(INSTALLED, tmp_path / "lethe")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(
        [alone, "run"], cwd=tmp_path, env=user_environment(LETHE_PYTHON=str(bare)), capture_output=True, text=True
    )
    assert (done.returncode, "finds no working Lethe" in done.stderr) == (3, True)
    done = subprocess.run(
        ["/bin/sh", alone, "run"], cwd=tmp_path, env={"PATH": str(tmp_path / "nothing")}, capture_output=True, text=True
    )
    assert (done.returncode, "LETHE_PYTHON" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize(
    ("library", "code", "command"),
    [
        ("typer", "raise SystemExit(0)", "--version"),
        ("torch", "raise SystemExit(0)", "run"),
        ("torch", "raise OSError('torch: libcudart.so: cannot open shared object file')", "diagnose"),
        ("numpy", "this = is_not_defined", "precisions"),
        ("rouge_score", "import rouge_score.no_such_part", "run"),
        ("rouge_score", "def (:", "run"),
    ],
)
def test_an_import_that_fails_ends_with_usage_and_a_sentence(
    library: str, code: str, command: str, pair: Path, tmp_path: Path
) -> None:
    place = tmp_path / "libraries" / library
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(code)
    done = installed(command, *arguments(command, pair, tmp_path), env={"PYTHONPATH": str(place.parent)})
    assert done.returncode == 3, done.stdout + done.stderr
    assert any(line.startswith("error") for line in done.stderr.splitlines())
    assert library in "".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.fixture
def service(pair: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """`lethe dev`, started in a hostile directory as a CI job would; the settings with which the command finds it."""
    here = hostile(tmp_path / "here", *OURS, *THEIRS, *STDLIB)
    found = {"LETHE_DATA_DIR": str(tmp_path / "data"), "LETHE_PORT": str(free_port()), "PYTHONPATH": "."}
    given = found | {"LETHE_ROOTS": str(pair), "LETHE_TORCH_THREADS": "1"}
    log = tmp_path / "dev.log"
    with log.open("w") as out:
        child = subprocess.Popen([INSTALLED, "dev"], cwd=here, env=user_environment(**given), stdout=out, stderr=out)
    try:
        until(lambda: "Lethe is up" in log.read_text(), 90)
        yield found
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    assert what_ran(here) == ""


def test_nor_do_the_services_processes_and_their_children(service: dict[str, str], pair: Path, tmp_path: Path) -> None:
    def run(*args: object, code: int = 0) -> str:
        done = installed(*args, cwd=tmp_path / "here", env=service)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.strip()

    forget_set = run("forget-set", "add", pair / "bundle")
    roles = ("--original", pair / "original", "--unlearned", pair / "unlearned")
    audit = run("audit", "submit", *roles, "--forget-set", forget_set, "--plan", "full")
    run("audit", "wait", audit, code=2)
    assert "importing" not in (tmp_path / "data" / "lethe.log").read_text()


def test_a_worker_alone_does_not_either(tmp_path: Path) -> None:
    here = hostile(tmp_path / "here", *OURS, *THEIRS, *STDLIB)
    log = tmp_path / "worker.log"
    environment = user_environment(PYTHONPATH=".", LETHE_DATA_DIR=str(tmp_path / "data"))
    with log.open("w") as out:
        child = subprocess.Popen(
            [INSTALLED, "worker"], cwd=here, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        until(lambda: "ready" in log.read_text() or child.poll() is not None, 90)
        assert child.poll() is None, log.read_text()
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(60)
    assert what_ran(here) == ""
