"""Whether an artifact was made from the checkpoint that it is said to be of."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import EvaluationFailed
from app.forget_sets.bundle import Bundle
from tests.support.engine import artifacts
from tests.support.engine.shipped import WEIGHTS_ONLY, WITH_ACTIVATIONS, open_artifact
from tests.support.factories import tiny_checkpoint
from worker.engine.artifacts import packed
from worker.engine.audit import Artifact, audit

Tensors = dict[str, torch.Tensor]
ERRORS = {"int8": (0.004, 0.01), "W8A8": (0.004, 0.01), "FP8_DYNAMIC": (0.02, 0.03), "gptq": (0.09, 0.16)}
FOUR_BITS = (0.08, 0.12)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("other"), seed=1, num_key_value_heads=4)


def changed(path: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(path, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def refusal(path: Path, base: Path) -> str:
    with pytest.raises(EvaluationFailed) as failed:
        open_artifact(path, base)
    assert failed.value.code == "artifact_not_of_pair"
    assert f"was not made from {base}: " in failed.value.detail
    return failed.value.detail


@pytest.mark.parametrize("kind", WEIGHTS_ONLY + WITH_ACTIVATIONS)
def test_each_module_has_the_error_that_its_format_explains(kind: str, made: dict[str, Path], model: Path) -> None:
    _, _, census = open_artifact(made[kind], model)
    least, most = ERRORS.get(kind, FOUR_BITS)
    assert all(least < module.relative_error < most for module in census.modules)
    assert least < census.provenance.median_error < most
    assert census.provenance.rescaled == (kind == "awq")
    assert census.provenance.identical == {"awq": 3, "half": 14}.get(kind, 7)
    assert census.provenance.not_compared == {}


@pytest.mark.parametrize("kind", WEIGHTS_ONLY + WITH_ACTIVATIONS)
def test_an_artifact_of_another_model_is_noticed_by_what_is_not_quantized(
    kind: str, made: dict[str, Path], other: Path
) -> None:
    assert "which is not quantized, does not equal" in refusal(made[kind], other)


@pytest.mark.parametrize("kind", WEIGHTS_ONLY + WITH_ACTIVATIONS)
def test_an_artifact_whose_layers_alone_are_anothers_is_noticed_by_their_errors(
    kind: str, made: dict[str, Path], model: Path, other: Path, tmp_path: Path
) -> None:
    theirs = load_file(other / "model.safetensors")
    quantized = [name for name in theirs if "_proj" in name and not (kind == "half" and "layers.1" in name)]
    base = changed(model, tmp_path / "base", lambda own: own.update({name: theirs[name] for name in quantized}))
    assert "_proj" in (why := refusal(made[kind], base))
    assert "explained" in why


def test_one_norm_that_moved_a_little_is_another_checkpoints(
    made: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    """So an artifact of the original, in place of one of an unlearned model whose norms moved."""
    norm = "model.layers.1.input_layernorm.weight"
    base = changed(model, tmp_path / "base", lambda own: own[norm].mul_(1.02))
    for kind in ("nf4", "gptq"):  # in float32, and rounded to bfloat16
        assert norm in refusal(made[kind], base)
    last = changed(model, tmp_path / "last", lambda own: own["model.norm.weight"].mul_(1.02))
    assert "model.norm.weight" in refusal(made["awq"], last)


def test_what_was_stored_in_another_dtype_is_still_its_own(made: dict[str, Path], model: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def noisy(own: Tensors) -> None:
        for name in own:
            if "_proj" not in name:
                own[name] = torch.randn(own[name].shape, generator=generator)

    base = changed(model, tmp_path / "base", noisy)
    full = load_file(base / "model.safetensors")
    for number, dtype in enumerate((torch.bfloat16, torch.float16)):
        rounded = {name: full[name].to(dtype) for name in full if "_proj" not in name}
        copy = changed(made["gptq"], tmp_path / str(number), lambda own, rounded=rounded: own.update(rounded))  # type: ignore[misc]  # mypy infers no lambda that has a default
        assert open_artifact(copy, base)[2].provenance.identical == 7
    by_way = {name: full[name].bfloat16().half() for name in full if "_proj" not in name}
    assert open_artifact(changed(made["gptq"], tmp_path / "way", lambda own: own.update(by_way)), base)[2].provenance


def test_the_rescaling_that_is_fitted_is_that_of_the_norms(made: dict[str, Path], model: Path) -> None:
    """AWQ divides a norm by what it multiplies the columns after it with; these two have no other factors."""
    live, _, census = open_artifact(made["awq"], model)
    own, theirs = load_file(model / "model.safetensors"), load_file(made["awq"] / "model.safetensors")
    by_name = {module.module: module.relative_error for module in census.modules}
    for layer in (0, 1):
        for norm, name in (("input_layernorm", "self_attn.q_proj"), ("post_attention_layernorm", "mlp.gate_proj")):
            factors = own[f"model.layers.{layer}.{norm}.weight"] / theirs[f"model.layers.{layer}.{norm}.weight"].float()
            module, weight = f"model.layers.{layer}.{name}", own[f"model.layers.{layer}.{name}.weight"]
            holds = packed.weight(live.get_submodule(module), torch.float16).float()
            undone = (holds / factors - weight).norm() / weight.norm()
            assert by_name[module] == pytest.approx(float(undone), rel=0.05)


def test_layers_that_stay_unquantized_may_be_rescaled_but_not_anothers(
    made: dict[str, Path], model: Path, other: Path, tmp_path: Path
) -> None:
    """As by AWQ through llm-compressor, which also rescales what it is told not to quantize."""
    factors = torch.linspace(0.5, 2, 64)
    after = [f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"]

    def rescale(own: Tensors) -> None:
        own["model.layers.1.input_layernorm.weight"] /= factors
        for name in after:
            own[name] *= factors

    path = changed(made["half"], tmp_path / "rescaled", rescale)
    provenance = open_artifact(path, model)[2].provenance
    assert provenance.rescaled
    assert provenance.identical == 14 - 4
    theirs = load_file(other / "model.safetensors")[after[0]]
    assert after[0] in refusal(changed(path, tmp_path / "odd", lambda own: own.update({after[0]: theirs})), model)


def test_a_module_that_the_base_has_only_zeros_for_is_anothers(
    made: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj"
    zeros = changed(model, tmp_path / "zeros", lambda own: own[f"{name}.weight"].zero_())
    for kind in ("nf4", "w4a16", "gptq", "awq"):
        assert name in refusal(made[kind], zeros)
    assert open_artifact(artifacts.bitsandbytes(zeros, tmp_path / "nf4"), zeros)[2].provenance.not_compared == {}


PACKED = {
    "nf4": "weight", "nf4-dq": "weight", "int8": "weight", "w4a16": "weight_packed", "MXFP4A16": "weight_packed",
    "NVFP4A16": "weight_packed", "W8A8": "weight", "FP8_DYNAMIC": "weight", "gptq": "qweight", "awq": "qweight",
}  # fmt: skip
ROWS_LAST = ("gptq", "awq")
SCALES = {"gptq": "scales", "awq": "scales", "w4a16": "weight_scale", "W8A8": "weight_scale", "int8": "SCB"}
LAYER = "model.layers.1.mlp"


def by_rows(kind: str, codes: torch.Tensor) -> torch.Tensor:
    """A view of packed codes whose first axis is the 128 rows of a projection; AWQ's words hold eight of them."""
    if kind.startswith("nf4"):
        return codes.view(128, -1)
    return codes.T if kind in ROWS_LAST else codes


@pytest.mark.parametrize("kind", PACKED)
def test_codes_that_were_changed_after_packing_are_noticed(
    kind: str, made: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    def zero(own: Tensors) -> None:
        middle = {"nf4": 0x77, "nf4-dq": 0x77, "w4a16": -2004318072, "gptq": -2004318072, "awq": -2004318072}
        own[f"{LAYER}.up_proj.{PACKED[kind]}"].fill_(middle.get(kind, 0))

    def permute(own: Tensors) -> None:
        rows = by_rows(kind, own[f"{LAYER}.up_proj.{PACKED[kind]}"])
        rows.copy_(rows.view(torch.uint8 if kind == "FP8_DYNAMIC" else rows.dtype).flip(0).view(rows.dtype))

    def swap(own: Tensors) -> None:
        one, other = (own[f"{LAYER}.{name}_proj.{PACKED[kind]}"] for name in ("gate", "up"))
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)

    def tenth(own: Tensors) -> None:
        one, other = (by_rows(kind, own[f"{LAYER}.{name}_proj.{PACKED[kind]}"]) for name in ("gate", "up"))
        one[::10] = other[::10]

    for change in (zero, permute, swap, tenth):
        why = refusal(changed(made[kind], tmp_path / change.__name__, change), model)
        assert f"its {LAYER}." in why
        assert "explain" in why


@pytest.mark.parametrize("kind", SCALES)
def test_scales_that_were_changed_after_packing_are_noticed(
    kind: str, made: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    def double(own: Tensors) -> None:
        own[f"{LAYER}.up_proj.{SCALES[kind]}"].mul_(2)

    def one_row_less(own: Tensors) -> None:
        scales = own[f"{LAYER}.down_proj.{SCALES[kind]}"]
        (scales[:, 3] if kind in ROWS_LAST else scales[3]).mul_(0.01)

    for change in (double, one_row_less):
        assert "explain" in refusal(changed(made[kind], tmp_path / change.__name__, change), model)


def test_another_training_of_the_same_model_is_told_by_its_median(
    made: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    """Each layer alone could have been compensated for that much; not the half of them."""

    def train(own: Tensors) -> None:
        for name in (name for name in own if "_proj" in name):
            own[name] = torch.where(own[name].abs() < 0.6 * own[name].std(), -own[name], own[name])

    base = changed(model, tmp_path / "base", train)
    for kind in ("w4a16", "gptq"):
        assert "the median over its 14 modules" in refusal(made[kind], base)


def test_factors_that_nothing_undoes_are_noticed(made: dict[str, Path], model: Path, tmp_path: Path) -> None:
    """AWQ's rows and columns may be multiplied only by what the norm or layer in front of them was divided by."""

    def norm(own: Tensors) -> None:
        own["model.layers.1.post_attention_layernorm.weight"][7] *= 0.4

    def whole_norm(own: Tensors) -> None:
        own["model.layers.1.input_layernorm.weight"] *= 0.5

    def columns(own: Tensors) -> None:
        own["model.layers.0.self_attn.q_proj.scales"][0] *= 2

    def rows(own: Tensors) -> None:
        own["model.layers.0.self_attn.v_proj.scales"][:, 5] *= 0.1

    def silent(own: Tensors) -> None:
        own["model.layers.0.input_layernorm.weight"].zero_()

    for change in (norm, whole_norm, columns, rows, silent):
        why = refusal(changed(made["awq"], tmp_path / change.__name__, change), model)
        assert "explain" in why


def test_outliers_that_trained_weights_hardly_have_are_explained(tmp_path: Path) -> None:
    """Weights of Student's t with 3 degrees of freedom, in every format."""
    draw = torch.distributions.StudentT(3.0)

    def heavy(own: Tensors) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            own.update({name: draw.sample(own[name].shape) * 0.1 for name in own if "_proj" in name})

    plain = tiny_checkpoint(tmp_path / "plain", num_key_value_heads=4)
    base = changed(plain, tmp_path / "base", heavy)
    found = {kind: artifacts.bitsandbytes(base, tmp_path / kind, kind) for kind in artifacts.BNB}
    for scheme in ("W8A8", "FP8_DYNAMIC", "MXFP4A16", "NVFP4A16"):
        found[scheme] = artifacts.compressed(base, tmp_path / scheme, scheme)
    found["w4a16"] = artifacts.compressed(base, tmp_path / "w4a16")
    found |= artifacts.by_gptqmodel(base, tmp_path, "gptq", "awq")
    for path in found.values():
        assert open_artifact(path, base)[2].provenance.median_error < 0.3


def test_an_output_layer_that_is_tied_in_the_base_must_be_its_embeddings(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "llama-tied")
    path = artifacts.bitsandbytes(base, tmp_path / "nf4")

    def untie(own: Tensors, factor: float) -> None:
        own["lm_head.weight"] = own["model.embed_tokens.weight"] * factor

    assert open_artifact(changed(path, tmp_path / "same", lambda own: untie(own, 1.0)), base)[2].provenance
    assert "lm_head.weight" in refusal(changed(path, tmp_path / "other", lambda own: untie(own, 0.5)), base)


def test_an_audit_refuses_a_swapped_artifact_and_says_whose_the_others_are(
    made: dict[str, Path], model: Path, other: Path, bundle: Bundle
) -> None:
    shown = [Artifact(made["nf4"], name="swapped"), Artifact(made["int8"], name="swapped-8")]
    report = audit(model, other, bundle, precisions=["full"], metrics=["knowmem_forget"], device="cpu", artifacts=shown)
    assert [e.failure.code for e in report.evidence if e.failure] == ["artifact_not_of_pair"] * 2
    assert {reason.code for reason in report.reasons} >= {"artifact_not_of_pair"}
    assert report.verdict == "inconclusive"
    right = audit(other, model, bundle, precisions=["full"], metrics=["knowmem_forget"], device="cpu", artifacts=shown)
    assert [e.failure for e in right.evidence] == [None] * 4
    assert "nearer to the unlearned than to the original" in right.notes[2]


def test_the_base_is_read_as_it_is_stored(tmp_path: Path) -> None:
    """A base that was saved in bfloat16, and GPT-2's transposed layers."""
    for architecture in ("llama", "gpt2"):
        half = tiny_checkpoint(tmp_path / f"{architecture}-16", architecture, dtype=torch.bfloat16)
        census = open_artifact(artifacts.bitsandbytes(half, tmp_path / architecture), half)[2]
        assert all(FOUR_BITS[0] < module.relative_error < FOUR_BITS[1] for module in census.modules)


def test_names_without_the_part_that_a_head_was_put_on_are_found(
    made: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    def strip(own: Tensors) -> None:
        for name in list(own):
            own[name.removeprefix("model.")] = own.pop(name)

    stripped = changed(model, tmp_path / "base", strip)
    provenance = open_artifact(changed(made["w4a16"], tmp_path / "artifact", strip), stripped)[2].provenance
    assert (provenance.identical, provenance.not_compared) == (7, {})
