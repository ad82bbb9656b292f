"""What is minimised: a loss's two parts on given texts, at the parameters that a model has now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from app.catalog.recipes import RETAINING, Loss
from app.errors import UnlearningFailed
from worker.engine.inference.likelihood import score_tokens
from worker.engine.inference.subject import Progress, Subject
from worker.engine.unlearning.losses import (
    gradient_ascent,
    gradient_descent_retain,
    kl_retain,
    npo,
    sequence_log_prob,
    unlearning_loss,
)
from worker.engine.unlearning.texts import Batch, Draw, Example, pad


class Losses(NamedTuple):
    """Scalars: what is minimised, and its two parts before alpha."""

    total: Tensor
    forget: Tensor
    retain: Tensor | None


@dataclass(frozen=True)
class Objective:
    """A loss with its texts and what it needs of the original."""

    loss: Loss
    alpha: float
    beta: float
    npo_ratio: Any
    forget: Sequence[Example]
    retain: Sequence[Example]
    padding: int
    reference: Tensor | None = None
    """NPO: log p_o(y|x) of every forget text, nats; computed once (`reference_log_probs`)."""
    originals: Mapping[str, Tensor] | None = None
    """KLR: the original's values of the parameters that training moves; the others still are the original's."""

    def losses(self, model: PreTrainedModel, draw: Draw) -> Losses:
        """L_forget + α · L_retain on the texts of a draw."""
        forget = self.forget_loss(model, draw.forget)
        if self.loss not in RETAINING:
            return Losses(forget, forget.detach(), None)
        batch = self._batch(model, [self.retain[index] for index in draw.retain])
        if self.loss.endswith("_gdr"):
            retain = gradient_descent_retain(_logits(model, batch), batch.labels)
        else:
            # Before the model's own pass, whose graph must not see parameters change.
            with torch.no_grad():
                original = _logits(model, batch, self.originals or {})
            retain = kl_retain(_logits(model, batch), original, batch.labels)
        return Losses(unlearning_loss(forget, retain, self.alpha), forget.detach(), retain.detach())

    def forget_loss(self, model: PreTrainedModel, texts: Sequence[int], *, at_original: bool = False) -> Tensor:
        """L_forget on the forget texts of these indices; `at_original`: the model is the original itself.

        For NPO the log-ratio then is 0 by definition, and the gradient that of the texts' log-probabilities: for each
        text proportional to GA's (σ(0) · 2 = 1), a text weighing by its length where GA takes the mean of its tokens.
        """
        batch = self._batch(model, [self.forget[index] for index in texts])
        logits = _logits(model, batch)
        if self.loss.startswith("ga"):
            return gradient_ascent(logits, batch.labels)
        if at_original or self.reference is None:
            reference = sequence_log_prob(logits, batch.labels).detach()
        else:
            reference = self.reference[list(texts)].to(logits.device)
        return npo(logits, batch.labels, reference, self.beta, self.npo_ratio)

    def _batch(self, model: PreTrainedModel, examples: Sequence[Example]) -> Batch:
        return Batch(*(tensor.to(model.device) for tensor in pad(examples, self.padding)))


def reference_log_probs(subject: Subject, forget: Sequence[Example], progress: Progress) -> Tensor:
    """[texts], log p_o(y|x) in nats, of the model as it is now: to be called on the original."""
    subject.model.train(False)
    scored = score_tokens(
        subject,
        [example.ids for example in forget],
        tick=lambda done: progress("reference", done, len(forget)),
    )
    if not all(scores.finite for scores in scored):
        raise UnlearningFailed("non_finite", "the original gives no numbers on some text of raw/forget.json")
    return torch.tensor([scores.log_probs.sum() for scores in scored], dtype=torch.float32)


def _logits(model: PreTrainedModel, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Tensor:
    read = {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False}
    outputs: Any = model(**read) if values is None else functional_call(model, dict(values), (), read)
    logits: Tensor = outputs.logits
    return logits.to(batch.labels.device)
