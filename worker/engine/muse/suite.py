"""The suite: the metrics that can be measured on a forget set, one after the other.

To add a metric, add a file here whose `measure` scores every item, and an entry in `app.catalog.metrics`.
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


# All are imported now, so that one that cannot be imported is reported before a model is opened.
_MODULES = {
    metric.id: cast(_Measures, importlib.import_module(f"worker.engine.muse.{metric.module}"))
    for metric in METRICS.values()
}


@dataclass
class SuiteScores:
    """The metrics that were measured; others are absent."""

    scores: dict[MetricId, Scores] = field(default_factory=dict)
    settings: dict[str, Scalar] = field(default_factory=dict)
    """What else could change a number of these metrics."""
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    subject: Subject, bundle: Bundle, metrics: Sequence[MetricId], progress: Progress, seed: int = 0
) -> SuiteScores:
    """Measure `metrics` on a model, except those that the bundle lacks items for. `seed` is for sampled metrics."""
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
