"""The diagnosis of what stays unquantized: embeddings, the output layer, norms and biases."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.evidence.diagnosis import Diagnosis, OtherPart
from app.reports.rendering import diagnosis as explain
from app.reports.rendering.markdown import table
from tests.support.engine.pairs import compare
from tests.support.factories import tiny_checkpoint, tiny_model
from worker.engine.diagnosis import overlap


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
        found = edited(tmp_path / str(number), lambda model, name=name: nudge(model.get_parameter(name)))  # type: ignore[misc]  # mypy infers no lambda that has a default
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
    assert "lm_head is tied to the embedding and only one model saved it" in explain.below(found)


def test_what_earlier_versions_found_can_still_be_read_and_says_what_it_did_not_compare(tmp_path: Path) -> None:
    stored = compare(tmp_path, {"a": torch.ones(4, 64)}, {"a": torch.zeros(4, 64)}).model_dump(by_alias=True)
    del stored["others"], stored["identical"]
    found = Diagnosis.model_validate(stored | {"left_out": {"lm_head": 8}})
    assert (found.identical, found.others) == (None, [])
    assert "Not quantized, not compared: lm_head." in explain.below(found)
