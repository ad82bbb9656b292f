"""GPTQ, AWQ, MXFP4, NVFP4 and GGUF on tiny random models: proof, live weights, and their libraries' traps.

The traps are named as in worker/engine/README.md, "Traps".
"""

import copy
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog.precisions import parse
from app.errors import EvaluationFailed
from tests.support.engine.agreement import agree
from tests.support.engine.quantized import ARCHITECTURES, IDS, NO_AWQ, TORCHAO, applied, loss, texts
from tests.support.factories import tiny_model
from worker.engine import precisions as registry
from worker.engine.layers import grids
from worker.engine.layers.linear import survey, targets
from worker.engine.proof.snapshot import take_snapshot
from worker.engine.quantizers import compressed, gguf
from worker.engine.quantizers.ticks import Ticks

COMPRESSED = ["gptq-int4-g32", "gptq-int8-g64", "gptq-int4-channel", "awq-int4-g32", "mxfp4", "nvfp4"]
GGUF = ["gguf-q4_0", "gguf-q8_0"]
ALL = COMPRESSED + GGUF + TORCHAO


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layout_works_with_proof_or_is_refused_with_what_to_do(architecture: str, name: str) -> None:
    if name.startswith("awq") and architecture in NO_AWQ:
        with pytest.raises(EvaluationFailed, match=r"no rule.*gptq-int4") as refused:
            applied(name, architecture)
        assert refused.value.code == "precision_unavailable"
        return
    original = tiny_model(architecture)
    model, proof = applied(name, architecture)
    bits = parse(name).bits or 0
    assert len(proof.modules) == len(targets(original)) == len(targets(model))
    assert proof.parameters_total == sum(parameter.numel() for parameter in original.parameters())
    for module in proof.modules:
        assert 2 < module.max_distinct <= 2**bits
        assert 0 < module.relative_error < {8: 0.05, 4: 0.35}[bits]
    assert loss(model) == loss(model)
    assert loss(model) != loss(original)
    assert loss(model) == pytest.approx(loss(original), rel=0.3)


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_live_model_computes_what_the_fake_quantized_one_does(name: str, dtype: torch.dtype) -> None:
    """Plain layers with the held weights compute what llm-compressor's own do ("Layers that only pretend")."""
    precision = parse(name)
    fake = tiny_model().to(dtype)
    names = list(targets(fake))
    compressed.compress(fake, precision, names, Ticks(lambda *_: None, 14), texts() if precision.calibration else None)
    live = tiny_model().to(dtype)
    registry.apply(live, precision, calibration=texts() if precision.calibration else None)
    assert agree(live, fake, IDS)
    if dtype == torch.float32:
        assert not agree(live, tiny_model(), IDS)


@pytest.mark.parametrize("name", COMPRESSED)
def test_errors_are_against_the_original_weights_with_awqs_factors_undone(name: str) -> None:
    """Guards against "Rescaled weights": AWQ's weights, as they are, would show its rescaling as an error."""
    original, live = tiny_model(), applied(name)
    for module in live[1].modules:
        weight = original.get_parameter(f"{module.module}.weight")
        held = live[0].get_submodule(module.module).weight.detach().float()
        apart = float((held - weight).norm() / weight.norm())
        if name.startswith("awq") and module.module.endswith("q_proj"):
            norm = module.module.replace("self_attn.q_proj", "input_layernorm.weight")
            factors = original.get_parameter(norm) / live[0].get_parameter(norm)
            apart, rescaled = float((held / factors - weight).norm() / weight.norm()), apart
            assert rescaled > apart
        if not name.startswith("awq") or module.module.endswith("q_proj"):
            assert module.relative_error == pytest.approx(apart, rel=1e-4)
        rows = float(((held - weight).norm(dim=1) / weight.norm(dim=1)).max())
        if not name.startswith("awq"):
            assert module.largest_row_error == pytest.approx(rows, rel=1e-4)
        assert module.relative_error < module.explained_error


@pytest.mark.parametrize("name", GGUF)
def test_gguf_weights_are_what_the_packed_bytes_say(name: str) -> None:
    model, _ = applied(name)
    fake = tiny_model()
    for module in targets(fake).values():
        packed = gguf.pack(module.weight.detach(), parse(name))
        assert packed.nbytes * 8 / module.weight.numel() == {4: 4.5, 8: 8.5}[parse(name).bits or 0]
        with torch.no_grad():
            module.weight.copy_(gguf.unpack(packed, parse(name)))
    assert agree(model, fake, IDS)
    assert not agree(model, tiny_model(), IDS)


@pytest.mark.parametrize("name", TORCHAO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchaos_own_model_computes_the_same(name: str, dtype: torch.dtype) -> None:
    from worker.engine.quantizers import torchao

    live, own = tiny_model().to(dtype), tiny_model().to(dtype)
    registry.apply(live, parse(name))
    layers = targets(own)
    torchao.quantization.quantize_(own, torchao._config(parse(name)), lambda module, _: module in layers.values())
    # Its int8 kernel multiplies by the scale after the product; in 16 bits that rounds otherwise.
    assert agree(live, own, IDS)
    for key, layer in layers.items():
        assert torch.equal(live.get_submodule(key).weight, layer.weight.dequantize())


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_state_dict_holds_the_quantized_weights(name: str) -> None:
    """llm-compressor's own state_dict() is the original model, or the rescaled one ("Layers that only pretend")."""
    model, _ = applied(name)
    plain = tiny_model()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert loss(plain) == loss(model)


def test_what_llm_compressor_leaves_behind_has_no_proof() -> None:
    """Guards against "Layers that only pretend": its layers hold the unquantized weight, and quantize in forward."""
    for name in ("awq-int4-g32", "mxfp4"):
        model = tiny_model()
        before = survey(model)
        precision = parse(name)
        compressed.compress(
            model,
            precision,
            list(before.shapes),
            Ticks(lambda *_: None, 14),
            texts() if precision.calibration else None,
        )
        with pytest.raises(EvaluationFailed, match="14 of 14 modules") as failed:
            registry.prove(model, precision, before, take_snapshot(tiny_model()))
        assert failed.value.code == "not_quantized"


@pytest.mark.parametrize("name", ALL)
def test_weights_off_the_grid_and_half_quantized_models_have_no_proof(name: str) -> None:
    model, _ = applied(name)
    before = survey(tiny_model())
    one = copy.deepcopy(model)
    with torch.no_grad():
        one.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 5] += 1e-3
    with pytest.raises(EvaluationFailed, match=r"1 of 14.*layers\.1\.mlp\.down_proj holds weights off the grid"):
        registry.prove(one, parse(name), before, take_snapshot(tiny_model()))
    for key in itertools.islice(before.shapes, 0, None, 2):
        model.set_submodule(key, tiny_model().get_submodule(key))
    with pytest.raises(EvaluationFailed, match=r"\d+ of 14 modules" if name.startswith("awq") else "7 of 14 modules"):
        registry.prove(model, parse(name), before, take_snapshot(tiny_model()))


def test_a_grid_that_claims_more_points_or_other_groups_is_no_proof() -> None:
    for applied_as, named in (("gguf-q8_0", "gguf-q4_0"), ("gptq-int4-g64", "gptq-int4-g32"), ("mxfp4", "nvfp4")):
        model, _ = applied(applied_as)
        before = survey(tiny_model())
        with pytest.raises(EvaluationFailed, match="was put onto a different grid"):
            registry.prove(model, parse(named), before, take_snapshot(tiny_model()))


def test_unquantized_weights_beside_a_grid_are_no_proof() -> None:
    for dtype, name in itertools.product((torch.float32, torch.bfloat16), ("gptq-int8-g64", "gguf-q4_0")):
        model = tiny_model().to(dtype)
        before = survey(model)
        registry.apply(model, parse(name), calibration=texts())
        original = tiny_model().to(dtype)
        for key in before.shapes:
            layer: Any = model.get_submodule(key)
            layer.weight = original.get_submodule(key).weight
        with pytest.raises(EvaluationFailed, match="14 of 14 modules"):
            registry.prove(model, parse(name), before, take_snapshot(original))


def test_awq_rescales_and_the_model_computes_the_same_but_for_rounding() -> None:
    """The weights and the norm before them differ from the original's; the logits agree ("Rescaled weights")."""
    model, proof = applied("awq-int4-g32")
    original = tiny_model()
    moved = [
        not torch.equal(a, b)
        for (key, a), (_, b) in zip(model.named_parameters(), original.named_parameters(), strict=True)
        if "norm" in key
    ]
    assert any(moved)
    with torch.inference_mode():
        ours, theirs = model(IDS).logits, original(IDS).logits
        rounded = tiny_model()
        registry.apply(rounded, parse("rtn-int4-g32"))
        nearest = rounded(IDS).logits
    assert (ours - theirs).norm() / theirs.norm() < 0.5
    assert (ours - theirs).norm() < 1.2 * (nearest - theirs).norm()
    assert max(module.relative_error for module in proof.modules) < 0.35


@pytest.mark.parametrize("name", ["gptq-int4", "awq-int4", "gptq-int8-g64", "mxfp4", "nvfp4", *GGUF])
def test_groups_that_do_not_divide_the_columns_are_refused_with_what_to_take(name: str) -> None:
    """Guards against "Uneven groups", before a library gets to see the model."""
    model = tiny_model(intermediate_size=104)
    before = loss(model)
    with pytest.raises(EvaluationFailed, match=r"do not divide the \d+ columns of model\..*; .*use") as refused:
        registry.apply(model, parse(name), calibration=texts())
    assert refused.value.code == "precision_unavailable"
    assert loss(model) == before
    if name == "gptq-int4":
        assert "gptq-int4-channel" in refused.value.detail
        assert registry.apply(tiny_model(intermediate_size=104), parse("gptq-int4-channel"), calibration=texts())


def test_awq_works_without_an_accelerator() -> None:
    """Guards against "Pinned memory"; fails with `Cannot access accelerator device` when the guard is removed."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    applied("awq-int4-g32")


def test_models_in_memory_need_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against "Looking for a processor": neither a processor nor a config is looked for by the model's name."""
    import socket

    def refuse(*args: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("gptq-int4-g32", "mxfp4"):
        model = tiny_model()
        model.config.name_or_path = "nobody/this-model-is-nowhere"
        registry.apply(model, parse(name), calibration=texts())
        assert model.config.name_or_path == "nobody/this-model-is-nowhere"


def test_gptq_that_fell_back_to_rounding_is_refused() -> None:
    """A Hessian that cannot be inverted makes llm-compressor round to nearest, with a line in its log."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.input_layernorm.weight")[0] = float("nan")
    with pytest.raises(EvaluationFailed, match=r"only rounded to nearest.*rtn") as refused:
        registry.apply(model, parse("gptq-int4-g32"), calibration=texts())
    assert refused.value.code == "precision_unavailable"


def test_awq_that_skipped_layers_is_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.input_layernorm.weight")[0] = float("nan")
    with pytest.raises(EvaluationFailed, match="rtn") as refused:
        registry.apply(model, parse("awq-int4-g32"), calibration=texts())
    assert refused.value.code == "precision_unavailable"


@pytest.mark.parametrize("name", ["gptq-int4-g32", "awq-int4-g32"])
def test_two_runs_give_the_same_weights_and_other_texts_give_others(name: str) -> None:
    first, _ = applied(name)
    torch.manual_seed(77)
    second, _ = applied(name)
    other = tiny_model()
    registry.apply(other, parse(name), calibration=texts(seed=5))
    weights = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@pytest.mark.parametrize("name", ALL)
def test_tied_embeddings_stay_as_they_are(name: str) -> None:
    model, proof = applied(name, "llama-tied")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_output_embeddings().weight, tiny_model("llama-tied").get_output_embeddings().weight)
    assert set(proof.left_out) == {"model.embed_tokens", "norms and biases"}


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "gptq-int4-g32", *GGUF, *TORCHAO])
def test_rows_of_zeros_are_safe(name: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.self_attn.q_proj.weight")[:3] = 0
    assert registry.apply(model, parse(name), calibration=texts()) is not None
    assert loss(model) == loss(model) != float("nan")


@pytest.mark.parametrize("name", ["gptq-int4-g32", "awq-int4-g32"])
def test_progress_is_reported_while_the_library_works_and_may_stop_it(name: str) -> None:
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.apply(tiny_model(), parse(name), stop, calibration=texts())
    assert seen == [0, 0, 0]
    assert applied(name)[1] is not None


def test_the_library_prints_nothing_where_the_report_is_printed() -> None:
    program = "from tests.support.engine.quantized import applied; applied('gptq-int4-g32'); applied('mxfp4')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ""
    assert "Applying" not in done.stderr  # progress bars


def test_the_grid_check_is_the_formula() -> None:
    scale, points = torch.tensor([[0.5, 2.0]]), grids.integers(4)
    weight = torch.tensor([[-4.0, 3.5, 0.0, 0.5, -16.0, 14.0, 2.0, 0.0]])
    assert grids.distinct(weight, grids.Grid(scale, None, points)) == 4
    assert grids.distinct(weight + 0.01, grids.Grid(scale, None, points)) is None
    assert grids.distinct(weight * 2, grids.Grid(scale, None, points)) is None
    zero = torch.tensor([[3.0, 0.0]])
    assert grids.distinct(torch.tensor([[-5.5, 2.0, -2.0, 0.0]]), grids.Grid(scale, zero, points)) == 2
    assert not isinstance(nn.Linear(2, 2), grids.OnGrid)
