"""Log-probabilities of given tokens, in batches: log p(x_t | x_<t) and whether x_t was the model's first choice."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.inference.batches import in_batches
from worker.engine.inference.subject import Subject

_TOGETHER = {"cuda": 32768, "cpu": 2048}
"""Tokens that are read at once, by kind of device: on a CPU more of them are no faster."""
_LOGITS = 1 << 28  # elements of one batch's logits [batch, time, vocabulary]
_FLOATS = 1 << 25  # of them, how many are held in float32 at once


class TokenScores(NamedTuple):
    """Scores of one sequence's tokens after the first: entry t belongs to token t + 1."""

    log_probs: NDArray[np.float64]
    """Natural logarithms, [n - 1]; zeros where the model returned NaN."""
    first_choice: NDArray[np.bool_]
    """Whether arg-max of the logits is the token, [n - 1]."""
    finite: bool


def score_tokens(
    subject: Subject, sequences: Sequence[Sequence[int]], *, tick: Callable[[int], None]
) -> list[TokenScores]:
    """Teacher-forced scores of each sequence, in the order given.

    Args:
        subject: Model and tokenizer.
        sequences: Token ids; those with fewer than two have nothing to score and give empty arrays.
        tick: Called between batches with the number of finished sequences; may raise to stop.
    """
    empty = TokenScores(np.zeros(0), np.zeros(0, dtype=np.bool_), True)
    found: list[TokenScores] = [empty] * len(sequences)
    scored = [i for i, sequence in enumerate(sequences) if len(sequence) > 1]

    def run(batch: list[int]) -> None:
        indices = [scored[i] for i in batch]
        for index, scores in zip(indices, _score(subject, [sequences[i] for i in indices]), strict=True):
            found[index] = scores

    vocabulary = subject.model.config.get_text_config(decoder=True).vocab_size
    most = 1 if subject.reads_alone else _TOGETHER.get(subject.device.type, _TOGETHER["cpu"])
    budget = max(1, min(subject.token_budget, most, _LOGITS // vocabulary))
    nothing = len(sequences) - len(scored)
    in_batches([len(sequences[i]) for i in scored], budget, run, lambda done: tick(nothing + done))
    return found


@torch.inference_mode()
def _score(subject: Subject, sequences: list[Sequence[int]]) -> list[TokenScores]:
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), subject.padding_id, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    ids = ids.to(subject.device)
    model: Any = subject.model
    # Padded on the right and without a mask: later tokens do not affect earlier ones, and without a mask attention
    # takes its fastest path.
    logits = model(input_ids=ids, use_cache=False).logits
    return measured(logits[:, :-1], ids[:, 1:], [slice(0, len(sequence) - 1) for sequence in sequences])


def measured(logits: Tensor, targets: Tensor, own: Sequence[slice]) -> list[TokenScores]:
    """Scores of the target tokens.

    Args:
        logits: [batch, time, vocabulary], of the tokens that come next.
        targets: [batch, time], these tokens.
        own: Of each row, the part that counts; the rest is padding.
    """
    log_probs = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    choices = torch.empty(targets.shape, dtype=torch.bool, device=logits.device)
    step = max(1, _FLOATS // (logits.shape[0] * logits.shape[2]))
    for start in range(0, targets.shape[1], step):
        part = slice(start, start + step)
        block, target = logits[:, part].float(), targets[:, part]
        log_probs[:, part] = block.gather(2, target[..., None])[..., 0] - block.logsumexp(dim=2)
        choices[:, part] = block.argmax(dim=2) == target
    values, hits = log_probs.double().cpu().numpy(), choices.cpu().numpy()
    results: list[TokenScores] = []
    for row, part in enumerate(own):
        scores = values[row, part]
        finite = bool(np.isfinite(scores).all())
        results.append(
            TokenScores(scores.copy() if finite else np.zeros_like(scores), hits[row, part] & finite, finite)
        )
    return results
