"""What people deploy, on every layout of a model: a proven evaluation, or a refusal that says what to do."""

from pathlib import Path

import pytest

from app.forget_sets.bundle import parse
from app.reports.model import AuditReport
from tests.support.factories import bundle_files, tiny_checkpoint
from worker.engine.audit import audit
from worker.engine.quantizers import calibration

DEPLOYED = ("rtn-int4", "rtn-int4-g128", "gptq-int4", "awq-int4", "bnb-nf4", "mxfp4", "gguf-q4_0")
LAYOUTS = ("llama", "llama-tied", "qwen2", "mistral", "neox", "gpt2")
"""Llama, Qwen2 and Mistral with grouped queries and an output layer of their own; the other llama's is tied."""


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES", {"gptq": 4, "awq": 2})


def refused(report: AuditReport) -> dict[str, str]:
    """Precision -> why; every other one is proven."""
    found = {}
    for evidence in report.evidence:
        if evidence.failure is not None:
            assert evidence.failure.code == "precision_unavailable"
            found[evidence.precision] = evidence.failure.detail
        elif evidence.precision != "full":
            assert evidence.evaluation is not None
            assert evidence.evaluation.census is not None
            assert evidence.evaluation.census.modules
    return found


def at_all(path: Path) -> AuditReport:
    return audit(path, path, parse(bundle_files(2)), precisions=DEPLOYED, metrics=["privleak"], device="cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_proven_at_what_people_deploy_or_refused(layout: str, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "model", layout, hidden_size=128, intermediate_size=256)
    why = refused(at_all(path))
    if layout in ("neox", "gpt2"):
        assert list(why) == ["awq-int4"]
        assert "use gptq-int4" in why["awq-int4"]
    else:
        assert why == {}


@pytest.mark.parametrize("layout", ["llama-tied", "qwen2", "neox"])
def test_columns_that_no_group_divides_are_refused_with_what_to_take(layout: str, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "model", layout, hidden_size=128, intermediate_size=200)
    why = refused(at_all(path))
    # bitsandbytes' blocks may cross rows; where its kernel cannot read that, it is refused.
    assert set(why) | {"bnb-nf4"} == set(DEPLOYED) - {"rtn-int4"} | {"bnb-nf4"}
    assert all("; use " in reason or ", use " in reason for reason in why.values())
    assert all("200 columns" in reason for reason in why.values())
