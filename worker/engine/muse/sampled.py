"""VerbMem sampled: how much of a passage is in several sampled continuations?

What a greedy answer hides can be almost as likely. It is not one of MUSE's metrics; the code published with arXiv
2410.16454 samples VerbMem's continuations like this, at a temperature of 0.9 and unseeded.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.catalog.frozen import Scalar
from app.catalog.metrics import MetricId
from app.evidence.evaluation import GenerationScores
from app.forget_sets.bundle import Bundle
from app.forget_sets.items import Passage
from worker.engine.muse.generate import Continuation, sampled
from worker.engine.muse.rouge import rouge_l
from worker.engine.muse.subject import Progress, Subject
from worker.engine.muse.verbmem import NEW_TOKENS, truth

SAMPLES = 8
TEMPERATURE = 0.9
SETTINGS: Mapping[str, Scalar] = {"verbmem_samples": SAMPLES, "verbmem_temperature": TEMPERATURE}
"""What an evaluation records about it."""


def measure(subject: Subject, bundle: Bundle, metric: MetricId, progress: Progress, seed: int) -> GenerationScores:
    """VerbMem sampled on a bundle's passages."""
    return verbmem_sampled(subject, bundle.verbmem, seed, progress)


def verbmem_sampled(subject: Subject, items: Sequence[Passage], seed: int, progress: Progress) -> GenerationScores:
    """VerbMem's ROUGE-L F1 of `SAMPLES` sampled continuations: their mean; extras: `best_of_k`, the best of them.

    The draws follow from the seed, the item's prompt and the sample's number, so they are the same whatever else is in
    the batch or in the forget set, and the same for all models and precisions of an audit. A sample with NaN logits
    scores 0, and its item is flagged.
    """
    new_tokens = subject.new_tokens(NEW_TOKENS)
    prompts = [subject.encode_prompt(item.prompt, new_tokens) for item in items]
    outputs = sampled(
        subject,
        [ids for ids, _ in prompts for _ in range(SAMPLES)],
        [draws(seed, item.prompt, sample, new_tokens) for item in items for sample in range(SAMPLES)],
        TEMPERATURE,
        tick=lambda done: progress("verbmem_sampled", done, SAMPLES * len(items)),
    )
    by_item = [outputs[at : at + SAMPLES] for at in range(0, len(outputs), SAMPLES)]
    scores = np.array([_scores(subject, item, found) for item, found in zip(items, by_item, strict=True)])
    flags = {
        "prompt_truncated": [i for i, (_, cut) in enumerate(prompts) if cut],
        "non_finite": [i for i, found in enumerate(by_item) if not all(output.finite for output in found)],
        "new_tokens_reduced": list(range(len(items))) if new_tokens < NEW_TOKENS else [],
    }
    return GenerationScores(
        scores=scores.mean(axis=1).tolist(),
        flags={flag: indices for flag, indices in flags.items() if indices},
        extras={"best_of_k": scores.max(axis=1).tolist()},
    )


def draws(seed: int, prompt: str, sample: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), the same for the same arguments; fewer of them are the first of more."""
    name = hashlib.sha256(f"{seed} {sample} {prompt}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(name))).random(count)


def _scores(subject: Subject, item: Passage, outputs: Sequence[Continuation]) -> list[float]:
    reference = truth(subject, item)
    return [rouge_l(reference, subject.decode(output.ids)) if output.finite else 0.0 for output in outputs]
