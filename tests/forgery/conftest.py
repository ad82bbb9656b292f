"""The audited party with full control over its files, at both doors: `lethe run` and the service.

The honest model is the tiny world's ordinary pair, whose audit ends with `robust`; every test changes files as an
adversary would leave them, and expects a refusal or an honest verdict.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import exit_codes
from app.reports.model import AuditReport
from tests.support.forgery import ITEMS, PLAN, POLICY, Ended, Run, World
from tests.support.running_service import empty_database, running_service
from tests.support.service import Service
from worker.commands import run
from worker.engine.demo import build
from worker.loop import runner


@pytest.fixture(scope="session")
def world(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The ordinary pair of the tiny world, and its forget set with so few items that an audit takes seconds."""
    torch.set_num_threads(1)
    built = build(world_cache, seed=0)
    bundle = tmp_path_factory.mktemp("bundle") / "forget-set"
    for file in built.forget_set.rglob("*.json"):
        copy = bundle / file.relative_to(built.forget_set)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(json.loads(file.read_text())[:ITEMS]))
    return World(built.ordinary, bundle)


@pytest.fixture
def original(world: World, tmp_path: Path) -> Path:
    """The original, to be tampered with."""
    return Path(shutil.copytree(world.pair.original, tmp_path / "original"))


@pytest.fixture
def unlearned(world: World, tmp_path: Path) -> Path:
    """The honest unlearned model, to be tampered with."""
    return Path(shutil.copytree(world.pair.unlearned, tmp_path / "unlearned"))


@pytest.fixture
def untouched(world: World, tmp_path: Path) -> Path:
    """What claims to be unlearned and is the original, to be tampered with."""
    return Path(shutil.copytree(world.pair.original, tmp_path / "untouched"))


@pytest.fixture
def lethe_run(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`lethe run` in this process: importing torch anew for each test would take longer than the audits."""

    def go(original: Path, unlearned: Path, *options: object, bundle: Path | None = None, **policy: Any) -> Ended:
        out, rules = tmp_path / "report.json", tmp_path / "policy.json"
        out.unlink(missing_ok=True)
        rules.write_text(json.dumps(POLICY | policy))
        arguments = ["--original", original, "--unlearned", unlearned, "--forget-set", bundle or world.bundle]
        arguments += ["--plan", ",".join(PLAN), "--policy", rules, "--out", out, "--threads", 1, *options]
        monkeypatch.setattr(sys, "argv", ["lethe run", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            exit_codes.run(run.app, "lethe run")
        said = "".join(capfd.readouterr())
        report = AuditReport.model_validate_json(out.read_bytes()) if out.exists() else None
        return Ended(int(ended.value.code or 0), report, " ".join(said.split()))

    return go


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, reading from wherever tests put their files."""
    base = tmp_path_factory.getbasetemp()
    with running_service(tmp_path_factory.mktemp("service"), roots=base.parent) as service:
        yield service


@pytest.fixture
def service(running: Service) -> Service:
    """The service with an empty database."""
    empty_database()
    running.begin()
    return running


@pytest.fixture
def over_http(service: Service, world: World) -> Run:
    """An audit over HTTP, evaluated by the real engine."""

    def go(original: Path, unlearned: Path, *, bundle: Path | None = None, between: Any = None, **policy: Any) -> Ended:
        forget_set = service.post("/v1/forget-sets", json={"uri": str(bundle or world.bundle)}).json()
        body = {
            "original": str(original),
            "unlearned": str(unlearned),
            "forget_set": forget_set["id"],
            "plan": {"precisions": PLAN},
            "policy": POLICY | policy,
        }
        posted = service.post("/v1/audits", json=body)
        if posted.status_code != 202:
            assert posted.status_code == 422, posted.text
            return Ended(3, None, posted.json()["detail"])
        if between is not None:
            between()
        runner.drain()
        links = posted.json()["links"]
        report = AuditReport.model_validate_json(service.get(links["report"]).content)
        shown = service.get(links["report"], params={"format": "markdown"}).text
        return Ended(0 if report.verdict == "robust" else 1, report, shown)

    return go


@pytest.fixture(params=["lethe run", "http"])
def audit(request: pytest.FixtureRequest) -> Run:
    """An audit by either door."""
    door: Run = request.getfixturevalue("lethe_run" if request.param == "lethe run" else "over_http")
    return door
