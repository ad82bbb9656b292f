"""The exit code is the verdict's, whatever becomes of who reads the output."""

import os
import subprocess
from pathlib import Path

import pytest

from app.cli.exit_codes import EXIT_CODES
from app.reports.model import AuditReport
from tests.support.commands import INSTALLED, unread, user_environment
from tests.support.factories import tiny_bundle, tiny_checkpoint


@pytest.mark.parametrize(
    ("args", "code", "streams", "environment"),
    [
        (["--version"], 0, "stdout", {}),
        (["--version"], 0, "stdout", {"PYTHONUNBUFFERED": "1"}),
        (["audit", "--help"], 0, "stdout stderr", {}),
        (["frob"], 3, "stderr", {}),
        (["frob"], 3, "stdout stderr", {"PYTHONUNBUFFERED": "1"}),
    ],
)
def test_short_commands_end_as_they_would(
    args: list[str], code: int, streams: str, environment: dict[str, str]
) -> None:
    assert unread(*args, streams=streams, env=environment) == code


def test_a_reader_that_takes_one_line_changes_nothing() -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", 'lethe precisions | head -n 1; echo "${PIPESTATUS[0]}"'],
        env=user_environment(PATH=f"{INSTALLED.parent}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
    )
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


def test_streams_that_are_closed_from_the_start_change_nothing(tmp_path: Path) -> None:
    line = f'"{INSTALLED}" --version >&- 2>&- && "{INSTALLED}" frob 2>&-; echo $? > {tmp_path}/code'
    subprocess.run(["bash", "-c", line], env=user_environment())
    assert (tmp_path / "code").read_text() == "3\n"


def test_an_audits_verdict_reaches_the_shell_though_nobody_reads_the_report(tmp_path: Path) -> None:
    for seed, name in enumerate(("original", "unlearned")):
        tiny_checkpoint(tmp_path / name, seed=seed)
    out = tmp_path / "report.json"
    code = unread(
        "run", "--original", tmp_path / "original", "--unlearned", tmp_path / "unlearned", "--threads", 1, "--out", out,
        "--forget-set", tiny_bundle(tmp_path / "bundle", n=20), "--plan", "full",
    )  # fmt: skip
    assert code == EXIT_CODES[AuditReport.model_validate_json(out.read_bytes()).verdict] == 2
