"""The losses of unlearning, against their formulas written plainly, and the defects of published code."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.factories import tiny_model
from worker.engine.unlearning import losses
from worker.engine.unlearning.losses import IGNORED
from worker.engine.unlearning.objective import Objective
from worker.engine.unlearning.texts import Draw, Example


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    batch, tokens, vocabulary = 3, 7, 11
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, tokens, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
    labels[1, :3] = IGNORED
    labels[2, 4:] = IGNORED
    return logits, labels


def log_probs(logits: Tensor, labels: Tensor, row: int) -> list[float]:
    """log p(y_t | …) of the predicted tokens of one text, one at a time."""
    found = []
    for t in range(1, labels.shape[1]):
        if (label := int(labels[row, t])) != IGNORED:
            scores = [math.exp(float(score)) for score in logits[row, t - 1]]
            found.append(math.log(scores[label] / sum(scores)))
    return found


def test_cross_entropy_is_the_mean_over_texts_of_their_tokens_mean_and_gradient_ascent_its_negative() -> None:
    logits, labels = drawn()
    labels[0] = IGNORED
    texts = [log_probs(logits, labels, row) for row in range(3)]
    expected = sum(-sum(text) / len(text) for text in texts if text) / 3
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-4)
    assert float(losses.gradient_descent_retain(logits, labels)) == pytest.approx(expected, rel=1e-4)
    assert float(losses.gradient_ascent(logits, labels)) == pytest.approx(-expected, rel=1e-4)


def test_a_sequences_log_probability_is_the_sum_over_its_predicted_tokens() -> None:
    logits, labels = drawn()
    expected = [sum(log_probs(logits, labels, row)) for row in range(3)]
    assert losses.sequence_log_prob(logits, labels).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("ratio", ["sum", "mean"])
def test_npo_is_its_formula(ratio: Any) -> None:
    logits, labels = drawn()
    original, _ = drawn(seed=1)
    beta = 0.1
    terms = []
    for row in range(3):
        ours, theirs = log_probs(logits, labels, row), log_probs(original, labels, row)
        log_ratio = (sum(ours) - sum(theirs)) / (len(ours) if ratio == "mean" else 1)
        terms.append(-(2 / beta) * math.log(1 / (1 + math.exp(beta * log_ratio))))
    found = losses.npo(logits, labels, losses.sequence_log_prob(original, labels), beta, ratio)
    assert float(found) == pytest.approx(sum(terms) / 3, rel=1e-4)


def test_npo_is_on_normalised_probabilities_not_on_raw_logits() -> None:
    logits, labels = drawn()
    reference = losses.sequence_log_prob(drawn(seed=1)[0], labels)
    same = losses.npo(logits + 5, labels, reference, 0.1)
    assert float(same) == pytest.approx(float(losses.npo(logits, labels, reference, 0.1)), rel=1e-4)


def test_kl_is_its_formula_from_the_original_to_the_model() -> None:
    logits, labels = drawn()
    original, _ = drawn(seed=1)
    per_text = []
    for row in range(3):
        terms = []
        for t in range(1, labels.shape[1]):
            if int(labels[row, t]) != IGNORED:
                p_o, p_theta = original[row, t - 1].softmax(0), logits[row, t - 1].softmax(0)
                terms.append(float((p_o * (p_o / p_theta).log()).sum()))
        per_text.append(sum(terms) / len(terms))
    assert float(losses.kl_retain(logits, original, labels)) == pytest.approx(sum(per_text) / 3, rel=1e-4)


def test_kl_is_on_normalised_probabilities_not_on_raw_logits() -> None:
    logits, labels = drawn()
    original, _ = drawn(seed=1)
    moved = losses.kl_retain(logits + 4, original - 7, labels)
    assert float(moved) == pytest.approx(float(losses.kl_retain(logits, original, labels)), rel=1e-4)
    assert float(losses.kl_retain(logits, logits + 2, labels)) == pytest.approx(0, abs=1e-5)


def test_kl_does_not_grow_with_the_length_of_a_text_nor_with_padding() -> None:
    logits, original = drawn()[0][:1], drawn(seed=1)[0][:1]
    labels = torch.ones(1, 7, dtype=torch.long)
    once = losses.kl_retain(logits[:, :-1], original[:, :-1], labels[:, :-1])
    # The same positions three times over.
    thrice = losses.kl_retain(
        torch.cat([logits[:, :5]] * 3 + [logits[:, :1]], 1),
        torch.cat([original[:, :5]] * 3 + [original[:, :1]], 1),
        torch.ones(1, 16, dtype=torch.long),
    )
    assert float(thrice) == pytest.approx(float(once), rel=1e-4)
    padded = torch.cat([labels, torch.full((1, 7), IGNORED)], 1)
    longer = losses.kl_retain(torch.cat([logits, logits], 1), torch.cat([original, original], 1), padded)
    assert float(longer) == pytest.approx(float(losses.kl_retain(logits, original, labels)), rel=1e-4)


@pytest.mark.parametrize("loss", ["ga", "ga_gdr", "ga_klr", "npo", "npo_gdr", "npo_klr"])
def test_gradients_are_those_of_forget_plus_alpha_retain_once_with_a_fractional_alpha(loss: Any) -> None:
    """Published code left the forget gradients in place and counted them twice, and took alpha as an integer."""
    model, original = tiny_model(), tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    texts = [
        Example([0, *range(start, start + length)], [0, *range(start, start + length)])
        for start, length in ((5, 8), (40, 3), (90, 6))
    ]
    batch = torch.tensor([texts[0].ids])
    labels = batch
    reference = losses.sequence_log_prob(original(input_ids=batch).logits, labels).detach()
    originals = {name: parameter.detach() for name, parameter in original.named_parameters()}
    alpha = 0.25
    objective = Objective(loss, alpha, 0.1, "sum", texts, texts, 1, reference.expand(3), originals)
    objective.losses(model, Draw([0], [0])).total.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def logits() -> Tensor:
        found: Tensor = model(input_ids=batch).logits
        return found

    forget = (
        losses.gradient_ascent(logits(), labels)
        if loss.startswith("ga")
        else losses.npo(logits(), labels, reference, 0.1)
    )
    expected = gradients(forget)
    if "_" in loss:
        retain = (
            losses.cross_entropy(logits(), labels)
            if loss.endswith("gdr")
            else losses.kl_retain(logits(), original(input_ids=batch).logits.detach(), labels)
        )
        kept = gradients(retain)
        assert any(bool(gradient.any()) for gradient in kept.values())
        expected = {name: gradient + alpha * kept[name] for name, gradient in expected.items()}
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_the_originals_side_of_kl_stays_the_originals_while_the_model_moves() -> None:
    model = tiny_model()
    originals = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    texts = [Example([0, 5, 6, 7], [0, 5, 6, 7])]
    objective = Objective("ga_klr", 1.0, 0.1, "sum", texts, texts, 1, None, originals)
    retain = objective.losses(model, Draw([0], [0])).retain
    assert retain is not None
    assert float(retain) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    retain = objective.losses(model, Draw([0], [0])).retain
    assert retain is not None
    assert float(retain) > 0.01
