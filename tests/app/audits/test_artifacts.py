"""Audits of checkpoints that are quantized already, over HTTP."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.catalog.precisions import PRECISIONS
from app.database import engine as db
from app.reports.model import AuditReport
from app.workers import service as workers
from app.workers.service import WorkerReport
from tests.support.checkpoints import write_checkpoint
from tests.support.engine import artifacts
from tests.support.factories import bundle_content, tiny_bundle, tiny_checkpoint
from tests.support.service import Service
from tests.support.stand_ins.quick import evaluate
from worker.loop import runner

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def quantized(path: Path, config: dict[str, Any] = GPTQ, **kwargs: Any) -> str:
    """A checkpoint whose config says that it is quantized."""
    write_checkpoint(path, **kwargs)
    content = json.loads((path / "config.json").read_text()) | {"quantization_config": config}
    (path / "config.json").write_text(json.dumps(content))
    return str(path)


def test_a_quantized_checkpoint_is_registered_and_shown_but_plays_no_role(service: Service, tmp_path: Path) -> None:
    path = quantized(service.folder / tmp_path.name)
    found = service.made(service.post("/v1/checkpoints", json={"uri": path}))
    assert found["quantization"]["method"] == "gptq"
    assert found["quantization"]["group_size"] == 128
    for role in ("original", "unlearned", "retrained"):
        body = service.audit_body(**{role: found["id"]})
        problem = service.refused(service.post("/v1/audits", json=body), 422, "checkpoint_quantized")
        assert problem["detail"].startswith(f"{role}: ")
        assert "among the audit's artifacts" in problem["detail"]
    odd = quantized(service.folder / f"{tmp_path.name}-odd", {"quant_method": "hqq"})
    problem = service.refused(service.post("/v1/checkpoints", json={"uri": odd}), 422, "checkpoint_unsupported")
    assert "bitsandbytes, compressed-tensors, gptq, awq" in problem["detail"]


def test_each_artifact_of_the_unlearned_model_is_a_precision(service: Service, tmp_path: Path) -> None:
    folder = service.folder / tmp_path.name
    one = quantized(folder / "News NPO gptq", value=1)
    two = quantized(folder / "b" / "News NPO gptq", GPTQ | {"bits": 8}, value=2)
    theirs = quantized(folder / "original", value=3)
    asked = [{"uri": one}, {"uri": two}, {"uri": theirs, "of": "original", "name": "base.gptq"}]
    audit = service.audit(artifacts=asked, plan={"precisions": ["full"]})
    assert audit["plan"]["precisions"] == ["full", "shipped:news-npo-gptq", "shipped:news-npo-gptq-2"]
    assert [(a["name"], a["of"]) for a in audit["artifacts"]] == [
        ("news-npo-gptq", "unlearned"), ("news-npo-gptq-2", "unlearned"), ("base.gptq", "original"),
    ]  # fmt: skip
    assert [(p["role"], p["precision"]) for p in audit["parts"]] == [
        ("original", "full"), ("unlearned", "full"), ("original", "shipped:news-npo-gptq"),
        ("unlearned", "shipped:news-npo-gptq"), ("unlearned", "shipped:news-npo-gptq-2"),
    ]  # fmt: skip
    runner.drain(evaluate)
    report = AuditReport.model_validate_json(service.get(audit["links"]["report"]).content)
    assert [judged.precision for judged in report.precisions] == audit["plan"]["precisions"]
    assert "base.gptq" in report.notes[0]
    assert "understated" in report.notes[1]
    shown = service.get(audit["links"]["report"], params={"format": "markdown"}).text
    assert report.notes[1] in shown
    assert "artifact news-npo-gptq, of the unlearned" in shown
    listed = service.get("/v1/audits", params={"checkpoint": audit["artifacts"][1]["checkpoint"]["id"]}).json()
    assert [item["id"] for item in listed["items"]] == [audit["id"]]
    same = {"unlearned": audit["checkpoints"]["unlearned"]["id"], "forget_set": audit["forget_set"]["id"]}
    again = service.audit(**same, artifacts=[{"uri": one, "name": "other"}], plan={"precisions": ["full"]})
    assert [p["reused"] for p in again["parts"]] == [False, True, True]


def test_an_evaluation_is_of_an_artifact_and_what_that_is_said_to_be_of(service: Service, tmp_path: Path) -> None:
    folder = service.folder / tmp_path.name
    asked = [{"uri": quantized(folder / "artifact", value=1)}]
    pair = {name: str(write_checkpoint(folder / name, value=number)) for number, name in enumerate("abc")}
    roles = (
        {"original": "a", "unlearned": "b"},
        {"original": "a", "unlearned": "c"},
        {"original": "c", "unlearned": "b"},
    )
    reused = []
    for role in roles:
        named = {name: pair[letter] for name, letter in role.items()}
        audit = service.audit(**named, artifacts=asked, plan={"precisions": ["full"]})
        runner.drain(evaluate)
        reused.append(audit["parts"][2]["reused"])
    assert reused == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"name": "No Name"}, "invalid_request", "artifacts.0.name"),
        ({"name": "x" * 57}, "invalid_request", "artifacts.0.name"),
        ({"of": "retrained"}, "invalid_request", "artifacts.0.of"),
        ({"of": "original"}, "invalid_request", "artifacts.0"),
        ({"uri": "/nowhere"}, "checkpoint_outside_roots", "artifacts.0"),
        ({"uri": "unquantized"}, "checkpoint_unsupported", "artifacts.0"),
        ({"uri": "of another size"}, "pair_mismatch", None),
    ],
)
def test_artifacts_that_cannot_be_one_are_refused(
    service: Service, tmp_path: Path, changes: dict[str, str], code: str, where: str | None
) -> None:
    folder = service.folder / tmp_path.name
    paths = {
        "unquantized": str(write_checkpoint(folder / "plain")),
        "of another size": quantized(folder / "large", vocab_size=16),
    }
    asked = {"uri": quantized(folder / "fine")} | changes
    asked["uri"] = paths.get(asked["uri"], asked["uri"])
    problem = service.refused(service.post("/v1/audits", json=service.audit_body(artifacts=[asked])), 422, code)
    if where is not None:
        assert problem["errors"][0]["field"] == where


def test_two_artifacts_of_one_name_are_refused(service: Service, tmp_path: Path) -> None:
    asked = {"uri": quantized(service.folder / tmp_path.name), "name": "same"}
    body = service.audit_body(artifacts=[asked, asked])
    problem = service.refused(service.post("/v1/audits", json=body), 422, "invalid_request")
    assert "two artifacts are named 'same'" in problem["detail"]


def test_a_format_that_no_live_worker_can_open_is_refused_before_anything_is_queued(
    service: Service, tmp_path: Path
) -> None:
    why = "gptqmodel not installed on this worker; pip install 'lethe-audit[gptqmodel]'"
    can: dict[str, str | None] = dict.fromkeys((*PRECISIONS, "shipped-bitsandbytes"))
    with db.transaction() as session:
        workers.report(session, WorkerReport("gpu-1:1", "gpu-1", "0.2.0", {}, can | {"shipped-gptq": why}))
    asked = {"uri": quantized(service.folder / tmp_path.name)}
    body = service.audit_body(artifacts=[asked], plan={"precisions": ["full"]})
    problem = service.refused(service.post("/v1/audits", json=body), 422, "precision_unavailable")
    assert why in problem["detail"]
    formats = {one["name"]: one for one in service.get("/v1/precisions").json()["artifacts"]}
    assert formats["gptq"]["available"] is False
    assert formats["gptq"]["reason"] == f"gpu-1: {why}"
    assert formats["bitsandbytes"] == {
        "name": "bitsandbytes", "library": "bitsandbytes", "available": True, "reason": None,
    }  # fmt: skip


def test_the_real_engine_audits_the_file_that_will_be_deployed(service: Service, tmp_path: Path) -> None:
    folder = service.folder / tmp_path.name
    original, unlearned = (tiny_checkpoint(folder / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    shipped = artifacts.bitsandbytes(unlearned, folder / "b-nf4")
    swapped = artifacts.bitsandbytes(original, folder / "a-nf4")
    bundle = {f"{name}.json": content for name, content in bundle_content(4).items()}
    audit = service.audit(
        original=str(original),
        unlearned=str(unlearned),
        forget_set=service.forget_set(bundle),
        plan={"precisions": ["full"]},
        artifacts=[{"uri": str(shipped), "of": "unlearned"}, {"uri": str(swapped), "of": "unlearned"}],
    )
    runner.drain()
    report = AuditReport.model_validate_json(service.get(audit["links"]["report"]).content)
    assert [(e.role, e.precision, e.failure and e.failure.code) for e in report.evidence] == [
        ("original", "full", None), ("unlearned", "full", None), ("unlearned", "shipped:b-nf4", None),
        ("unlearned", "shipped:a-nf4", "artifact_not_of_pair"),
    ]  # fmt: skip
    evaluation = report.evidence[2].evaluation
    assert evaluation is not None
    census = evaluation.census
    assert census is not None
    assert evaluation.precision.name == "shipped-bitsandbytes"
    assert {module.packed_dtype for module in census.modules} == {"uint8"}
    assert all(module.relative_error and 0.08 < module.relative_error < 0.12 for module in census.modules)
    assert census.provenance is not None
    assert census.provenance.base == report.checkpoints["unlearned"].digest
    assert "b-nf4: 7 tensors that it leaves unquantized equal those of the unlearned checkpoint" in report.notes[2]
    shown = service.get(audit["links"]["report"], params={"format": "markdown"}).text
    assert report.notes[2] in shown
    assert f"{swapped} was not made from {unlearned}" in shown


def test_lethe_run_takes_artifacts(tmp_path: Path) -> None:
    original, unlearned = (tiny_checkpoint(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    shipped = artifacts.bitsandbytes(unlearned, tmp_path / "b-nf4")
    out = tmp_path / "report.json"
    command = ["--original", original, "--unlearned", unlearned, "--forget-set", tiny_bundle(tmp_path / "set")]
    command += ["--plan", "full", "--artifact", shipped, "--device", "cpu", "--threads", "1", "--out", out]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "run", *map(str, command)],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    report = AuditReport.model_validate_json(out.read_bytes())
    assert report.plan.precisions == ["full", "shipped:b-nf4"]
    assert "shipped:b-nf4: measured against the original in full precision" in " ".join(done.stdout.split())
