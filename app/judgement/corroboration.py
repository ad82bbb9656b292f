"""What teacher-forced and sampled columns show beyond the metrics' one greedy answer.

Definitions and reasons: README.md, "Beyond one greedy answer".
They decide nothing: `robust` needs them not to disagree. A model that was trained to
answer differently, but not to forget, has forgotten by ROUGE and by nothing else.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from app.catalog.metrics import METRIC_NAMES, METRICS, Column, Metric, MetricId
from app.evidence.evaluation import Role
from app.judgement.figures import level, whole_percent
from app.judgement.policy import Policy
from app.judgement.statistics.comparison import Comparison, Levels
from app.judgement.statistics.intervals import Array, Statistic, finite
from app.judgement.statistics.retention import Evaluations, Knowledge, distinct_items, of_columns
from app.judgement.verdict import Corroboration, Finding, Reason

MEAN = "mean"
"""The name, as a column, of the scores of a metric that only corroborates."""


CORROBORATED = frozenset(metric.corroborates for metric in METRICS.values() if metric.columns)


class Measured(NamedTuple):
    """A column that was measured for all roles at a precision and in full precision."""

    metric: Metric
    column: Column
    now: Knowledge
    before: Knowledge

    def counts(self, policy: Policy) -> bool:
        """Whether it can show anything: enough items, and an original that knows what is asked."""
        known = min(self.now.gap.value, self.before.gap.value)
        return self.now.items >= policy.min_items and known >= policy.min_original


def measured(here: Evaluations, full: Evaluations) -> list[Measured]:
    """The columns that both precisions have for every role."""
    found: list[Measured] = []
    for metric, column in _columns():
        if column.base_rate and "retrained" not in here:
            continue
        columns = [_values(evaluations, metric, column) for evaluations in (here, full)]
        if any(values is None for values in columns):
            continue
        now, before = (dict(one) for one in columns if one is not None)
        mask = distinct_items([*here.values(), *full.values()], metric.id)
        for values in (*now.values(), *before.values()):
            mask &= np.isfinite(values)
        found.append(Measured(metric, column, of_columns(now, mask, None), of_columns(before, mask, None)))
    return found


def judge_column(found: Measured, policy: Policy, levels: Levels, *, full: bool) -> Corroboration:
    """What one column shows at one precision."""
    compared = Comparison(found.now, found.before, levels, full)
    known = found.now
    return Corroboration(
        metric=found.metric.id,
        column=found.column.name or MEAN,
        finding=_finding(compared, policy) if found.counts(policy) else "says_nothing",
        items=known.items,
        original=_score(known.original),
        unlearned=_score(known.unlearned),
        reference=None if known.reference is None else _score(known.reference),
        retained=compared.retained,
        gain=compared.gain,
        excluded=None if full else finite(compared.excluded),
    )


def disagreement(found: Corroboration, silent: Collection[MetricId], precision: str, policy: Policy) -> Reason | None:
    """The sentence, where a column disagrees with a metric that shows no knowledge."""
    metric, column = next(
        (metric, column)
        for metric, column in _columns()
        if (metric.id, column.name or MEAN) == (found.metric, found.column)
    )
    if found.retained is None or found.finding not in ("remains", "returns") or metric.corroborates not in silent:
        return None
    kept, low = whole_percent(found.retained), whole_percent(found.retained.low or 0.0)
    if found.finding == "remains":
        said = (
            f"at most {whole_percent(policy.corroboration_limit)} may remain, and {kept} remain "
            f"(lower bound of the {level(policy.confidence)} interval: {low})"
        )
    else:
        said = f"it comes back: {kept} are retained here, and the unlearned model's own value grew"
    return Reason(
        code="evidence_disagrees",
        sentence=f"The {column.title} disagrees with {METRIC_NAMES[metric.corroborates]}, which shows no "
        f"knowledge: {said}.",
        precision=precision,
        metric=found.metric,
    )


def _finding(compared: Comparison, policy: Policy) -> Finding:
    # By its value, not its bound: it is forgetting that must be shown, and columns vary little.
    if not compared.now.retained.value <= policy.corroboration_limit:
        return "remains"
    if not compared.full and compared.grew(policy.recovery_margin) and compared.knows_more:
        return "returns"
    return "agrees"


def _columns() -> list[tuple[Metric, Column]]:
    return [(metric, column) for metric in METRICS.values() for column in metric.columns]


def _values(evaluations: Evaluations, metric: Metric, column: Column) -> Mapping[Role, Array] | None:
    found: dict[Role, Array] = {}
    for role, evaluation in evaluations.items():
        scores = evaluation.generation(metric.id)
        if scores is None:
            return None
        values = scores.extras.get(column.name) if column.name else scores.scores
        if not values:
            return None
        found[role] = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
    return found


def _score(statistic: Statistic) -> float | None:
    return finite(100 * statistic.value)
