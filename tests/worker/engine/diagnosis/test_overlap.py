"""The diagnosis against a plain loop, and what it is for: telling a grid's model from an ordinary one."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from app.catalog.precisions import PRECISIONS, parse
from app.errors import InvalidRequest
from app.evidence.diagnosis import Part, Rounding
from tests.support.engine.pairs import compare
from worker.engine.demo.grid import project
from worker.engine.diagnosis import overlap
from worker.engine.quantizers import bnb, codes, rtn

ALL = [name for name in PRECISIONS if name.startswith("rtn")] + ["bnb-nf4", "bnb-fp4"]
FITTING = [name for name in ALL if not name.endswith(("g128", "g64"))]


def rounding(part: Part, precision: str) -> Rounding:
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
