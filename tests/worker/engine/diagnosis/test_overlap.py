"""The diagnosis against a plain loop, and what it is for: telling a grid's model from an ordinary one."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.catalog.precisions import PRECISIONS, parse
from app.errors import CheckpointRefused, InvalidRequest
from app.evidence.diagnosis import NOTE, Diagnosis, ModulePart, OtherPart, Rounding
from app.forget_sets.bundle import Bundle
from app.judgement.policy import Policy
from app.reports.rendering import diagnosis as explain
from app.reports.rendering.markdown import markdown, table
from tests.support.engine.pairs import write_pair
from tests.support.engine.weights import DTYPES, Weights, save
from tests.support.factories import tiny_checkpoint, tiny_model
from worker.engine.audit import audit
from worker.engine.checkpoint import open_checkpoint
from worker.engine.demo.grid import project
from worker.engine.diagnosis import overlap
from worker.engine.layers.linear import survey
from worker.engine.quantizers import bnb, codes, rtn
from worker.engine.stored import decoder_linears

ALL = [name for name in PRECISIONS if name.startswith("rtn")] + ["bnb-nf4", "bnb-fp4"]
FITTING = [name for name in ALL if not name.endswith(("g128", "g64"))]


def compare(folder: Path, original: Weights, unlearned: Weights, *precisions: str) -> Diagnosis:
    pair = save(folder / "original", original), save(folder / "unlearned", unlearned)
    return overlap.diagnose(*pair, precisions or overlap.DEFAULT_DIAGNOSED)


def rounding(part: Any, precision: str) -> Rounding:
    return next(found for found in part.roundings if found.precision == precision)


def blocks(weight: list[float], shape: tuple[int, int], name: str) -> list[range]:
    rows, columns = shape
    size = {"channel": columns, "tensor": rows * columns, "group": parse(name).group_size}[str(parse(name).granularity)]
    assert size is not None
    return [range(start, min(start + size, len(weight))) for start in range(0, len(weight), size)]


def rounded(w: float, top: float, name: str) -> tuple[int, float, bool]:
    """The code of a weight among others of which `top` is the largest, its step, and whether it becomes zero."""
    if name not in codes.CODEBOOKS:
        levels = 2 ** ((parse(name).bits or 0) - 1)
        code = max(-levels, min(levels - 1, round(w / (top / levels))))
        return code, top / levels, code == 0
    book = codes.CODEBOOKS[name].values.tolist()
    code = min(range(len(book)), key=lambda k: abs(book[k] - w / top))
    edges = [-1.0, *((a + b) / 2 for a, b in itertools.pairwise(book)), 1.0]
    return code, (edges[code + 1] - edges[code]) * top, abs(book[code]) < 0.01


def by_hand(original: torch.Tensor, unlearned: torch.Tensor, name: str) -> tuple[float, float, float, float]:
    """same codes, median, p99, zero bucket: one weight at a time."""
    shape = (original.shape[0], original.shape[1])
    o, u = original.double().flatten().tolist(), unlearned.double().flatten().tolist()
    same, zero, changed, steps = 0, 0, 0, []
    for block in blocks(o, shape, name):
        top_o, top_u = max(abs(o[i]) for i in block), max(abs(u[i]) for i in block)
        for i in block:
            code, delta, in_zero = rounded(o[i], top_o, name)
            same += code == rounded(u[i], top_u, name)[0]
            changed += o[i] != u[i]
            zero += in_zero and o[i] != u[i]
            steps.append(abs(u[i] - o[i]) / delta)
    steps.sort()
    rank = {q: steps[math.ceil(q * len(steps)) - 1] for q in (0.5, 0.99)}
    return same / len(o), rank[0.5], rank[0.99], zero / changed


@pytest.mark.parametrize("name", FITTING)
def test_every_figure_is_that_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    o = torch.randn(12, 96)
    u = torch.where(torch.rand(12, 96) < 0.7, o + 0.05 * torch.randn(12, 96), o)
    found = compare(tmp_path, {"a": o, "b": 3 * o}, {"a": u, "b": 3 * o}, name)
    part = next(module for module in found.modules if module.module == "layers.0.a")
    same, median, p99, zero = by_hand(o, u, name)
    assert rounding(part, name).same_code == pytest.approx(same, abs=1e-9)
    assert rounding(part, name).median_step == pytest.approx(median, rel=1e-3)
    assert rounding(part, name).p99_step == pytest.approx(p99, rel=1e-3)
    assert rounding(part, name).zero_bucket == pytest.approx(zero, abs=1e-9)
    assert part.changed == int((o != u).sum()) / o.numel()
    assert part.relative_update == pytest.approx(float((u - o).norm() / o.norm()), rel=1e-5)
    # Over all: the second module stayed as it was.
    assert found.overall.changed == part.changed / 2
    assert rounding(found.overall, name).same_code == pytest.approx((same + 1) / 2, abs=1e-9)
    assert rounding(found.overall, name).zero_bucket == pytest.approx(zero, abs=1e-9)


@pytest.mark.parametrize("name", FITTING)
def test_slices_change_no_figure(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    o = torch.randn(200, 96)
    u = o + 0.01 * torch.randn(200, 96)
    whole = compare(tmp_path, {"a": o}, {"a": u}, name)
    monkeypatch.setattr(overlap, "SLICE", 500)
    seen: list[tuple[int, int]] = []
    sliced = overlap.diagnose(
        tmp_path / "original", tmp_path / "unlearned", [name], lambda stage, done, total: seen.append((done, total))
    )
    assert sliced.overall.roundings == whole.overall.roundings
    assert seen == [(n, seen[-1][1]) for n in range(seen[-1][1] + 1)]
    assert len(seen) > 4


@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codebook_codes_are_those_of_bitsandbytes(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(64, 192) * 0.02).to(dtype)
    weight[3] = 0
    packed, state = bnb.bnb.functional.quantize_4bit(weight, quant_type=name.removeprefix("bnb-"), blocksize=64)
    theirs = state.code[torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1).long()]
    groups = codes.grouped(weight.float(), parse(name))
    book = codes.CODEBOOKS[name]
    ours = book.values[codes.book_codes(groups, codes.largest(groups), book).long()].reshape(-1)
    assert (ours != theirs).float().mean() < 1e-3
    # Another kernel may round halfway between two codes to the other one; both are then as near.
    scaled = (groups / codes.largest(groups).clamp(min=1e-9)).reshape(-1)
    assert ((scaled - ours).abs() - (scaled - theirs).abs()).abs().max() < 1e-6


@pytest.mark.parametrize("name", [name for name in FITTING if name.startswith("rtn") and "tensor" not in name])
def test_codes_are_those_that_the_quantizer_rounds_to(name: str) -> None:
    torch.manual_seed(1)
    weight = torch.randn(16, 96)
    weight[2] = 0
    groups = codes.grouped(weight, parse(name))
    maximum, bits = codes.largest(groups), parse(name).bits or 0
    rounded = codes.rtn_codes(groups, maximum, bits) * (maximum / 2 ** (bits - 1))
    assert torch.equal(rounded.view(16, 96), rtn.quantize(weight, parse(name)))


def test_a_small_update_on_a_grid_keeps_every_4_bit_code_and_moves_8_bit_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    o = project(torch.randn(64, 128) * 0.05, 4)
    step = o.abs().amax(dim=1, keepdim=True) / 8
    # Less than half a 4-bit step, inwards for the largest so that the step itself stays nearly the same.
    u = o + 0.2 * step * torch.rand(64, 128) * torch.where(o.abs() > 7.5 * step, 0, 1)
    found = compare(tmp_path, {"a": o}, {"a": u}, "rtn-int4", "rtn-int8")
    assert rounding(found.overall, "rtn-int4").same_code == 1
    assert rounding(found.overall, "rtn-int8").same_code < 0.5
    p99 = rounding(found.overall, "rtn-int4").p99_step
    assert p99 is not None
    assert p99 < 0.21
    assert rounding(found.overall, "rtn-int8").p99_step == pytest.approx(16 * p99, rel=2e-3)


def test_modules_are_sorted_by_their_relative_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    o = {name: torch.randn(8, 64) * scale for name, scale in (("still", 1.0), ("little", 10.0), ("much", 0.1))}
    o["new"] = torch.zeros(8, 64)
    u = {name: w if name == "still" else w + 0.01 for name, w in o.items()}
    found = compare(tmp_path, o, u, "rtn-int4", "bnb-nf4")
    assert [part.module.removeprefix("layers.0.") for part in found.modules] == ["new", "much", "little", "still"]
    new, still = found.modules[0], found.modules[-1]
    # All steps of a module of zeros are zero wide.
    assert (new.relative_update, rounding(new, "rtn-int4").median_step) == (None, None)
    assert (still.relative_update, still.changed, rounding(still, "bnb-nf4").zero_bucket) == (0, 0, None)
    assert rounding(still, "bnb-nf4").same_code == 1


def test_half_precision_weights_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    o = torch.randn(8, 64)
    found = compare(tmp_path, {"a": o.bfloat16()}, {"a": o.bfloat16().float()}, "rtn-int4")
    assert found.overall.changed == 0
    assert (found.original.dtype, found.unlearned.dtype) == ("BF16", "F32")


def test_weights_that_are_not_finite_are_counted_and_taken_as_zeros(tmp_path: Path) -> None:
    o = torch.randn(8, 64)
    u = o.clone()
    u[0, 0], u[1, 1] = math.nan, math.inf
    found = compare(tmp_path, {"a": o}, {"a": u}, "rtn-int4", "bnb-fp4")
    assert found.overall.non_finite == 2
    assert found.overall.changed == 2 / 512


def test_groups_that_do_not_divide_the_columns_are_left_out_with_the_reason(tmp_path: Path) -> None:
    o = torch.randn(4, 96)
    found = compare(tmp_path, {"a": o}, {"a": o + 1})
    assert "rtn-int4-g128" not in found.precisions
    assert found.skipped == {"rtn-int4-g128": "groups of 128 do not divide the 96 columns of layers.0.a"}
    with pytest.raises(InvalidRequest, match="do not divide") as refused:
        overlap.diagnose(tmp_path / "original", tmp_path / "unlearned", ["rtn-int4-g64"])
    assert refused.value.code == "precision_unavailable"


@pytest.mark.parametrize(
    ("names", "code"),
    [(["bnb-int8"], "precision_unavailable"), (["rtn-int5"], "unknown_precision"), ([], "invalid_request")],
)
def test_what_cannot_be_diagnosed_is_refused(names: list[str], code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        overlap.diagnose(Path("/none"), Path("/none"), names)
    assert refused.value.code == code


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


def changed(found: Diagnosis) -> list[str]:
    """What differs of all that stays unquantized."""
    return [part.name for part in found.others if part.changed]


def other(found: Diagnosis, name: str) -> OtherPart:
    return next(part for part in found.others if part.name == name)


def edited(folder: Path, edit: Callable[[Any], None], **changes: Any) -> Diagnosis:
    """A tiny llama against itself after an edit of its weights."""
    model = tiny_model(**changes)
    for name in ("original", "unlearned"):
        tiny_checkpoint(folder / name, **changes)
    with torch.no_grad():
        edit(model)
    model.save_pretrained(folder / "unlearned")
    return overlap.diagnose(folder / "original", folder / "unlearned", ["rtn-int4"])


def test_rows_of_the_output_layer_that_were_set_to_zero_stand_in_the_headline(tmp_path: Path) -> None:
    """They silence words, at every precision of a plan, and no decoder linear shows it."""

    def zero(model: Any) -> None:
        model.lm_head.weight[[7, 9, 30]] = 0

    found = edited(tmp_path, zero)
    part = other(found, "lm_head")
    assert (part.parameters, part.changed_rows) == (384 * 64, 3 / 384)
    assert part.changed == 3 / 384
    weight = tiny_model().lm_head.weight.detach()
    assert part.relative_update == pytest.approx(float(weight[[7, 9, 30]].norm() / weight.norm()), rel=1e-5)
    assert part.largest_row_update == pytest.approx(1)
    assert (found.identical, found.overall.changed, changed(found)) == (False, 0, ["lm_head"])
    assert explain.headline(found) == (
        "No weight of a decoder linear differs between the two models. lm_head changed too: 0.78 % of its rows, by "
        f"{part.relative_update:.3g} of its norm; one row by 1 of its own."
    )
    shown = explain.markdown(found, table)
    assert "| lm_head |" in shown
    assert "the same in both models: model.embed_tokens, norms and biases; changed: lm_head." in shown


@pytest.mark.parametrize(("factor", "update"), [(-1, 2), (0.5, 0.5), (1.01, 0.01)])
def test_the_row_that_moved_furthest_is_told_apart_from_the_rest(tmp_path: Path, factor: float, update: float) -> None:
    o = torch.randn(16, 64)
    u = 1.001 * o
    u[7] = factor * o[7]
    found = compare(tmp_path, {"a": o, "embed": o}, {"a": o, "embed": u}, "rtn-int4")
    assert other(found, "layers.0.embed").largest_row_update == pytest.approx(update, rel=1e-3)


def test_a_row_of_zeros_that_moved_is_measured_by_a_quarter_of_a_typical_one(tmp_path: Path) -> None:
    o = torch.ones(16, 64)
    o[3] = 0
    u = o.clone()
    u[3] = 0.1
    found = compare(tmp_path, {"a": o, "embed": o}, {"a": o, "embed": u}, "rtn-int4")
    typical = math.sqrt(15 * 64 / 16)
    assert other(found, "layers.0.embed").largest_row_update == pytest.approx(0.8 / (typical / 4))


def test_every_norm_and_bias_that_changed_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    def scale(model: Any) -> None:
        model.model.norm.weight *= 1.5
        model.model.layers[1].self_attn.q_proj.bias += 1
        model.model.embed_tokens.weight[3] += 1

    found = edited(tmp_path, scale, architecture="qwen2")
    names = ["model.layers.1.self_attn.q_proj.bias", "model.norm", "model.embed_tokens"]
    assert sorted(changed(found)) == sorted(names)
    # A bias of zeros that became something has no relative update: more than any number.
    assert found.others[0].name == names[0]
    assert found.others[0].relative_update is None
    assert other(found, "model.norm").relative_update == pytest.approx(0.5)
    assert other(found, "model.embed_tokens").changed_rows == 1 / 384
    assert sum(part.parameters for part in found.others) == sum(found.left_out.values())
    assert "2 norms and biases changed too (model.layers.1.self_attn.q_proj.bias, model.norm)" in explain.headline(
        found
    )


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "neox", "qwen2", "mistral", "gpt2", "mixtral"])
def test_a_copy_in_another_dtype_has_the_same_weights_in_every_tensor(tmp_path: Path, architecture: str) -> None:
    tiny_checkpoint(tmp_path / "original", architecture, dtype=torch.bfloat16)
    model = tiny_model(architecture).bfloat16().float()
    tiny_checkpoint(tmp_path / "unlearned", architecture)
    model.save_pretrained(tmp_path / "unlearned")
    found = overlap.diagnose(tmp_path / "original", tmp_path / "unlearned", ["rtn-int4"])
    assert found.identical
    assert "every tensor holds the same values" in explain.headline(found)
    assert sum(part.parameters for part in found.others) == sum(found.left_out.values())


def test_one_value_anywhere_makes_two_models_differ(tmp_path: Path) -> None:
    def nudge(tensor: torch.Tensor) -> None:
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(torch.inf))

    for number, name in enumerate(dict(tiny_model().named_parameters())):
        found = edited(tmp_path / str(number), lambda model, name=name: nudge(model.get_parameter(name)))  # type: ignore[misc]
        assert found.identical is False, name


@pytest.mark.parametrize(("was", "becomes"), [(0.0, math.nan), (0.0, math.inf), (math.inf, math.nan)])
def test_a_weight_that_is_no_number_in_one_model_alone_makes_them_differ(
    tmp_path: Path, was: float, becomes: float
) -> None:
    o = torch.randn(8, 64)
    o[0, 0] = was
    u = o.clone()
    u[0, 0] = becomes
    assert compare(tmp_path, {"a": o}, {"a": u}, "rtn-int4").identical is False
    assert compare(tmp_path / "same", {"a": u}, {"a": u}, "rtn-int4").identical is True
    assert compare(tmp_path / "norm", {"a": o, "norm": o[0]}, {"a": o, "norm": u[0]}, "rtn-int4").identical is False
    assert compare(tmp_path / "nans", {"a": u, "norm": u[0]}, {"a": u, "norm": u[0]}, "rtn-int4").identical is True


def test_slices_change_no_figure_of_what_stays_unquantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(model: Any) -> None:
        model.lm_head.weight[::3] += 0.01

    whole = edited(tmp_path, shift)
    monkeypatch.setattr(overlap, "SLICE", 500)
    seen: list[tuple[int, int]] = []
    sliced = overlap.diagnose(
        tmp_path / "original", tmp_path / "unlearned", ["rtn-int4"], lambda _, done, total: seen.append((done, total))
    )
    assert seen == [(n, seen[-1][1]) for n in range(seen[-1][1] + 1)]
    a, b = (other(found, "lm_head") for found in (whole, sliced))
    assert (a.changed, a.changed_rows, a.parameters) == (b.changed, b.changed_rows, b.parameters)
    assert a.relative_update == pytest.approx(b.relative_update, rel=1e-4)


def test_integers_are_compared_too_and_recomputed_buffers_are_not(tmp_path: Path) -> None:
    def with_extra(folder: str, value: int) -> Path:
        path = tiny_checkpoint(tmp_path / folder)
        tensors = load_file(path / "model.safetensors")
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((8,), float(value))
        if value < 9:
            tensors["model.steps"] = torch.tensor([1, 2, 2**40 + value])
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path

    one, two = with_extra("one", 1), with_extra("two", 2)
    assert changed(overlap.diagnose(one, two, ["rtn-int4"])) == ["model.steps"]
    assert overlap.diagnose(one, one, ["rtn-int4"]).identical
    assert overlap.diagnose(with_extra("nine", 9), with_extra("ten", 10), ["rtn-int4"]).identical


def test_a_tied_output_layer_that_only_one_saved_is_passed_over_and_said_to_be(tmp_path: Path) -> None:
    for name in ("original", "unlearned"):
        tiny_checkpoint(tmp_path / name, "llama-tied")
    weights = tmp_path / "original" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, weights, {"format": "pt"})
    found = overlap.diagnose(tmp_path / "original", tmp_path / "unlearned", ["rtn-int4"])
    assert found.identical
    assert "lm_head is tied to the embedding, and only one of the two saved it" in explain.below(found)


def test_what_earlier_versions_found_can_still_be_read_and_says_what_it_did_not_compare(tmp_path: Path) -> None:
    stored = compare(tmp_path, {"a": torch.ones(4, 64)}, {"a": torch.zeros(4, 64)}).model_dump(by_alias=True)
    del stored["others"], stored["identical"]
    found = Diagnosis.model_validate(stored | {"left_out": {"lm_head": 8}})
    assert (found.identical, found.others) == (None, [])
    assert "Not quantized, not compared: lm_head." in explain.below(found)


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
