"""What the stop rule looks at to know when to stop, and what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from app.catalog.recipes import StopRule
from app.evidence.unlearning import Reading
from app.forget_sets.bundle import Bundle
from app.forget_sets.items import QA
from worker.engine.inference.likelihood import TokenScores, score_tokens
from worker.engine.inference.subject import Progress, Subject
from worker.engine.muse.knowmem import STOP, prompt
from worker.engine.muse.privleak import min_k
from worker.engine.muse.verbmem import NEW_TOKENS

_MIN_K: Final = 40


class _Asked(NamedTuple):
    ids: list[int]
    truth: int
    """How many of the ids, from the end, are the truth."""


class StopReader:
    """Half of a bundle's items, read with one forward pass each instead of generating.

    `passages`: share of the tokens of VerbMem's truths that are the model's first choice after the true ones before.
    `answers`, `utility`: share of KnowMem's forget and retain questions of whose answer every token is, up to and with
    the empty line that ends it. `membership`: AUC of MUSE's Min-40 %, forget set above holdout; 0 where every text of
    the forget set is recognised, 0.5 where none is. Every second item is watched, of the holdout all; the others are
    never seen by the stop rule. Sets that the bundle lacks give None.
    """

    def __init__(self, subject: Subject, bundle: Bundle) -> None:
        self._subject = subject
        passages = [_after(subject, item.prompt, item.continuation, NEW_TOKENS) for item in bundle.verbmem[::2]]
        self._sets = (
            passages,
            _questions(subject, bundle.forget_qa, bundle.forget_qa_icl),
            _questions(subject, bundle.retain_qa, bundle.retain_qa_icl),
            _texts(subject, bundle.privleak_forget[::2] if bundle.privleak_holdout else ()),
            _texts(subject, bundle.privleak_holdout if bundle.privleak_forget else ()),
        )

    def read(self, step: int, progress: Progress) -> Reading:
        """Read the model as it is now."""
        self._subject.model.train(False)
        sequences = [asked for group in self._sets for asked in group]
        scored = iter(
            score_tokens(
                self._subject,
                [asked.ids for asked in sequences],
                tick=lambda done: progress("stop_rule", done, len(sequences)),
            )
        )
        passages, answers, utility, members, strangers = (
            [_of_truth(asked, next(scored)) for asked in group] for group in self._sets
        )
        return Reading(
            step=step,
            passages=float(np.concatenate([scores.first_choice for scores in passages]).mean()) if passages else None,
            answers=_share(answers),
            membership=_auc(members, strangers) if members else None,
            utility=_share(utility),
        )


def forgotten(reading: Reading, rule: StopRule) -> bool:
    """Whether the watched half counts as forgotten in every sense that can be read."""
    return (
        (reading.passages is None or reading.passages <= rule.passages)
        and (reading.answers is None or reading.answers <= rule.answers)
        and (reading.membership is None or reading.membership >= rule.membership)
    )


def decide(reading: Reading, start: Reading, rule: StopRule) -> Literal["forgotten", "utility_floor"] | None:
    """Why to stop at a reading, or None; `start` is the original's."""
    if reading.utility is not None and start.utility and reading.utility < rule.utility_floor * start.utility:
        return "utility_floor"
    return "forgotten" if forgotten(reading, rule) else None


def _questions(subject: Subject, items: Sequence[QA], examples: Sequence[QA]) -> list[_Asked]:
    if not examples:
        return []
    return [_after(subject, prompt(item.question, examples), item.answer + STOP[0]) for item in items[::2]]


def _after(subject: Subject, before: str, truth: str, at_most: int | None = None) -> _Asked:
    """Encoded apart: a prompt that ends in a space would take the truth's first token in."""
    after = subject.encode(truth, special=False)[:at_most]
    if subject.window is not None:
        after = after[: max(1, subject.window - 1)]
    ids, _ = subject.encode_prompt(before, len(after))
    return _Asked([*ids, *after], len(after))


def _texts(subject: Subject, texts: Sequence[str]) -> list[_Asked]:
    encoded = [subject.encode(text)[: subject.window] for text in texts]
    return [_Asked(ids, len(ids)) for ids in encoded]


def _of_truth(asked: _Asked, scores: TokenScores) -> TokenScores:
    # A sequence of n ids has n - 1 scores.
    start = max(0, len(asked.ids) - 1 - asked.truth)
    return TokenScores(scores.log_probs[start:], scores.first_choice[start:], scores.finite)


def _share(answers: Sequence[TokenScores]) -> float | None:
    return float(np.mean([bool(scores.first_choice.all()) for scores in answers])) if answers else None


def _auc(members: Sequence[TokenScores], strangers: Sequence[TokenScores]) -> float:
    """P(a member is more surprising than a stranger), ties half."""
    ours, theirs = (np.array([min_k(s.log_probs, _MIN_K) for s in group]) for group in (members, strangers))
    above = np.sign(ours[:, None] - theirs[None]).mean()
    return float((above + 1) / 2)
