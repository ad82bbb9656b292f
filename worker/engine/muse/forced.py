"""Teacher-forced evidence: the probabilities that a model gives a fixed answer, token by token, whatever it would say.

With y_1..y_n the answer's tokens after the prompt, and p the model's probability of each after the true ones before it:

    exact_memorization     share of t where y_t is the model's first choice
    extraction_strength    1 - k/n, k the smallest number of given tokens after which all others are first choices
    probability            p(y) = exp(mean_t log p(y_t)), 0 to 1
    truth_ratio            p(y) / (p(y) + mean of p over the perturbed answers)

A model that knows nothing has an extraction strength of 0 (k = n).

Sources: arXiv 2407.06460 (MUSE) and 2401.06121 (TOFU); open-unlearning evals/metrics/memorization.py, which gives 1/n,
not 0, when even the last token is wrong. TOFU's truth ratio uses a paraphrase of the answer; here the answer itself
takes its place, because bundles hold no paraphrases, and the ratio is turned into a share.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from worker.engine.muse.likelihood import TokenScores, score_tokens
from worker.engine.muse.subject import Subject

Column = list[float | None]


class Joined(NamedTuple):
    """A prompt and an answer as one sequence of tokens."""

    ids: list[int]
    answer: int
    """How many tokens at the end belong to the answer and are scored."""
    prompt_cut: bool
    answer_cut: bool
    """Whether it was cut to fit the model's window, which keeps the beginning of an answer and the end of a prompt."""


class Forced(NamedTuple):
    """Columns and flags of a metric's items."""

    columns: dict[str, Column]
    flags: dict[str, list[int]]


def join(subject: Subject, prompt: str, answer: str, most: int | None = None) -> Joined:
    """Prompt and answer, tokenized together as one text.

    The answer's tokens are those after the longest prefix shared with the prompt's own tokens: a prompt's last space
    usually belongs to the answer's first token.

    Args:
        most: The most tokens of the answer that count.
    """
    before, whole = subject.encode(prompt), subject.encode(prompt + answer)
    common = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole))
    )
    head, tail = whole[:common], whole[common:][:most]
    if subject.window is None or len(head) + len(tail) <= subject.window:
        return Joined(head + tail, min(len(tail), max(0, len(head) + len(tail) - 1)), False, False)
    kept = tail[: subject.window - min(1, len(head))]
    ids = [*(subject.cut(head, subject.window - len(kept)) if head else []), *kept]
    return Joined(ids, min(len(kept), len(ids) - 1), len(ids) < len(head) + len(kept), len(kept) < len(tail))


def forced(subject: Subject, items: Sequence[Sequence[Joined]], tick: Callable[[int], None]) -> Forced:
    """The columns of each item, in the order given.

    Flags: `forced_non_finite` (the logits of one of the item's answers are NaN or infinite: values computed from that
    answer are 0.0), `forced_prompt_truncated`, `forced_answer_truncated`. A value is None where there is nothing to
    compute it from: an answer without tokens, or, for the truth ratio, an item without perturbed answers. A column
    without any value is left out.

    Args:
        items: For each item the right answer, then its perturbed ones.
        tick: Called between batches with the number of answers scored so far; may raise to stop.
    """
    flat = [answer for item in items for answer in item]
    scored = iter(score_tokens(subject, [answer.ids for answer in flat], tick=tick))
    found = [[_answer(answer, next(scored)) for answer in item] for item in items]
    columns: dict[str, Column] = {
        "exact_memorization": [_exact(right) for right, *_ in found],
        "extraction_strength": [_strength(right) for right, *_ in found],
        "probability": [_probability(right) for right, *_ in found],
    }
    if any(len(item) > 1 for item in items):
        columns["truth_ratio"] = [_truth_ratio(right, perturbed) for right, *perturbed in found]
    raised = {
        "forced_non_finite": [not all(answer.finite for answer in item) for item in found],
        "forced_prompt_truncated": [any(answer.prompt_cut for answer in item) for item in items],
        "forced_answer_truncated": [any(answer.answer_cut for answer in item) for item in items],
    }
    return Forced(columns, {flag: [i for i, is_so in enumerate(row) if is_so] for flag, row in raised.items()})


class _Answer(NamedTuple):
    """The scores of one answer."""

    hits: NDArray[np.bool_]
    """Whether each token is the first choice, [n]; all False where the model returned NaN."""
    log_prob: float | None
    """Mean over its tokens; -inf where the model returned NaN, None where there are no tokens."""
    finite: bool


def _answer(joined: Joined, scores: TokenScores) -> _Answer:
    start = len(scores.log_probs) - joined.answer
    hits, log_probs = scores.first_choice[start:], scores.log_probs[start:]
    if not len(hits):
        return _Answer(hits, None, scores.finite)
    # Rounding can lift the logarithm of an almost certain token above 0.
    return _Answer(hits, min(0.0, float(log_probs.mean())) if scores.finite else -np.inf, scores.finite)


def _exact(answer: _Answer) -> float | None:
    return float(answer.hits.mean()) if len(answer.hits) else None


def _strength(answer: _Answer) -> float | None:
    if not len(answer.hits):
        return None
    misses = (~answer.hits).nonzero()[0]
    return 1.0 - (int(misses[-1]) + 1) / len(answer.hits) if len(misses) else 1.0


def _probability(answer: _Answer) -> float | None:
    return None if answer.log_prob is None else float(np.exp(answer.log_prob))


def _truth_ratio(right: _Answer, perturbed: Sequence[_Answer]) -> float | None:
    wrong = [answer.log_prob for answer in perturbed if answer.log_prob is not None]
    if right.log_prob is None or not wrong:
        return None
    if not all(answer.finite for answer in (right, *perturbed)):
        return 0.0
    # p / (p + q) in logarithms: both may be too small for a float.
    return float(expit(right.log_prob - (logsumexp(wrong) - np.log(len(wrong)))))
