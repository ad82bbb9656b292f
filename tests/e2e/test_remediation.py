"""A remediation as a user starts it: by the command line, on a service with one worker and the real engine."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.checkpoints.format.digests import digest
from app.cli.embedded import free_port
from app.remediations.report import RemediationReport
from tests.support.commands import LETHE, lethe
from tests.support.factories import tiny_bundle, tiny_checkpoint
from tests.support.worker_service import until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[dict[str, str]]:
    """`lethe dev` and the settings with which the command line finds it."""
    models = tmp_path / "models"
    for seed, name in enumerate(("original", "unlearned")):
        tiny_checkpoint(models / name, seed=seed)
    found = {"LETHE_DATA_DIR": str(tmp_path / "data"), "LETHE_PORT": str(free_port()), "LETHE_ROOTS": str(models)}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LETHE_")}
    with (tmp_path / "dev.log").open("w") as log:
        child = subprocess.Popen(
            [*LETHE, "dev"], stdout=log, stderr=log, env=clean | found | {"LETHE_TORCH_THREADS": "1"}
        )
        try:
            until(lambda: "Lethe is up" in (tmp_path / "dev.log").read_text(), 90)
            yield found
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0


def test_a_failed_audit_leads_to_a_model_that_was_audited_again(service: dict[str, str], tmp_path: Path) -> None:
    def run(*args: object, code: int = 0) -> str:
        done = lethe(*args, env=service)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    models = Path(service["LETHE_ROOTS"])
    forget_set = run("forget-set", "add", tiny_bundle(tmp_path / "bundle", n=6)).split()[0]
    pair = ("--original", models / "original", "--unlearned", models / "unlearned", "--forget-set", forget_set)
    audit = run("audit", "submit", *pair, "--plan", "quick").split()[0]
    run("audit", "wait", audit, code=2)  # too few items: inconclusive

    # What the forget set lacks is said before anything runs.
    refused = lethe("remediate", audit, "--method", "sure", "--loss", "npo_gdr", env=service)
    assert (refused.returncode, "raw/retain.json" in refused.stderr) == (3, True)
    wrong = lethe("remediate", audit, "--method", "sure", "--loss", "npo", "--set", "alfa=8", env=service)
    assert (wrong.returncode, "hyperparameters.alfa" in wrong.stderr) == (3, True)

    own = ("--set", "max_steps=4", "--set", "stop=null", "--set", "saliency_percentile=50")
    done = lethe("remediate", audit, "--method", "sure", "--loss", "npo", *own, "--wait", env=service)
    assert done.returncode == 2, done.stdout + done.stderr
    remediation = done.stdout.split()[0]
    assert "INCONCLUSIVE, now INCONCLUSIVE" in done.stderr

    shown = json.loads(run("remediation", "show", remediation, "--json"))
    assert (shown["state"], shown["verdict"]) == ("finished", "inconclusive")
    (trial,) = shown["trials"]
    assert [point["step"] for point in trial["losses"]] == [1, 2, 3, 4]
    assert sum(module["updated"] > 0 for module in trial["saliency"]) < len(trial["saliency"])
    new = Path(trial["model"]["uri"])
    assert digest(new) == trial["model"]["digest"] == trial["checkpoint"]["digest"]
    assert digest(new) != digest(models / "original")
    until(lambda: "**INCONCLUSIVE**" in (new / "README.md").read_text(), 30)
    assert json.loads((new / "unlearning.json").read_text())["digest"] == trial["model"]["digest"]

    report = RemediationReport.model_validate_json(run("remediation", "report", remediation, "--format", "json"))
    assert [at.precision for at in report.precisions] == ["full", "rtn-int4"]
    assert "## Before and after" in run("remediation", "report", remediation)
    assert remediation in run("remediation", "list", "--audit", audit)
    assert "sure" in run("remediation", "ladder")
    run("remediation", "delete", remediation)
    assert not new.exists()
    assert "deleted" in run("remediation", "show", remediation)
    run("remediation", "cancel", remediation, code=3)
