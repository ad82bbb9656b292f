"""The suite: the metrics that a forget set allows, one after the other.

A metric joins by a file here, whose `measure` scores every item, and by its entry in `app.catalog.metrics`.
"""

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from app.catalog.frozen import Scalar
from app.catalog.metrics import METRICS, MetricId
from app.evidence.evaluation import Scores
from app.forget_sets.bundle import Bundle
from worker.engine.muse.subject import Progress, Subject


class _Measures(Protocol):
    """A metric's module. `SETTINGS`, where it has them, are what an evaluation records beside the scores."""

    def measure(self, subject: Subject, bundle: Bundle, metric: MetricId, progress: Progress, seed: int) -> Scores: ...


# All of them now: what cannot be imported here is said before a model is opened.
_MODULES = {
    metric.id: cast(_Measures, importlib.import_module(f"worker.engine.muse.{metric.module}"))
    for metric in METRICS.values()
}


@dataclass
class SuiteScores:
    """What was measured; of the metrics that were not asked for, or could not be, nothing is here."""

    scores: dict[MetricId, Scores] = field(default_factory=dict)
    settings: dict[str, Scalar] = field(default_factory=dict)
    """What else could change a number of these metrics."""
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    subject: Subject, bundle: Bundle, metrics: Sequence[MetricId], progress: Progress, seed: int = 0
) -> SuiteScores:
    """Measure `metrics` on a model, but for those that the bundle cannot give. `seed` is of what is sampled."""
    found = SuiteScores()
    for metric in metrics:
        if metric in bundle.unavailable:
            continue
        started = time.monotonic()
        module = _MODULES[metric]
        found.scores[metric] = module.measure(subject, bundle, metric, progress, seed)
        found.settings |= getattr(module, "SETTINGS", {})
        found.seconds[metric] = time.monotonic() - started
    return found
