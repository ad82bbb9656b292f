"""PrivLeak (MUSE, M3): do the model's likelihoods reveal that it was trained on the forget set?

These are statistics per text; `app.judgement.statistics`, which knows the reference, computes AUC and PrivLeak.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.catalog.metrics import MetricId
from app.evidence.evaluation import PrivLeakScores, TextStatistics
from app.forget_sets.bundle import Bundle
from worker.engine.muse.likelihood import score_tokens
from worker.engine.muse.subject import Progress, Subject

PERCENT = (5, 10, 20, 30, 40, 50, 60)
"""The values of k of Min-K; PrivLeak is defined with 40."""


def measure(subject: Subject, bundle: Bundle, metric: MetricId, progress: Progress, seed: int) -> PrivLeakScores:
    """PrivLeak's statistics on a bundle's texts; the seed is not used."""
    return privleak(subject, bundle.privleak_forget, bundle.privleak_holdout, bundle.privleak_retain, progress)


def privleak(
    subject: Subject, forget: Sequence[str], holdout: Sequence[str], retain: Sequence[str], progress: Progress
) -> PrivLeakScores:
    """Loss, Min-K% and zlib ratio of each text. Higher means less like a text that was trained on.

    Flags, per subset ("forget.truncated"): `truncated` (longer than the context; its beginning was scored),
    `too_short` (fewer than two tokens: nothing to score, statistics 0) and `non_finite` (NaN: statistics 0).
    Source: muse_bench metrics/privleak.py.
    """
    subsets = {"forget": forget, "holdout": holdout, "retain": retain}
    texts = [(name, i, text) for name, members in subsets.items() for i, text in enumerate(members)]
    encoded = [subject.encode(text) for _, _, text in texts]
    window = subject.window or max(map(len, encoded), default=0)
    scores = score_tokens(
        subject, [ids[:window] for ids in encoded], tick=lambda done: progress("privleak", done, len(texts))
    )
    flags: dict[str, list[int]] = {}
    log_probs: dict[str, list[NDArray[np.float64]]] = {name: [] for name in subsets}
    for (name, i, _), ids, scored in zip(texts, encoded, scores, strict=True):
        log_probs[name].append(scored.log_probs)
        for flag, raised in (
            ("truncated", len(ids) > window),
            ("too_short", len(ids) < 2),
            ("non_finite", not scored.finite),
        ):
            if raised:
                flags.setdefault(f"{name}.{flag}", []).append(i)
    return PrivLeakScores(
        forget=_statistics(forget, log_probs["forget"]),
        holdout=_statistics(holdout, log_probs["holdout"]),
        retain=_statistics(retain, log_probs["retain"]) if retain else None,
        flags=flags,
    )


def min_k(log_probs: NDArray[np.float64], percent: int) -> float:
    """Mean negative log-probability of the int(k n) least likely tokens, at least one; 0 for no tokens at all."""
    count = max(1, int(len(log_probs) * (percent / 100)))
    return _mean(np.sort(log_probs)[:count])


def _statistics(texts: Sequence[str], log_probs: Sequence[NDArray[np.float64]]) -> TextStatistics:
    loss = [_mean(values) for values in log_probs]
    return TextStatistics(
        tokens=[len(values) for values in log_probs],
        loss=loss,
        zlib_ratio=[value / len(zlib.compress(text.encode())) for value, text in zip(loss, texts, strict=True)],
        min_k={str(percent): [min_k(values, percent) for values in log_probs] for percent in PERCENT},
    )


def _mean(log_probs: NDArray[np.float64]) -> float:
    return -float(log_probs.mean()) if len(log_probs) else 0.0
