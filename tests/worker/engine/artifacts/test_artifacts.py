"""Checkpoints that are quantized already: what is proven of them, and that what computes is what the file holds."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from app.checkpoints.format.files import inspect
from app.checkpoints.pair import check_artifact
from app.errors import CheckpointRefused, EvaluationFailed, InvalidRequest
from app.evidence.artifacts import FORMAT_PRECISIONS
from app.forget_sets.bundle import Bundle
from tests.support.engine import artifacts
from tests.support.engine.agreement import agree
from tests.support.engine.quantized import IDS, loss
from tests.support.engine.shipped import WEIGHTS_ONLY, WITH_ACTIVATIONS, open_artifact
from tests.support.factories import tiny_checkpoint
from tests.support.judgement.evaluations import known
from worker.engine.artifacts import packed, shipped
from worker.engine.audit import Artifact, audit
from worker.engine.checkpoint import open_checkpoint
from worker.engine.evaluate import evaluate
from worker.engine.layers.linear import targets
from worker.engine.quantizers import availability, bnb
from worker.engine.quantizers.ticks import Ticks


def weights(live: Any) -> dict[str, torch.Tensor]:
    """What each quantized module holds, read without its forward."""
    found: dict[str, torch.Tensor] = {}
    for name, module in live.named_modules():
        if isinstance(module, bnb.bnb.nn.Linear4bit | bnb.bnb.nn.Linear8bitLt):
            found[name] = bnb.dequantized(module)
        elif packed.is_packed(module):
            found[name] = unpacked(module)
        elif getattr(module, "quantization_scheme", None) is not None:
            found[name] = module.weight
    return found


def unpacked(module: Any) -> torch.Tensor:
    """GPTQ and AWQ by their formats: nibbles of int32, (code - zero) * scale, both per group of rows."""
    nibbles = 4 * torch.arange(8)
    if "Awq" in type(module).__name__:
        place = 4 * torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
        codes = (module.qweight[:, :, None] >> place) & 15
        codes = codes.reshape(module.in_features, -1)
        zeros = ((module.qzeros[:, :, None] >> place) & 15).reshape(module.qzeros.shape[0], -1)
    else:
        codes = ((module.qweight[:, None, :] >> nibbles[:, None]) & 15).reshape(module.in_features, -1)
        zeros = ((module.qzeros[:, :, None] >> nibbles) & 15).reshape(module.qzeros.shape[0], -1)
    size = module.in_features // zeros.shape[0]
    zeros, scales = (x.repeat_interleave(size, dim=0) for x in (zeros, module.scales))
    found: torch.Tensor = ((codes - zeros) * scales).T
    return found


@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
def test_the_live_model_computes_what_the_weights_in_the_file_give(
    kind: str, made: dict[str, Path], model: Path
) -> None:
    """Guards against "Repacked weights" and "Misread AWQ" (worker/engine/README.md, "Traps")."""
    live, _, census = open_artifact(made[kind])
    fake: Any = open_checkpoint(model, "cpu", dtype=live.dtype).model
    own = fake.state_dict()
    fake.load_state_dict(
        {k: v for k, v in live.state_dict().items() if k in own and v.shape == own[k].shape}, strict=False
    )
    found = weights(live)
    assert sorted(found) == sorted(module.module for module in census.modules)
    with torch.no_grad():
        for name, module in targets(fake).items():
            if name in found:
                module.weight.copy_(found[name])
    with torch.inference_mode():
        assert torch.equal(live(IDS).logits, live(IDS).logits)
    assert agree(live, fake, IDS)
    assert not agree(live, open_checkpoint(model, "cpu").model, IDS)


@pytest.mark.parametrize("kind", WITH_ACTIVATIONS)
def test_formats_that_quantize_activations_are_run_as_they_are(kind: str, made: dict[str, Path], model: Path) -> None:
    live, info, census = open_artifact(made[kind])
    assert info.bits == 8
    assert info.parameters["activations"] in ("int8", "float8")
    assert len(census.modules) == 14
    fake: Any = open_checkpoint(model, "cpu", dtype=live.dtype).model
    found = weights(live)
    with torch.no_grad():
        for name, module in targets(fake).items():
            module.weight.copy_(found[name])
    assert loss(live) == pytest.approx(loss(fake), rel=0.02)
    assert abs(loss(live) - loss(fake)) > 1e-5


@pytest.mark.parametrize("kind", WEIGHTS_ONLY + WITH_ACTIVATIONS)
def test_the_census_shows_every_packed_module(kind: str, made: dict[str, Path], model: Path) -> None:
    _, info, census = open_artifact(made[kind])
    assert inspect(made[kind], quantized=True).parameters == census.parameters_total == inspect(model).parameters
    assert census.parameters_quantized + sum(census.left_out.values()) == census.parameters_total
    assert len(census.modules) == (7 if kind == "half" else 14)
    for module in census.modules:
        assert module.quantizer == info.name
        assert module.bits == info.bits
        assert 2 < module.max_distinct <= 2**module.bits
        assert module.packed_dtype in ("uint8", "int8", "int32", "float8_e4m3fn")
        assert module.relative_error is None
    assert {"model.embed_tokens", "lm_head", "norms and biases"} <= set(census.left_out)
    assert ("model.layers.1.mlp.up_proj" in census.left_out) == (kind == "half")
    assert census.coverage == pytest.approx(0.31 if kind == "half" else 0.62, abs=0.01)


def test_what_only_says_that_it_is_quantized_has_no_proof(model: Path, tmp_path: Path, bundle: Bundle) -> None:
    path = artifacts.claimed(model, tmp_path / "claimed")
    check_artifact(inspect(model), inspect(path, quantized=True))
    with pytest.raises(EvaluationFailed, match="none of its 14 linear layers is") as failed:
        evaluate(path, FORMAT_PRECISIONS["compressed-tensors"], bundle, device="cpu")
    assert failed.value.code == "not_quantized"


def test_weights_that_were_never_packed_are_no_proof(model: Path, tmp_path: Path) -> None:
    """llm-compressor saves the original weights unless told to compress ("Layers that only pretend")."""
    path = artifacts.compressed(model, tmp_path / "unpacked", packed=False)
    with pytest.raises(EvaluationFailed, match="none of its 14") as failed:
        open_artifact(path)
    assert failed.value.code == "not_quantized"


def test_a_live_weight_with_too_many_values_is_noticed(made: dict[str, Path]) -> None:
    opened = open_checkpoint(made["w4a16"], "cpu", quantized=True)
    codes = shipped.prepare(opened.model, opened.files)
    with torch.no_grad():
        opened.model.get_parameter("model.layers.1.mlp.up_proj.weight")[3] += torch.linspace(0, 1, 64)
    with pytest.raises(EvaluationFailed, match=r"layers\.1\.mlp\.up_proj says that it is quantized to 4 bits"):
        shipped.take(opened.model, opened.files, codes, Ticks(lambda *_: None, 14))


def test_an_artifact_of_another_model_is_refused_with_the_first_differences(
    made: dict[str, Path], tmp_path: Path
) -> None:
    others: list[tuple[dict[str, Any], str]] = [
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"num_key_value_heads": 4, "intermediate_size": 256}, "gate_proj.weight"),
    ]
    for changes, where in others:
        other = inspect(tiny_checkpoint(tmp_path / where, **changes))
        for kind in ("nf4", "w4a16", "gptq", "awq"):
            with pytest.raises(InvalidRequest, match=where) as refused:
                check_artifact(other, inspect(made[kind], quantized=True))
            assert refused.value.code == "pair_mismatch"


def test_methods_that_are_not_opened_are_named_with_those_that_are(made: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(made["gptq"], tmp_path / "odd"))
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "quip"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointRefused, match=r"'quip'.*bitsandbytes, compressed-tensors, gptq, awq"):
        inspect(path, quantized=True)
    config["quantization_config"] = {"quant_method": "gptq"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointRefused, match="quantization_config of gptq is incomplete"):
        inspect(path, quantized=True)


def test_without_the_extra_its_name_is_in_the_reason(
    made: dict[str, Path], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = availability._present
    monkeypatch.setattr(availability, "_present", lambda name: name != "gptqmodel" and present(name))
    with pytest.raises(EvaluationFailed, match=r"pip install 'lethe-audit\[gptqmodel\]'") as failed:
        evaluate(made["gptq"], FORMAT_PRECISIONS["gptq"], bundle, device="cpu")
    assert failed.value.code == "precision_unavailable"
    assert availability.shipped_unavailable(FORMAT_PRECISIONS["bitsandbytes"]) is None


def test_an_audit_measures_artifacts_against_their_like_or_full_precision(
    made: dict[str, Path], model: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [Artifact(made["nf4"]), Artifact(made["gptq"], name="deployed"), Artifact(made["nf4"], "original", "o")]
    report = audit(model, model, bundle, precisions=["full"], device="cpu", artifacts=shown)
    assert report.plan.precisions == ["full", "shipped:nf4", "shipped:deployed"]
    assert [(e.role, e.precision) for e in report.evidence[2:]] == [
        ("original", "shipped:nf4"), ("unlearned", "shipped:nf4"), ("unlearned", "shipped:deployed"),
    ]  # fmt: skip
    assert all(e.failure is None for e in report.evidence)
    by_name = {judged.precision: judged for judged in report.precisions}
    knowmem = {name: judged.metrics[1] for name, judged in by_name.items()}
    assert knowmem["shipped:deployed"].original == knowmem["full"].original
    assert knowmem["shipped:nf4"].original == knowmem["shipped:nf4"].unlearned
    assert "measured against o, the original in the same format" in report.notes[0]
    assert "its retention is understated" in report.notes[1]
    assert "unquantized equal those of the unlearned checkpoint" in report.notes[3]
    assert "less than twice that error, so the quantized weights cannot show" in report.notes[3]
    censuses = [known(e.evaluation).census for e in report.evidence]
    assert all(math.isfinite(census.coverage) for census in censuses if census)
    assert capsys.readouterr().out == ""


def test_an_artifact_of_the_original_alone_is_refused(made: dict[str, Path], model: Path, bundle: Bundle) -> None:
    only = [Artifact(made["nf4"]), Artifact(made["nf4-dq"], "original")]
    with pytest.raises(InvalidRequest, match="no artifact of the unlearned model in its format"):
        audit(model, model, bundle, precisions=["full"], artifacts=only)
    with pytest.raises(CheckpointRefused, match="is not quantized"):
        audit(model, model, bundle, precisions=["full"], artifacts=[Artifact(model)])
    with pytest.raises(CheckpointRefused, match="among the audit's artifacts"):
        audit(model, made["nf4"], bundle, precisions=["full"])
