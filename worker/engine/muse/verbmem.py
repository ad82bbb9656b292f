"""VerbMem (MUSE, M1): does the model continue a passage of the forget set word by word?"""

from collections.abc import Sequence

from app.catalog.metrics import MetricId
from app.evidence.evaluation import GenerationScores
from app.forget_sets.bundle import Bundle
from app.forget_sets.items import Passage
from worker.engine.muse.forced import forced, join
from worker.engine.muse.generate import greedy
from worker.engine.muse.rouge import rouge_l
from worker.engine.muse.subject import Progress, Subject

NEW_TOKENS = 128


def measure(subject: Subject, bundle: Bundle, metric: MetricId, progress: Progress, seed: int) -> GenerationScores:
    """VerbMem on a bundle's passages; the seed is not used."""
    return verbmem(subject, bundle.verbmem, progress)


def verbmem(subject: Subject, items: Sequence[Passage], progress: Progress) -> GenerationScores:
    """ROUGE-L F1 of the greedy continuation (128 new tokens) against the true one, cut at 128 ids.

    The true continuation is tokenized with special tokens, so a BOS takes one of the 128; both sides are decoded.
    Extras: the columns of `forced` for the first 128 tokens of the true continuation.
    Source: muse_bench metrics/verbmem.py.
    """
    total = 2 * len(items)
    new_tokens = subject.new_tokens(NEW_TOKENS)
    prompts = [subject.encode_prompt(item.prompt, new_tokens) for item in items]
    outputs = greedy(
        subject, [ids for ids, _ in prompts], new_tokens, tick=lambda done: progress("verbmem", done, total)
    )
    scores = [
        rouge_l(truth(subject, item), subject.decode(output.ids)) if output.finite else 0.0
        for item, output in zip(items, outputs, strict=True)
    ]
    told = [[join(subject, item.prompt, _space(item) + item.continuation, NEW_TOKENS)] for item in items]
    evidence = forced(subject, told, lambda done: progress("verbmem", len(items) + done, total))
    flags = {
        "prompt_truncated": [i for i, (_, cut) in enumerate(prompts) if cut],
        "non_finite": [i for i, output in enumerate(outputs) if not output.finite],
        "new_tokens_reduced": list(range(len(items))) if new_tokens < NEW_TOKENS else [],
        **evidence.flags,
    }
    return GenerationScores(
        scores=scores,
        flags={flag: indices for flag, indices in flags.items() if indices},
        extras=evidence.columns,
    )


def truth(subject: Subject, item: Passage) -> str:
    """The true continuation, cut at 128 ids (special tokens count) and decoded like the generated text."""
    return subject.decode(subject.encode(item.continuation)[:NEW_TOKENS])


def _space(item: Passage) -> str:
    return "" if item.prompt[-1].isspace() or item.continuation[0].isspace() else " "
