"""The metrics: one entry says all there is to say about each; the engine's module of that name measures it.

A new metric is one file in `worker/engine/muse` and one entry here. What a plan may name, the fields of an evaluation,
the policy's thresholds, what corroborates what, "not tested" and the CLI's and the API's lists follow from the entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Thresholds:
    """The policy's defaults for a metric that is judged; chosen by `python -m tests.bench.power`."""

    slack: float
    """How far above its limit the interval of what is retained may reach in an audit that is `robust`."""
    excluded: float
    """The smallest recovery that an audit has to exclude to be `robust`."""


@dataclass(frozen=True)
class Column:
    """A per-item column in [0, 1] beside a metric's scores that corroborates them; higher means knowing more."""

    name: str
    """The key in `GenerationScores.extras`; empty for the scores themselves."""
    title: str
    base_rate: bool = False
    """Whether a model that knows nothing scores well above 0, so that the column needs a retrained checkpoint."""


@dataclass(frozen=True)
class Metric:
    """A way to measure what a model knows."""

    id: str
    title: str
    module: str
    """The file of `worker/engine/muse` that measures it."""
    needs: tuple[str, ...]
    """The files of a forget set that it cannot be measured without; its scores are in the order of the first."""
    kind: Literal["generation", "membership"] = "generation"
    """Whether its items are scored one by one, or compared with texts that were held out."""
    by_default: bool = True
    """Whether a plan that names no metric measures it."""
    judged: Thresholds | None = None
    """The defaults of a forget metric, which shows by itself whether a model has forgotten; None for the others."""
    columns: tuple[Column, ...] = ()
    beside: str | None = None
    """The metric that its columns corroborate, where that is a different one."""

    @property
    def corroborates(self) -> str:
        """The metric that its columns corroborate."""
        return self.beside or self.id


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        one.id: one
        for one in (
            # MUSE's own (arXiv 2407.06460).
            Metric(
                "verbmem",
                "VerbMem",
                "verbmem",
                ("verbmem/forget",),
                judged=Thresholds(slack=0.0, excluded=0.25),
                columns=(
                    Column("probability", "probability of the passages"),
                    Column("extraction_strength", "extraction strength of the passages"),
                    Column("exact_memorization", "exact memorization of the passages", base_rate=True),
                ),
            ),
            Metric(
                "knowmem_forget",
                "KnowMem forget",
                "knowmem",
                ("knowmem/forget_qa", "knowmem/forget_qa_icl"),
                judged=Thresholds(slack=0.15, excluded=0.40),
                columns=(
                    Column("probability", "probability of the answers"),
                    Column("extraction_strength", "extraction strength of the answers"),
                    Column("exact_memorization", "exact memorization of the answers", base_rate=True),
                    Column("truth_ratio", "truth ratio of the answers", base_rate=True),
                ),
            ),
            Metric(
                "privleak",
                "PrivLeak",
                "privleak",
                ("privleak/forget", "privleak/holdout"),
                kind="membership",
                judged=Thresholds(slack=0.05, excluded=0.30),
            ),
            Metric("knowmem_retain", "KnowMem retain", "knowmem", ("knowmem/retain_qa", "knowmem/retain_qa_icl")),
            Metric(
                "verbmem_sampled",
                "VerbMem sampled",
                "sampled",
                ("verbmem/forget",),
                by_default=False,
                columns=(
                    Column("", "mean of sampled continuations"),
                    Column("best_of_k", "best of sampled continuations", base_rate=True),
                ),
                beside="verbmem",
            ),
        )
    }
)
"""Id -> its entry, in the suite's order."""

DEFAULT_METRICS = tuple(metric.id for metric in METRICS.values() if metric.by_default)
"""What a plan measures if it names no metric."""
FORGET_METRICS = tuple(metric.id for metric in METRICS.values() if metric.judged)
"""Those that show by themselves whether a model has forgotten."""
METRIC_NAMES = {metric.id: metric.title for metric in METRICS.values()}

if TYPE_CHECKING:
    MetricId = str
    ForgetMetricId = str
else:
    MetricId = Literal[tuple(METRICS)]
    ForgetMetricId = Literal[FORGET_METRICS]
