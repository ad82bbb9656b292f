"""What an audit could have missed, in sentences: the smallest recovery that it excludes, and how many tests it made."""

from collections.abc import Sequence

from app.catalog.metrics import FORGET_METRICS, METRIC_NAMES, MetricId
from app.judgement.figures import hundredfold, level, whole_percent
from app.judgement.policy import Policy
from app.judgement.verdict import FULL, PrecisionJudgement, Tests


def sentences(judged: Sequence[PrecisionJudgement], tests: Tests, policy: Policy) -> list[str]:
    """One sentence for each forget metric that counted at a quantized precision, and one on the tests."""
    found = [sentence for metric in FORGET_METRICS if (sentence := _excluded(metric, judged, policy))]
    if not found:
        return []
    return [*found, *_together(judged, policy), _tests(tests, policy)]


def _together(judged: Sequence[PrecisionJudgement], policy: Policy) -> list[str]:
    """The joint statement, where every metric that counts has a bound at every precision.

    The largest of several 95 % bounds is a 95 % bound of the largest recovery: it can be wrong only if the bound of the
    largest recovery is wrong.
    """
    counted = [m for p in judged for m in p.metrics if p.precision != FULL and m.outcome is not None]
    bounds = [m.excluded for m in counted if m.excluded is not None and m.outcome != "recovered"]
    if len({m.metric for m in counted}) < 2 or len(bounds) < len(counted):
        return []
    return [
        f"Together: a recovery of more than {hundredfold(max(bounds))} points, of whichever metric and at whichever "
        f"precision, is excluded at {level(policy.confidence)}."
    ]


def over_unlearned(judged: Sequence[PrecisionJudgement], policy: Policy) -> list[str]:
    """What PrivLeak above 0 shows: not knowledge, but that the texts were trained against."""
    found = {
        p.precision: m.unlearned
        for p in judged
        for m in p.metrics
        if m.metric == "privleak" and m.unlearned is not None and m.original is not None
        if m.unlearned > -policy.excess_limit * m.original > 0
    }
    if not found:
        return []
    said = ", ".join(f"{value:+.0f} at {precision}" for precision, value in found.items())
    return [
        f"PrivLeak is far above 0 ({said}): over-unlearned. That is not knowledge, but it reveals that the texts "
        "were trained against. The policy does not judge it."
    ]


def _excluded(metric: MetricId, judged: Sequence[PrecisionJudgement], policy: Policy) -> str | None:
    quantized = [(p.precision, m) for p in judged for m in p.metrics if m.metric == metric and p.precision != FULL]
    told = [
        (m.excluded, precision) for precision, m in quantized if m.excluded is not None and m.outcome != "recovered"
    ]
    if not told:
        return None
    most, least_certain = max(told)
    kept = [m.at_most for _, m in quantized if m.at_most is not None and m.outcome != "recovered"]
    remains = f", and more than {whole_percent(max(kept))} retained" if len(kept) == len(told) else ""
    others = [p.precision for p in judged if p.precision != FULL and p.precision not in {name for _, name in told}]
    beside = f" Nothing is excluded at {', '.join(others)}." if others else ""
    return (
        f"{METRIC_NAMES[metric]}: a recovery of more than {hundredfold(most)} points of what the original knows is "
        f"excluded at {level(policy.confidence)}{remains} (least certain at {least_certain}). A smaller one could have "
        f"been missed.{beside}"
    )


def _tests(tests: Tests, policy: Policy) -> str:
    return (
        f"Tests: {tests.recovered} of recovery, {tests.not_forgotten} of retention, {tests.collapsed} of utility, "
        f"{tests.corroboration} of corroborating columns; in each group the chance that any test is wrong is at most "
        f"{level(1 - policy.confidence)}."
    )
