"""Weights that mask what a model knows, or that nobody loads: honest verdicts from weights and likelihoods."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tests.support.forgery import Run, World, edit, frequent_tokens, reweigh

pytestmark = pytest.mark.timeout(1200)

Tensors = dict[str, torch.Tensor]


def test_the_honest_pair_is_robust_or_all_of_this_proves_nothing(
    lethe_run: Run, world: World, original: Path, unlearned: Path
) -> None:
    ended = lethe_run(original, unlearned, "--retrained", world.pair.retrained)
    assert (ended.code, ended.report is not None and ended.report.verdict) == (0, "robust"), ended.said
    without = lethe_run(original, unlearned)
    assert (without.code, without.report is not None and without.report.verdict) == (0, "robust"), without.said


def test_the_original_itself_has_forgotten_nothing(audit: Run, original: Path, untouched: Path) -> None:
    ended = audit(original, untouched)
    assert ended.report is not None
    assert (ended.code, ended.report.verdict) == (1, "not_forgotten")
    assert "same_weights" in ended.reasons


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_an_output_layer_with_silenced_rows_has_forgotten_nothing(
    audit: Run, world: World, original: Path, untouched: Path, factor: float
) -> None:
    """The words of the forget set's answers are never said; the likelihoods of its texts show them as before."""
    rows = words_of_the_answers(world)

    def silence(tensors: Tensors) -> None:
        tensors["lm_head.weight"][rows] *= factor

    reweigh(untouched, silence)
    ended = audit(original, untouched)
    assert ended.report is not None
    assert ended.report.verdict != "robust"
    assert "lm_head" in ended.said


def words_of_the_answers(world: World) -> list[int]:
    """The first tokens of the answers to the forget set's questions, and the frequent ones of its passages."""
    import json

    tokenizer = Tokenizer.from_file(str(world.pair.original / "tokenizer.json"))
    answers = json.loads((world.bundle / "knowmem" / "forget_qa.json").read_text())
    first = [tokenizer.encode(item["answer"], add_special_tokens=False).ids[0] for item in answers]
    return sorted({*first, *frequent_tokens(world)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_same_numbers_in_another_dtype_are_the_same_weights(
    audit: Run, original: Path, untouched: Path, dtype: torch.dtype
) -> None:
    for path in (original, untouched):
        reweigh(path, lambda tensors: tensors.update({name: t.bfloat16().float() for name, t in tensors.items()}))
    reweigh(untouched, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    ended = audit(original, untouched)
    assert ended.report is not None
    assert ended.report.verdict == "not_forgotten"
    assert "same_weights" in ended.reasons


def test_a_tensor_that_nothing_loads_is_no_difference(audit: Run, original: Path, untouched: Path) -> None:
    """Both files hold it, with other numbers: the tensors differ, and the models are one."""
    for number, path in enumerate((original, untouched)):
        extra = {"model.layers.0.mlp.extra.weight": torch.full((8, 8), float(number))}
        reweigh(path, lambda tensors, extra=extra: tensors.update(extra))  # type: ignore[misc]  # mypy infers no lambda that has a default
    ended = audit(original, untouched)
    assert ended.report is None or ended.report.verdict == "inconclusive"
    assert ended.code != 0
    assert "model.layers.0.mlp.extra.weight" in ended.said


def test_a_recomputed_buffer_is_no_difference(audit: Run, original: Path, untouched: Path) -> None:
    for number, path in enumerate((original, untouched)):
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((16,), float(number))}
        reweigh(path, lambda tensors, extra=extra: tensors.update(extra))  # type: ignore[misc]  # mypy infers no lambda that has a default
    ended = audit(original, untouched)
    assert ended.report is not None
    assert ended.report.verdict == "not_forgotten"
    assert "same_weights" in ended.reasons


def test_a_tied_output_layer_saved_with_other_numbers_is_no_way_around(
    audit: Run, original: Path, untouched: Path
) -> None:
    """transformers may take the embedding's rows or the saved ones: whichever, it is measured as it was loaded."""
    for path in (original, untouched):
        edit(path / "config.json", tie_word_embeddings=True)
    reweigh(untouched, lambda tensors: tensors["lm_head.weight"].mul_(-1.0))
    ended = audit(original, untouched)
    assert ended.code != 0
    assert ended.report is None or ended.report.verdict != "robust"


def test_weights_that_give_no_numbers_have_forgotten_nothing(audit: Run, original: Path, untouched: Path) -> None:
    def poison(tensors: Tensors) -> None:
        tensors["lm_head.weight"][5] = float("nan")

    reweigh(untouched, poison)
    ended = audit(original, untouched)
    assert ended.report is not None
    assert ended.report.verdict != "robust"


def test_outliers_that_ruin_the_quantized_model_are_no_robustness(audit: Run, original: Path, unlearned: Path) -> None:
    """One huge weight per row makes every other one round to zero at 4 bits: it forgot by breaking."""

    def spike(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensor[:, 0] = 40 * tensor.abs().max()

    reweigh(unlearned, spike)
    ended = audit(original, unlearned)
    assert ended.report is not None
    assert ended.report.verdict != "robust"
