"""The demo from the outside, and that its verdicts follow from the models: change them, and the verdict changes."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from app.forget_sets.bundle import parse, read_directory
from app.judgement.verdict import PrecisionJudgement
from app.remediations.report import RemediationReport
from app.reports.model import AuditReport
from tests.support.commands import lethe, unread
from tests.support.judgement.evaluations import known, scores_of
from worker.engine.demo import DemoWorld, build
from worker.engine.demo.recipe import SURE
from worker.engine.unlearning.unlearn import unlearn

pytestmark = pytest.mark.timeout(1200)


class Demo(NamedTuple):
    """What `lethe demo` said, and the folder of its reports."""

    done: subprocess.CompletedProcess[str]
    out: Path


@pytest.fixture(scope="session")
def demo(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo")
    done = lethe("demo", "--cache", world_cache, "--out", out, timeout=1100)
    return Demo(done, out)


@pytest.fixture(scope="session")
def world(demo: Demo, world_cache: Path) -> DemoWorld:
    torch.set_num_threads(1)
    return build(world_cache, seed=0)


def report(out: Path, pair: str) -> AuditReport:
    return AuditReport.model_validate_json((out / f"report-{pair}-seed0.json").read_bytes())


def at(found: AuditReport, precision: str) -> PrecisionJudgement:
    return next(p for p in found.precisions if p.precision == precision)


def kept(found: AuditReport, precision: str) -> float:
    """Mean retention of VerbMem and KnowMem, in points."""
    metrics = [m for m in at(found, precision).metrics if m.metric in ("verbmem", "knowmem_forget")]
    return 100 * sum(known(m.retained).value for m in metrics) / len(metrics)


def test_the_demo_ends_well_and_shows_both_verdicts(demo: Demo) -> None:
    done = demo.done
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RECOVERED" in done.stdout
    assert "ROBUST" in done.stdout
    assert "native, SURE" in done.stdout
    assert "native, LoRA" in done.stdout


def test_the_native_pair_is_recovered_at_the_matching_precision_and_only_there(demo: Demo) -> None:
    found = report(demo.out, "native")
    assert found.verdict == "recovered"
    assert [p.precision for p in found.precisions if p.outcome == "recovered"] == ["rtn-int4"]
    assert kept(found, "rtn-int4") >= kept(found, "full") + 40
    assert abs(kept(found, "rtn-int8") - kept(found, "full")) <= 10


@pytest.mark.parametrize("method", ["sure", "lora"])
def test_the_failed_audit_is_remediated_and_what_was_forgotten_stays_forgotten(demo: Demo, method: str) -> None:
    found = RemediationReport.model_validate_json((demo.out / f"remediation-{method}-seed0.json").read_bytes())
    assert found.recipe.method == method
    assert (found.verdict_before, found.verdict) == ("recovered", "robust"), found.sentence
    for at in found.precisions:
        if at.precision in ("full", "rtn-int4"):
            by_metric = {compared.metric: compared for compared in at.metrics}
            assert known(by_metric["verbmem"].new.kept) < 0.3
            assert known(by_metric["knowmem_forget"].new.kept) < 0.5
            assert known(by_metric["knowmem_retain"].new.kept) > 0.6
    before = next(at for at in found.precisions if at.precision == "rtn-int4").metrics[0]
    assert known(before.first.kept) > 0.4, "the table's other side is the model that failed"
    assert found.parameters_changed < found.parameters_total


def test_another_plan_shows_what_is_retained_by_technique_and_bits(
    demo: Demo, world_cache: Path, tmp_path: Path
) -> None:
    done = lethe(
        "demo", "--cache", world_cache, "--out", tmp_path, "--plan", "rtn-int8,rtn-int4,bnb-nf4-dq", timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tables = done.stdout.split("native pair, seed 0: retained, by technique and bits")[-1].splitlines()
    assert tables[2].split() == ["technique", "full", "8", "bits", "4", "bits"]
    assert next(line for line in tables if "rtn" in line).count("/") == 4
    assert " ".join(done.stdout.split()).count("9 of 9 quantized evaluations are proven") >= 2


def test_the_ordinary_pair_is_robust_on_every_metric(demo: Demo) -> None:
    found = report(demo.out, "ordinary")
    assert found.verdict == "robust"
    assert {m.outcome for p in found.precisions for m in p.metrics} == {"robust"}


def test_teacher_forcing_tells_what_came_back_and_what_the_retrained_model_never_knew(demo: Demo) -> None:
    found = report(demo.out, "native")

    def mean(role: str, precision: str, column: str) -> float:
        evaluation = next(e.evaluation for e in found.evidence if (e.role, e.precision) == (role, precision))
        values = scores_of(evaluation, "knowmem_forget").extras[column]
        return float(np.mean([value for value in values if value is not None]))

    for column in ("exact_memorization", "extraction_strength", "probability", "truth_ratio"):
        assert mean("unlearned", "rtn-int4", column) > mean("unlearned", "full", column) + 0.15
        assert mean("original", "full", column) > 0.8
        assert mean("retrained", "full", column) < 0.5
    assert mean("original", "full", "truth_ratio") > 0.95


def test_every_quantized_evaluation_of_the_demo_is_proven(demo: Demo) -> None:
    for pair in ("native", "ordinary"):
        for evidence in report(demo.out, pair).evidence:
            assert evidence.evaluation is not None
            assert (evidence.evaluation.census is None) == (evidence.precision == "full")


def run(tmp_path: Path, world: DemoWorld, unlearned: Path) -> tuple[int, AuditReport]:
    """Audit the native pair by `lethe run`, with another unlearned model."""
    out = tmp_path / "report.json"
    done = lethe(
        "run", "--original", world.native.original, "--unlearned", unlearned, "--retrained", world.native.retrained,
        "--forget-set", world.forget_set, "--plan", "full,rtn-int4", "--out", out, "--threads", 1,
    )  # fmt: skip
    assert out.exists(), done.stdout + done.stderr
    return done.returncode, AuditReport.model_validate_json(out.read_bytes())


def test_an_original_audited_against_itself_has_not_forgotten(tmp_path: Path, world: DemoWorld) -> None:
    code, found = run(tmp_path, world, world.native.original)
    assert found.verdict == "not_forgotten"
    assert code == 1


def test_unlearning_in_large_steps_survives_on_the_same_grid(tmp_path: Path, world: DemoWorld) -> None:
    everywhere = SURE.model_copy(update={"method": "control"})
    unlearn(world.native.original, tmp_path / "large", parse(read_directory(world.forget_set)), everywhere)
    code, found = run(tmp_path, world, tmp_path / "large")
    assert found.verdict == "robust", [r.sentence for r in found.reasons]
    assert code == 0


def test_robust_stays_robust_though_nobody_reads_it(world: DemoWorld) -> None:
    roles = [item for role in ("original", "unlearned", "retrained")
             for item in (f"--{role}", getattr(world.ordinary, role))]  # fmt: skip
    plan = ("--plan", "full,rtn-int4", "--threads", 1)
    assert unread("run", *roles, "--forget-set", world.forget_set, *plan) == 0


def test_the_record_tells_how_the_world_was_made(world: DemoWorld) -> None:
    record = json.loads(world.record.read_text())
    assert record["seed"] == 0
    for pair in ("native", "ordinary"):
        assert record["unlearned"][pair]["stopped"] == "forgotten"
