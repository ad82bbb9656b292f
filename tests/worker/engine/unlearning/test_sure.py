"""SURE: which modules are salient, and that nothing else moves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.errors import UnlearningFailed
from tests.support.engine.unlearning import raw_bundle, small, tensor_digests
from tests.support.factories import tiny_model, tiny_tokenizer
from worker.engine.layers.linear import targets
from worker.engine.unlearning import losses
from worker.engine.unlearning.methods.sure import choose, row_saliency
from worker.engine.unlearning.objective import Objective
from worker.engine.unlearning.texts import Example, pad
from worker.engine.unlearning.trainable import FrozenRows
from worker.engine.unlearning.unlearn import unlearn

TEXTS = [Example(ids, ids) for ids in ([0, *range(20, 29)], [0, *range(60, 64)], [0, *range(90, 97)])]


def measured(model: Any, loss: Any = "ga", *, budget: int = 1 << 30, batch_size: int = 2) -> dict[str, torch.Tensor]:
    candidates = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    objective = Objective(loss, 1.0, 0.1, "sum", TEXTS, [], 1)
    rows, size = row_saliency(
        model, candidates, objective, batch_size=batch_size, budget=budget, progress=lambda *_: None
    )
    largest = max(parameter.numel() for parameter in candidates.values()) * 4
    assert size <= max(budget, largest)
    return rows


def test_it_is_the_norm_of_the_mean_gradient_over_the_whole_forget_set() -> None:
    model = tiny_model()
    batch = pad(TEXTS, 1)
    # All at once: what accumulating over uneven batches must give.
    losses.gradient_ascent(model(input_ids=batch.ids, attention_mask=batch.attention).logits, batch.labels).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    expected = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    found = measured(tiny_model())
    assert found.keys() == expected.keys()
    for name, norm in expected.items():
        torch.testing.assert_close(found[name].norm(), norm, rtol=1e-4, atol=1e-7)


def test_reading_the_forget_set_once_per_group_of_modules_changes_nothing_but_memory() -> None:
    at_once, in_groups = measured(tiny_model()), measured(tiny_model(), budget=40_000)
    for name, rows in at_once.items():
        assert (in_groups[name] - rows).norm() <= 1e-4 * rows.norm()


def test_it_leaves_no_gradient_behind() -> None:
    model = tiny_model()
    measured(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_npos_gradient_at_the_original_is_that_of_the_texts_log_probabilities() -> None:
    model = tiny_model()
    batch = pad(TEXTS, 1)
    logits = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    losses.sequence_log_prob(logits, batch.labels).mean().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    for name, rows in measured(tiny_model(), "npo").items():
        torch.testing.assert_close(rows.norm(), model.get_parameter(name).grad.norm(), rtol=1e-4, atol=1e-6)


def test_a_model_without_gradient_has_nothing_salient() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    with pytest.raises(UnlearningFailed) as failed:
        measured(model)
    assert failed.value.code == "nothing_salient"


@pytest.mark.parametrize("percentile", [0, 50, 75, 90])
def test_modules_at_or_above_the_percentile_are_chosen_whole(percentile: float) -> None:
    rows = {f"m{i}": torch.tensor([float(i), 0.0]) for i in range(9)}
    chosen = choose(rows, percentile)
    gamma = np.percentile(range(9), percentile)
    assert list(chosen) == [f"m{i}" for i in range(9) if i >= gamma]
    assert all(mask.all() for mask in chosen.values())


def test_by_row_single_rows_are_chosen_over_all_modules() -> None:
    rows = {"a": torch.tensor([5.0, 1.0, 0.0]), "b": torch.tensor([0.1, 0.2, 0.3]), "c": torch.tensor([4.0, 3.0, 2.0])}
    chosen = choose(rows, 70, "row")
    assert {name: mask.tolist() for name, mask in chosen.items()} == {
        "a": [True, False, False],
        "c": [True, True, False],
    }


def test_frozen_rows_stay_though_momentum_and_decay_move_what_has_no_gradient() -> None:
    """Masking gradients, as published code did, lets AdamW move masked weights."""
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    weight.sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    optimizer.step()
    before = weight.detach().clone()
    frozen = FrozenRows({"w": weight}, {"w": torch.tensor([True, False, True, False])})
    weight.grad = torch.zeros_like(weight)  # all gradients masked
    optimizer.step()
    assert not torch.equal(weight[1], before[1])
    frozen.restore()
    assert torch.equal(weight[[1, 3]], before[[1, 3]])
    assert not torch.equal(weight[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("loss", ["ga_gdr", "npo_klr"])
def test_modules_below_the_threshold_are_the_originals_bit_for_bit(llama: Path, tmp_path: Path, loss: str) -> None:
    chosen = small("sure", loss, weight_decay=0.1, saliency_percentile=70)
    record = unlearn(llama, tmp_path / "out", raw_bundle(), chosen)
    before, after = tensor_digests(llama), tensor_digests(tmp_path / "out")
    assert before.keys() == after.keys()
    assert record.saliency is not None
    salient = {module.module for module in record.saliency if module.updated}
    assert {f"{name}.weight" for name in salient} == {name for name in before if before[name] != after[name]}
    order = [module.saliency for module in record.saliency]
    assert order == sorted(order, reverse=True)
    gamma = np.percentile(order, 70)
    assert salient == {module.module for module in record.saliency if module.saliency >= gamma}
    assert len(salient) == 4  # of 14 linear layers
    assert record.parameters_trained == sum(module.updated for module in record.saliency)
    assert 0 < record.parameters_changed <= record.parameters_trained


@pytest.fixture
def faint_head(tmp_path: Path) -> Path:
    """A checkpoint whose small `lm_head` has by far the largest gradient."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    model.save_pretrained(tmp_path / "faint")
    tiny_tokenizer().save_pretrained(tmp_path / "faint")
    return tmp_path / "faint"


@pytest.mark.parametrize(("given", "inside"), [({}, True), ({"modules": "all"}, False)])
def test_unless_told_otherwise_it_updates_what_precisions_quantize(
    faint_head: Path, tmp_path: Path, given: dict[str, str], inside: bool
) -> None:
    record = unlearn(faint_head, tmp_path / "out", raw_bundle(), small("sure", "ga", **given))
    before, after = tensor_digests(faint_head), tensor_digests(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    linear = {f"{name}.weight" for name in targets(tiny_model())}
    assert record.saliency is not None
    assert changed
    if inside:
        assert changed <= linear
        assert {f"{module.module}.weight" for module in record.saliency} == linear
    else:
        assert record.saliency[0].module == "lm_head"
        assert "lm_head.weight" in changed - linear


def test_by_row_all_other_rows_are_the_originals_bit_for_bit(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    chosen = small("sure", "ga_gdr", weight_decay=0.1, saliency_granularity="row")
    record = unlearn(llama, tmp_path / "out", raw_bundle(), chosen)
    before, after = (load_file(path / "model.safetensors") for path in (llama, tmp_path / "out"))
    assert record.saliency is not None
    updated = {module.module: module.updated for module in record.saliency}
    moved = 0
    for name, weight in before.items():
        rows = (weight != after[name]).reshape(len(weight), -1).any(dim=1)
        allowed = updated.get(name.removesuffix(".weight"), 0) // (weight[0].numel() or 1)
        assert int(rows.sum()) <= allowed
        moved += int(rows.sum())
    assert moved
    assert 0 < record.parameters_changed <= sum(updated.values()) < record.parameters_trained


def test_gradients_and_optimizer_take_less_memory_than_full_fine_tunings(llama: Path, tmp_path: Path) -> None:
    sure = unlearn(llama, tmp_path / "sure", raw_bundle(), small("sure", "ga_gdr")).peak_memory
    full = unlearn(llama, tmp_path / "full", raw_bundle(), small("control", "ga_gdr")).peak_memory
    assert 0 < sure["gradients"] + sure["optimizer"] < 0.6 * (full["gradients"] + full["optimizer"])
    assert full["gradients"] == full["weights"]
    assert sure["training"] < sure["full_fine_tuning"]
    assert full["training"] == pytest.approx(full["full_fine_tuning"], rel=1e-3)
    assert sure["peak_process"] > 10**8
