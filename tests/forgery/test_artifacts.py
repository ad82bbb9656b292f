"""A quantized file that does not hold what it is said to be of: some of its modules zeroed, reordered, or another's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.reports.model import AuditReport
from tests.support.engine import artifacts
from tests.support.forgery import POLICY, Ended, Run, World, reweigh
from tests.support.service import Service
from worker.loop import runner

pytestmark = pytest.mark.timeout(1200)

Tensors = dict[str, torch.Tensor]
SCALE = ".mlp.down_proj.weight_scale"
CODES = ".mlp.down_proj.weight_packed"


def one_module_of_zeros(tensors: Tensors) -> None:
    tensors["model.layers.0" + SCALE].zero_()


def one_module_with_its_rows_in_another_order(tensors: Tensors) -> None:
    for end in (SCALE, CODES):
        tensors["model.layers.0" + end] = tensors["model.layers.0" + end].flip(0).contiguous()


def two_modules_in_each_others_place(tensors: Tensors) -> None:
    for end in (SCALE, CODES):
        first, second = f"model.layers.0{end}", f"model.layers.1{end}"
        tensors[first], tensors[second] = tensors[second], tensors[first]


@pytest.fixture(scope="module")
def honest(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unlearned model, quantized by llm-compressor: weights in 4 bits, groups of 32."""
    return artifacts.compressed(world.pair.unlearned, tmp_path_factory.mktemp("artifact") / "w4a16")


@pytest.fixture(params=["lethe run", "http"])
def audit_artifact(request: pytest.FixtureRequest, world: World) -> Callable[[Path, Path, Path], Ended]:
    """An audit of an artifact of the unlearned model, by either door."""

    def run_here(original: Path, unlearned: Path, artifact: Path) -> Ended:
        go: Run = request.getfixturevalue("lethe_run")
        return go(original, unlearned, "--retrained", world.pair.retrained, "--artifact", artifact, "--plan", "full")

    def post(original: Path, unlearned: Path, artifact: Path) -> Ended:
        service: Service = request.getfixturevalue("service")
        retrained = shutil.copytree(world.pair.retrained, original.parent / "retrained")
        forget_set = service.made(service.post("/v1/forget-sets", json={"uri": str(world.bundle)}))
        body = {"original": str(original), "unlearned": str(unlearned), "retrained": str(retrained),
                "forget_set": forget_set["id"], "plan": {"precisions": ["full"]}, "policy": POLICY,
                "artifacts": [{"uri": str(artifact)}]}  # fmt: skip
        made = service.made(service.post("/v1/audits", json=body), 202)
        runner.drain()
        report = AuditReport.model_validate_json(service.get(made["links"]["report"]).content)
        return Ended(0 if report.verdict == "robust" else 1, report, report.sentence)

    return run_here if request.param == "lethe run" else post


@pytest.mark.parametrize(
    "change", [one_module_of_zeros, one_module_with_its_rows_in_another_order, two_modules_in_each_others_place]
)
def test_an_artifact_with_a_module_that_was_tampered_with_is_refused(
    audit_artifact: Callable[[Path, Path, Path], Ended],
    honest: Path,
    original: Path,
    unlearned: Path,
    tmp_path: Path,
    change: Callable[[Tensors], None],
) -> None:
    forged = Path(shutil.copytree(honest, tmp_path / "forged"))
    reweigh(forged, change)
    ended = audit_artifact(original, unlearned, forged)
    assert ended.report is not None, ended.said
    assert ended.report.verdict == "inconclusive"
    assert "artifact_not_of_pair" in ended.reasons


def test_the_honest_artifact_is_judged_or_the_refusals_above_prove_nothing(
    audit_artifact: Callable[[Path, Path, Path], Ended], honest: Path, original: Path, unlearned: Path
) -> None:
    ended = audit_artifact(original, unlearned, honest)
    assert ended.report is not None, ended.said
    assert all(evidence.failure is None for evidence in ended.report.evidence)
    assert ended.report.verdict == "robust"
