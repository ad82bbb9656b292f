"""VerbMem (MUSE, M1): does the model continue a passage of the forget set word by word?"""

from collections.abc import Sequence

from app.forget_sets.bundle import Passage
from app.reports.schemas import GenerationScores
from worker.engine.muse.generate import greedy
from worker.engine.muse.likelihood import TokenScores, score_tokens
from worker.engine.muse.rouge import rouge_l
from worker.engine.muse.subject import Progress, Subject

NEW_TOKENS = 128


def verbmem(subject: Subject, items: Sequence[Passage], progress: Progress) -> GenerationScores:
    """ROUGE-L F1 of the greedy continuation (128 new tokens) against the true one, cut at 128 ids.

    The true continuation is tokenized with special tokens, so a BOS takes one of the 128; both sides are decoded.
    Extras, teacher-forced over the first 128 tokens of the true continuation:
        exact_memorization: share of its tokens that are the model's first choice.
        extraction_strength: 1 - k/n, k being the shortest prefix of it after which all others are first choices.
    Source: muse_bench metrics/verbmem.py; open-unlearning evals/metrics/memorization.py (which gives 1/n, not 0, when
    even the last token is wrong).
    """
    total = 2 * len(items)
    new_tokens = subject.new_tokens(NEW_TOKENS)
    prompts = [subject.encode_prompt(item.prompt, new_tokens) for item in items]
    outputs = greedy(
        subject, [ids for ids, _ in prompts], new_tokens, tick=lambda done: progress("verbmem", done, total)
    )
    scores = [
        rouge_l(subject.decode(subject.encode(item.continuation)[:NEW_TOKENS]), subject.decode(output.ids))
        if output.finite
        else 0.0
        for item, output in zip(items, outputs, strict=True)
    ]
    pairs = [_joined(subject, item) for item in items]
    forced = score_tokens(
        subject, [ids for ids, _ in pairs], tick=lambda done: progress("verbmem", len(items) + done, total)
    )
    flags = {
        "prompt_truncated": [i for i, (_, cut) in enumerate(prompts) if cut],
        "non_finite": [i for i, output in enumerate(outputs) if not output.finite],
        "new_tokens_reduced": list(range(len(items))) if new_tokens < NEW_TOKENS else [],
    }
    return GenerationScores(
        scores=scores,
        flags={flag: indices for flag, indices in flags.items() if indices},
        extras={
            "exact_memorization": [_exact(s, n) for s, (_, n) in zip(forced, pairs, strict=True)],
            "extraction_strength": [_strength(s, n) for s, (_, n) in zip(forced, pairs, strict=True)],
        },
    )


def _joined(subject: Subject, item: Passage) -> tuple[list[int], int]:
    """(prompt and continuation as ids, how many of them, at the end, are continuation)."""
    space = "" if item.prompt[-1].isspace() or item.continuation[0].isspace() else " "
    prompt, whole = subject.encode(item.prompt), subject.encode(item.prompt + space + item.continuation)
    common = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
    )
    whole = whole[: common + NEW_TOKENS]
    continuation = len(whole) - common
    if subject.window and len(whole) > subject.window:
        whole = whole[-subject.window :]
    return whole, min(continuation, len(whole) - 1)


def _exact(scores: TokenScores, n: int) -> float:
    return float(scores.first_choice[-n:].mean()) if n > 0 else 0.0


def _strength(scores: TokenScores, n: int) -> float:
    if n <= 0:
        return 0.0
    misses = (~scores.first_choice[-n:]).nonzero()[0]
    return 1.0 - (int(misses[-1]) + 1) / n if len(misses) else 1.0
