"""The diagnosis of whole models: what pairs are refused, what it costs, and what an audit makes of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.errors import CheckpointRefused, InvalidRequest
from app.evidence.diagnosis import NOTE, Diagnosis, ModulePart
from app.forget_sets.bundle import Bundle
from app.judgement.policy import Policy
from app.reports.rendering.markdown import markdown
from tests.support.engine.pairs import compare, write_pair
from tests.support.engine.weights import DTYPES
from tests.support.factories import tiny_checkpoint, tiny_model
from worker.engine.audit import audit
from worker.engine.checkpoint import open_checkpoint
from worker.engine.diagnosis import overlap
from worker.engine.layers.linear import survey
from worker.engine.stored import decoder_linears


def test_a_pair_that_does_not_match_is_refused_with_its_first_differences(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        compare(tmp_path, {"a": torch.ones(4, 64), "b": torch.ones(4, 64)}, {"a": torch.ones(8, 64)})
    assert refused.value.code == "pair_mismatch"
    assert "tensors.layers.0.a.weight: [4, 64] against [8, 64]" in refused.value.detail
    assert "tensors.layers.0.b.weight: only in the first" in refused.value.detail


def test_a_dtype_that_is_no_plain_float_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DTYPES, torch.uint8, "F8_E4M3")
    with pytest.raises(CheckpointRefused, match="F8_E4M3") as refused:
        compare(tmp_path, {"a": torch.ones(4, 64).byte()}, {"a": torch.ones(4, 64).byte()})
    assert refused.value.code == "checkpoint_unsupported"


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "neox", "qwen2", "mistral", "gpt2"])
def test_what_is_compared_is_what_the_quantizers_target(tmp_path: Path, architecture: str) -> None:
    opened = open_checkpoint(tiny_checkpoint(tmp_path / "it", architecture))
    expected = survey(opened.model)
    found, left_out = decoder_linears(opened.files)
    assert {name: linear.shape for name, linear in found.items()} == dict(expected.shapes)
    # By name they may differ: GPT-NeoX's files say embed_out where its model says lm_head.
    assert sorted(left_out.values()) == sorted(expected.left_out.values())
    weights = dict(opened.model.named_parameters())
    for name, linear in found.items():
        stored = weights[f"{name}.weight"].detach()
        rows = linear.shape[0]
        read = torch.cat([linear.read(0, rows // 3), linear.read(rows // 3, rows)])
        assert torch.equal(read, stored.T if linear.transposed else stored)


def test_a_real_pair_of_models_is_diagnosed_and_says_that_it_decides_nothing(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "original", dtype=torch.bfloat16)
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    tiny_checkpoint(tmp_path / "unlearned", dtype=torch.bfloat16)
    model.bfloat16().save_pretrained(tmp_path / "unlearned")
    found = overlap.diagnose(tmp_path / "original", tmp_path / "unlearned")
    moved: ModulePart = found.modules[0]
    assert moved.module == "model.layers.1.mlp.up_proj"
    assert moved.changed > 0.5
    assert all(module.changed == 0 for module in found.modules[1:])
    assert found.note == NOTE
    assert Diagnosis.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_memory_stays_near_a_slice_whatever_the_size_of_the_pair(tmp_path: Path) -> None:
    """Both checkpoints mapped into memory, as most readers do, would alone be 240 MB on top of torch's 300."""
    original, unlearned = write_pair(tmp_path, 120)
    # Not ru_maxrss: a process inherits that of the one that started it.
    script = (
        "import sys; from worker.commands.diagnose import app; app(sys.argv[1:], standalone_mode=False);"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    args = [str(original), str(unlearned), "--precisions", "rtn-int4,bnb-nf4", "--top", "1", "--threads", "1"]
    ran = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "never decides a verdict" in " ".join(ran.stdout.split())
    peak = int(ran.stdout.split("VmHWM:")[1].split()[0]) // 1024
    assert peak < 450, f"{peak} MB"


def test_an_audit_without_the_service_carries_the_diagnosis_too(tmp_path: Path, llama: Path, bundle: Bundle) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    report = audit(llama, other, bundle, precisions=["full"], metrics=["knowmem_forget"], policy=Policy())
    assert isinstance(report.diagnosis, Diagnosis)
    assert report.diagnosis.overall.changed == 1
    assert "## Where the update lives" in markdown(report)


def test_an_audit_of_a_model_against_a_copy_of_itself_has_not_forgotten(
    tmp_path: Path, llama: Path, bundle: Bundle
) -> None:
    copy = tiny_checkpoint(tmp_path / "copy")
    tiny_model().save_pretrained(copy, max_shard_size="100KB")
    report = audit(llama, copy, bundle, precisions=["full"], metrics=["knowmem_forget"], policy=Policy())
    assert (report.verdict, report.reasons[0].code) == ("not_forgotten", "same_weights")
