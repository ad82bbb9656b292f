"""What the README tells a newcomer to type, typed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.embedded import free_port
from app.reports.model import AuditReport
from tests.support.commands import LETHE, lethe
from tests.support.factories import muse_folder, tiny_bundle, tiny_checkpoint
from tests.support.places import MUSE_NEWS, REPOSITORY

README = REPOSITORY / "README.md"


def curl_block() -> str:
    found = re.search(r"<!-- tests/e2e/test_readme.py runs this block -->\n```sh\n(.*?)```", README.read_text(), re.S)
    assert found
    return found[1]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """`lethe dev` as a user starts it; its port and data directory."""
    models = tmp_path / "models"
    tiny_checkpoint(models / "original", seed=0)
    tiny_checkpoint(models / "unlearned", seed=1)
    port = free_port()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LETHE_")}
    command = [*LETHE, "dev", "--data-dir", str(tmp_path / "data"), "--root", str(models), "--port", str(port)]
    log = (tmp_path / "dev.log").open("w+")
    child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=clean | {"LETHE_TORCH_THREADS": "1"})
    try:
        end = time.monotonic() + 90
        while "Lethe is up" not in (tmp_path / "dev.log").read_text():
            assert child.poll() is None, (tmp_path / "dev.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield port, tmp_path
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
        log.close()


@pytest.mark.timeout(300)
def test_the_readmes_curl_commands_run_an_audit_on_the_real_bundle(dev: tuple[int, Path]) -> None:
    port, folder = dev
    bundle = MUSE_NEWS if MUSE_NEWS.exists() else tiny_bundle(folder / "bundle", n=20)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", curl_block()],
        cwd=folder,
        env=os.environ
        | {
            "LETHE": f"http://127.0.0.1:{port}",
            "KEY": (folder / "data" / "api-key").read_text().strip(),
            "MODELS": str(folder / "models"),
            "BUNDLE": str(bundle),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = AuditReport.model_validate_json((folder / "report.json").read_bytes())
    assert done.stdout.strip().endswith(report.verdict)
    assert (folder / "report.md").read_text().startswith("# Audit")
    assert all(e.evaluation is not None for e in report.evidence)

    environment = {"LETHE_DATA_DIR": str(folder / "data"), "LETHE_PORT": str(port)}
    waited = lethe("audit", "wait", report.audit.id, env=environment)
    assert (report.verdict, waited.returncode) == ("inconclusive", 2), waited.stderr


def test_the_command_line_finds_the_key_and_a_wrong_argument_is_usage(dev: tuple[int, Path]) -> None:
    port, folder = dev
    environment = {"LETHE_DATA_DIR": str(folder / "data"), "LETHE_PORT": str(port)}
    assert lethe("audit", "list", env=environment).returncode == 0
    missing = lethe("audit", "show", "nothing", env=environment)
    assert (missing.returncode, "not_found" in missing.stderr) == (3, True)
    assert lethe("audit", "frob").returncode == 3
    added = lethe("forget-set", "add", muse_folder(folder / "news", "news"), env=environment)
    assert (added.returncode, "raw/retain: 4" in " ".join(added.stderr.split())) == (0, True)
    assert "not used: raw/forget.txt, raw/holdout.json" in " ".join(added.stderr.split())
    assert lethe("doctor", env=environment).returncode == 0


def test_a_service_that_is_not_there_is_a_service_error(tmp_path: Path) -> None:
    done = lethe(
        "audit",
        "list",
        env={"LETHE_API_KEY": "lethe_x", "LETHE_PORT": str(free_port()), "LETHE_DATA_DIR": str(tmp_path)},
    )
    assert done.returncode == 4
    assert "lethe dev" in done.stderr


def test_without_a_key_the_command_line_says_where_to_get_one(tmp_path: Path) -> None:
    done = lethe("audit", "list", env={"LETHE_DATA_DIR": str(tmp_path)})
    assert done.returncode == 3
    assert "LETHE_API_KEY" in done.stderr
