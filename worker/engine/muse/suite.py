"""The suite: the metrics that a forget set allows, one after the other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.catalog.metrics import MetricId
from app.evidence.evaluation import GenerationScores, PrivLeakScores
from app.forget_sets.bundle import Bundle
from worker.engine.muse.knowmem import knowmem
from worker.engine.muse.privleak import privleak
from worker.engine.muse.sampled import verbmem_sampled
from worker.engine.muse.subject import Progress, Subject
from worker.engine.muse.verbmem import verbmem


@dataclass
class SuiteScores:
    """Per-item scores by metric; None for those not asked for or not available."""

    verbmem: GenerationScores | None = None
    knowmem_forget: GenerationScores | None = None
    knowmem_retain: GenerationScores | None = None
    privleak: PrivLeakScores | None = None
    verbmem_sampled: GenerationScores | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    subject: Subject, bundle: Bundle, metrics: Sequence[MetricId], progress: Progress, seed: int = 0
) -> SuiteScores:
    """Measure `metrics` on a model; those that the bundle cannot give stay None. `seed` is of what is sampled."""
    scores = SuiteScores()
    for metric in metrics:
        if metric in bundle.unavailable:
            continue
        started = time.monotonic()
        if metric == "verbmem":
            scores.verbmem = verbmem(subject, bundle.verbmem, progress)
        elif metric == "knowmem_forget":
            scores.knowmem_forget = knowmem(subject, bundle.forget_qa, bundle.forget_qa_icl, metric, progress)
        elif metric == "knowmem_retain":
            scores.knowmem_retain = knowmem(subject, bundle.retain_qa, bundle.retain_qa_icl, metric, progress)
        elif metric == "verbmem_sampled":
            scores.verbmem_sampled = verbmem_sampled(subject, bundle.verbmem, seed, progress)
        else:
            scores.privleak = privleak(
                subject, bundle.privleak_forget, bundle.privleak_holdout, bundle.privleak_retain, progress
            )
        scores.seconds[metric] = time.monotonic() - started
    return scores
