"""Which of a remediation's trials is the best, and which precision to check first."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.catalog.metrics import MetricId
from app.catalog.precisions import FULL, parse
from app.catalog.quantizers import QUANTIZERS, Precision
from app.evidence.artifacts import PREFIX
from app.judgement.verdict import Outcome
from app.reports.model import AuditReport


def screening_precisions(failed: AuditReport) -> list[str]:
    """`full`, and the cheapest precision at which the audit failed (if it failed at `full` only: the cheapest of those
    that were inconclusive, or of all).

    Never an artifact of the first model: the new model has none.
    """
    own = applied(judged.precision for judged in failed.precisions)
    others = [judged for judged in failed.precisions if judged.precision in own and judged.precision != FULL.name]
    wrong = [judged.precision for judged in others if judged.outcome not in ("robust", "inconclusive")]
    unknown = [judged.precision for judged in others if judged.outcome == "inconclusive"]
    candidates = wrong or unknown or [judged.precision for judged in others]
    return [FULL.name, *sorted(candidates, key=_cost)[:1]]


def applied(precisions: Iterable[str]) -> list[str]:
    """The precisions of a plan that Lethe applies itself: a new model has no artifacts."""
    return [name for name in precisions if not name.startswith(PREFIX)]


def _cost(name: str) -> tuple[int, int]:
    found: Precision = parse(name)
    # Of one method, fewer bits first: a recovery shows there.
    cost = QUANTIZERS[found.method].cost if found.method in QUANTIZERS else -1
    return cost, found.bits or 0


class Worst(NamedTuple):
    """The most that a model kept of what it should have forgotten."""

    retained: float
    """Retention as the policy judges it; 1 is all that the original knows."""
    precision: str
    metric: MetricId


def worst(report: AuditReport, precisions: Sequence[str]) -> Worst | None:
    """The largest retention at these precisions; None where no metric counted."""
    found = [
        Worst(metric.retained.value, judged.precision, metric.metric)
        for judged in report.precisions
        for metric in judged.metrics
        if judged.precision in precisions and metric.outcome is not None and metric.retained is not None
    ]
    return max(found, default=None)


class Standing(NamedTuple):
    """The rank of a trial; the smallest is the best."""

    not_robust: bool
    collapsed: bool
    retained: float
    position: int


def standing(verdict: Outcome, report: AuditReport, precisions: Sequence[str], position: int) -> Standing:
    """Robust models first, models that lost their utility last; among equals, the one that kept least."""
    kept = worst(report, precisions)
    return Standing(
        verdict != "robust", verdict == "collapsed", float("inf") if kept is None else kept.retained, position
    )
