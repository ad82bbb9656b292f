"""Quantizers against their formula, their proof, and the traps of worker/engine/README.md."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog.precisions import PRECISIONS, parse
from app.errors import EvaluationFailed, InvalidRequest
from tests.support.engine.agreement import agree
from tests.support.engine.quantized import ARCHITECTURES, IDS, loss
from tests.support.factories import tiny_model
from tests.support.judgement.evaluations import known
from worker.engine import precisions as registry
from worker.engine.layers.linear import Survey, matrix, survey, targets
from worker.engine.proof.snapshot import Snapshot, take_snapshot
from worker.engine.quantizers import bnb, rtn

QUANTIZED = [name for name, found in PRECISIONS.items() if found.method in ("rtn", "bnb") and found.group_size != 128]


def quant_state(layer: Any) -> Any:
    """What bitsandbytes keeps beside the packed weights."""
    return layer.weight.quant_state


def by_hand(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The papers' formula, one group at a time."""
    out = weight.clone()
    for row in out:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            delta = float(part.abs().max()) / 2 ** (bits - 1)
            if delta > 0:
                codes = torch.round(part / delta).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
                part.copy_(delta * codes)
    return out


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_rtn_is_the_papers_formula(bits: int) -> None:
    torch.manual_seed(bits)
    w = torch.randn(6, 64)
    w[2] = 0
    w[3, 5] = 40.0
    assert torch.allclose(rtn.quantize(w, parse(f"rtn-int{bits}")), by_hand(w, bits, 64), atol=1e-6)
    assert torch.allclose(rtn.quantize(w, parse(f"rtn-int{bits}-g32")), by_hand(w, bits, 32), atol=1e-6)
    whole = by_hand(w.reshape(1, -1), bits, w.numel()).reshape(w.shape)
    assert torch.allclose(rtn.quantize(w, parse(f"rtn-int{bits}-tensor")), whole, atol=1e-6)


def test_the_largest_positive_weight_is_clamped_and_the_largest_negative_one_is_kept() -> None:
    q = rtn.quantize(torch.tensor([[8.0, -3.2, 0.4, 0.6], [-8.0, 8.0, 0.0, 1.0]]), parse("rtn-int4"))
    assert q.tolist() == [[7.0, -3.0, 0.0, 1.0], [-8.0, 7.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "bnb-int8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_live_model_computes_what_the_dequantized_weights_give(architecture: str, name: str) -> None:
    """For every method but LLM.int8(), whose own test follows: it quantizes activations as well."""
    live = tiny_model(architecture)
    fake = copy.deepcopy(live)
    proof = registry.apply(live, parse(name))
    assert proof is not None
    modules = targets(live)
    with torch.no_grad():
        for module_name, module in targets(fake).items():
            weight = matrix(module)
            if name.startswith("rtn"):
                weight.copy_(rtn.quantize(weight, parse(name)))
            else:
                weight.copy_(bnb.dequantized(modules[module_name]))
    assert agree(live, fake, IDS)
    assert not agree(live, tiny_model(architecture), IDS)
    assert loss(live) == loss(live)


class Int8ByHand(nn.Module):
    """LLM.int8() in plain torch: rows of inputs and weights to int8, columns with outliers left in float."""

    def __init__(self, live: Any) -> None:
        super().__init__()
        self.codes, self.largest = bnb.int8_state(live)
        self.bias = live.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).half().float()
        large = flat.abs() >= bnb.OUTLIER_THRESHOLD
        outlier = large.any(dim=0)
        scale = flat.masked_fill(large, 0).abs().amax(dim=1, keepdim=True)
        codes = torch.where(scale > 0, flat * (127 / scale), 0).round().masked_fill(outlier, 0)
        out = (codes @ self.codes.float().T) * (scale / 127) * (self.largest.float() / 127)
        dequantized = self.codes.float() * (self.largest.float()[:, None] / 127)
        out = out + x.reshape(flat.shape)[:, outlier] @ dequantized[:, outlier].T
        return (out + (0 if self.bias is None else self.bias)).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llm_int8_is_its_definition_and_not_its_dequantized_weights(architecture: str) -> None:
    """Layer by layer on the live model's own inputs (a float's last bit can flip a code, and layers after it differ).

    Within 1e-4 and not less: bitsandbytes' 1/127^2 on the CPU is 6.200124e-05 where 6.20001e-05 is right.
    """
    live = tiny_model(architecture)
    registry.apply(live, parse("bnb-int8"))
    checked = 0

    def compare(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal checked
        checked += 1
        expected = Int8ByHand(module)(inputs[0])
        assert torch.allclose(output, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    for module in targets(live).values():
        module.register_forward_hook(compare)
    found = loss(live)
    assert checked == len(targets(live))
    weights_only = tiny_model(architecture)
    with torch.no_grad():
        for name, module in targets(weights_only).items():
            matrix(module).copy_(bnb.dequantized(targets(live)[name]))
    assert abs(found - loss(weights_only)) > 5e-5


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-fp4"])
def test_double_quantization_holds_the_scales_in_eight_bits_and_changes_nothing_else(name: str) -> None:
    plain, double = tiny_model(), tiny_model()
    before = survey(plain)
    for model, precision in ((plain, parse(name)), (double, parse(f"{name}-dq"))):
        registry.apply(model, precision)
    for key, layer in targets(double).items():
        exact, state = quant_state(targets(plain)[key]), quant_state(layer)
        assert torch.equal(layer.weight.data, targets(plain)[key].weight.data)
        assert (state.nested, state.absmax.dtype, state.state2.blocksize) == (True, torch.uint8, 256)
        assert (exact.nested, exact.absmax.dtype) == (False, torch.float32)
        # Half a step of 8 bits, in bitsandbytes' dynamic type at most 1/64 of the block's largest deviation.
        off = (bnb.scales(state) - exact.absmax).abs().max()
        assert 0 < off <= (exact.absmax - exact.absmax.mean()).abs().max() / 64
    assert loss(double) != loss(plain)
    assert registry.describe(parse(f"{name}-dq")).parameters["double_quantization"] is True
    assert registry.describe(parse(name)).parameters["double_quantization"] is False
    for model, precision in ((plain, parse(f"{name}-dq")), (double, parse(name))):
        with pytest.raises(EvaluationFailed, match=r"14 of 14 modules.*holds (float32|uint8) scales"):
            registry.prove(model, precision, before, take_snapshot(tiny_model()))


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-fp4", "bnb-nf4-dq"])
def test_four_bit_weights_stay_as_packed_when_the_model_runs(name: str) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks them in place at the first forward ("Repacked weights")."""
    live = tiny_model()
    proof = registry.apply(live, parse(name))
    modules = targets(live)
    before = {key: bnb.dequantized(module).clone() for key, module in modules.items()}
    loss(live)
    assert all(not module.support_avx512bf16_for_cpu for module in modules.values())
    assert all(torch.equal(bnb.dequantized(module), before[key]) for key, module in modules.items())
    assert proof is not None
    assert (
        registry.prove(live, parse(name), survey(tiny_model()), take_snapshot(tiny_model())).coverage == proof.coverage
    )


def test_weights_that_were_repacked_for_the_cpu_have_no_proof() -> None:
    """The second guard against "Repacked weights": bitsandbytes says in the state that it repacked."""
    model = tiny_model()
    before = survey(model)
    registry.apply(model, parse("bnb-nf4"))
    quant_state(targets(model)["model.layers.0.mlp.up_proj"]).packing_format_for_cpu = True
    with pytest.raises(EvaluationFailed, match=r"1 of 14 modules.*up_proj was repacked"):
        registry.prove(model, parse("bnb-nf4"), before, take_snapshot(tiny_model()))


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-fp4"])
def test_layers_that_bitsandbytes_misreads_are_refused(name: str) -> None:
    """bitsandbytes 0.50.2 on the CPU: 96 columns are read back wrong, without an error."""
    with pytest.raises(EvaluationFailed, match="misreads") as refused:
        registry.apply(tiny_model(hidden_size=48, intermediate_size=96), parse(name))
    assert refused.value.code == "precision_unavailable"


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_census_proves_every_linear_layer(name: str) -> None:
    model = tiny_model()
    total = sum(parameter.numel() for parameter in model.parameters())
    proof = registry.apply(model, parse(name))
    assert proof is not None
    assert len(proof.modules) == 2 * 7
    assert proof.parameters_total == total
    assert proof.parameters_quantized + sum(proof.left_out.values()) == total
    assert {"model.embed_tokens", "lm_head", "norms and biases"} == set(proof.left_out)
    assert 0.5 < proof.coverage < 0.7
    bits = parse(name).bits or 0
    for module in proof.modules:
        assert module.bits == bits
        assert 0 < known(module.relative_error) < {8: 0.05, 4: 0.35, 3: 0.6, 2: 0.9}[bits]
        if name.startswith("rtn"):
            assert module.max_distinct is not None
            assert module.max_distinct <= 2**bits
        else:
            assert module.packed_dtype == ("int8" if bits == 8 else "uint8")


def test_tied_embeddings_are_counted_once_and_stay() -> None:
    model = tiny_model("llama-tied")
    before = model.get_input_embeddings().weight.clone()
    proof = registry.apply(model, parse("rtn-int4"))
    assert proof is not None
    assert proof.parameters_total == sum(parameter.numel() for parameter in model.parameters())
    assert set(proof.left_out) == {"model.embed_tokens", "norms and biases"}
    assert torch.equal(model.get_output_embeddings().weight, before)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unquantized_model_has_no_proof(name: str, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    before = survey(model)
    with pytest.raises(EvaluationFailed, match="14 of 14 modules") as failed:
        registry.prove(model, parse(name), before, take_snapshot(model))
    assert failed.value.code == "not_quantized"


@pytest.mark.parametrize("name", ["rtn-int8", "rtn-int8-g32", "rtn-int4", "bnb-nf4", "bnb-int8"])
def test_a_half_quantized_model_has_no_proof(name: str) -> None:
    model, original = tiny_model(), tiny_model()
    before = survey(original)
    registry.apply(model, parse(name))
    for key in itertools.islice(before.shapes, 0, None, 2):
        model.set_submodule(key, original.get_submodule(key))
    with pytest.raises(EvaluationFailed, match="7 of 14 modules"):
        registry.prove(model, parse(name), before, take_snapshot(original))


def test_one_weight_off_the_grid_is_noticed() -> None:
    model = tiny_model()
    before = survey(model)
    kept = take_snapshot(model)
    rtn.apply(model, parse("rtn-int8"), lambda: None)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 5] += 1e-2
    with pytest.raises(EvaluationFailed, match=r"1 of 14 modules.*layers\.1\.mlp\.down_proj"):
        registry.prove(model, parse("rtn-int8"), before, kept)


def test_another_precision_than_the_named_one_is_no_proof() -> None:
    for applied, named in (("bnb-fp4", "bnb-nf4"), ("rtn-int8", "rtn-int4"), ("bnb-int8", "bnb-nf4")):
        model = tiny_model()
        before = survey(model)
        registry.apply(model, parse(applied))
        with pytest.raises(EvaluationFailed, match="14 of 14"):
            registry.prove(model, parse(named), before, take_snapshot(tiny_model()))


def test_a_model_with_nothing_to_quantize_has_no_proof() -> None:
    with pytest.raises(EvaluationFailed, match="no linear layer"):
        registry.prove(tiny_model(), parse("rtn-int4"), Survey({}, {"everything": 1}), Snapshot({}, {}))


@pytest.mark.parametrize("name", ["rtn-int8", "rtn-int4", "rtn-int2-g32", "rtn-int8-tensor"])
def test_weights_held_in_16_bits_are_proven_too(name: str) -> None:
    proof = registry.apply(tiny_model().to(torch.bfloat16), parse(name))
    assert proof is not None
    assert all((module.max_distinct or 999) <= 2**module.bits for module in proof.modules)


def test_groups_that_do_not_divide_the_columns_are_refused_before_anything_changes() -> None:
    model = tiny_model(intermediate_size=100)
    before = loss(model)
    with pytest.raises(EvaluationFailed, match="groups of 32 do not divide the 100 columns") as refused:
        registry.apply(model, parse("rtn-int4-g32"))
    assert refused.value.code == "precision_unavailable"
    assert loss(model) == before
    assert registry.apply(tiny_model(hidden_size=128), parse("rtn-int4-g128")) is not None


@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_of_zeros_are_safe(name: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.self_attn.q_proj.weight")[:3] = 0
        model.get_parameter("model.layers.0.self_attn.k_proj.weight")[:] = 0
    assert registry.apply(model, parse(name)) is not None
    assert loss(model) == loss(model) != float("nan")


def test_experts_that_are_no_linear_layers_are_refused_rather_than_left_unquantized() -> None:
    with pytest.raises(EvaluationFailed, match="experts") as refused:
        registry.apply(tiny_model("mixtral"), parse("rtn-int4"))
    assert refused.value.code == "precision_unavailable"
    assert registry.apply(tiny_model("mixtral"), parse("full")) is None


def test_progress_counts_modules_and_may_stop() -> None:
    seen: list[tuple[int, int]] = []
    registry.apply(tiny_model(), parse("rtn-int4"), lambda done, total: seen.append((done, total)))
    assert seen == [(i, 14) for i in range(1, 15)]


def test_unknown_precisions_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"'rtn-4bit'.*full, rtn-int8") as refused:
        parse("rtn-4bit")
    assert refused.value.code == "unknown_precision"
    with pytest.raises(InvalidRequest, match="Did you mean bnb-nf4"):
        parse("bnb_nf4")


def test_every_precision_describes_itself() -> None:
    for name, precision in PRECISIONS.items():
        info = registry.describe(precision)
        assert info.name == name
        assert info.bits == precision.bits
        assert info.version
    assert registry.describe(parse("rtn-int4")).parameters == {
        "step": "max|w| / 8",
        "lowest_code": -8,
        "highest_code": 7,
    }
