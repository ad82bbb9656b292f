"""A report as rows of text: the one table that markdown, the terminal and the demo show."""

from collections.abc import Iterable
from typing import NamedTuple

from app.catalog.metrics import METRIC_NAMES
from app.evidence.evaluation import Role
from app.judgement.intervals import Estimate
from app.judgement.verdict import MetricJudgement, Reason
from app.reports.model import Report

HEADER = (
    "precision", "metric", "original", "unlearned", "reference", "retained", "raw", "raw / full", "recovery",
    "own gain", "outcome",
)  # fmt: skip
EXPLANATION = (
    "Scores are x100. retained is what the policy judges, at the same precision: what lies beyond the reference if "
    "there is one, else unlearned / original, which stands under raw; raw / full divides by the original in full "
    "precision. For KnowMem retain it is the utility kept. recovery: how retained grew over full precision, in "
    "points. own gain: how much more the unlearned model itself knows than in full precision, in points of what the "
    "original knows there; more than what stands behind < is excluded (one-sided)."
)


class Row(NamedTuple):
    """One metric at one precision, or (metric `all`) the precision's own outcome."""

    precision: str
    metric: str
    original: str = ""
    unlearned: str = ""
    reference: str = ""
    retained: str = ""
    raw: str = ""
    raw_to_full: str = ""
    recovery: str = ""
    gain: str = ""
    outcome: str = ""


def rows(report: Report) -> list[Row]:
    """The table: per precision its forget metrics, KnowMem on retain, and the precision's outcome."""
    found: list[Row] = []
    for judged in report.precisions:
        found += [_metric_row(judged.precision, metric) for metric in judged.metrics]
        scores = judged.knowmem_retain
        if scores:
            found.append(
                Row(
                    judged.precision,
                    METRIC_NAMES["knowmem_retain"],
                    _score(scores.get("original")),
                    _score(scores.get("unlearned")),
                    _score(scores.get("retrained")),
                    _percent(judged.utility),
                    outcome="utility",
                )
            )
        found.append(Row(judged.precision, "all", outcome=judged.outcome.upper().replace("_", " ")))
    return found


CORROBORATION_HEADER = (
    "precision", "metric", "column", "original", "unlearned", "reference", "retained", "own gain", "finding",
)  # fmt: skip
CORROBORATION_EXPLANATION = (
    "Per-item columns from teacher-forced passes over the true text, x100. They decide nothing, but a column that "
    "disagrees with a metric which shows forgetting keeps an audit from being robust."
)


def corroboration(report: Report) -> list[tuple[str, ...]]:
    """What the columns beside the metrics say, as rows under `CORROBORATION_HEADER`; none where none was measured."""
    return [
        (
            judged.precision,
            METRIC_NAMES[found.metric],
            found.column.replace("_", " "),
            _score(found.original),
            _score(found.unlearned),
            _score(found.reference),
            _percent(found.retained),
            _points(found.gain) + ("" if found.excluded is None else f" <{100 * found.excluded:.0f}"),
            found.finding.replace("_", " "),
        )
        for judged in report.precisions
        for found in judged.corroboration
    ]


def grouped(reasons: Iterable[Reason]) -> list[tuple[Reason, list[str]]]:
    """Reasons with the precisions that they hold at; one that is the same at several is said once."""
    found: dict[tuple[str, str], tuple[Reason, list[str]]] = {}
    for reason in reasons:
        found.setdefault((reason.code, reason.sentence), (reason, []))[1].append(reason.precision)
    return list(found.values())


def _metric_row(precision: str, metric: MetricJudgement) -> Row:
    to_full = metric.raw_to_full_original
    return Row(
        precision,
        METRIC_NAMES[metric.metric],
        _with_auc(metric.original, metric, "original"),
        _with_auc(metric.unlearned, metric, "unlearned"),
        _with_auc(metric.reference, metric, "retrained"),
        _percent(metric.retained),
        _percent(metric.raw),
        "–" if to_full is None else f"{100 * to_full:.0f} %",
        _points(metric.recovery),
        _points(metric.gain) + ("" if metric.excluded is None else f" <{100 * metric.excluded:.0f}"),
        (metric.outcome or "does not count").replace("_", " "),
    )


def _with_auc(score: float | None, metric: MetricJudgement, role: Role) -> str:
    """PrivLeak explodes for small references, so its AUC always stands beside it."""
    if role not in metric.auc:
        return _score(score)
    auc = f"AUC {metric.auc[role]:.2f}"
    return auc if score is None else f"{_score(score)} ({auc})"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _percent(value: Estimate | None) -> str:
    return "–" if value is None else f"{100 * value.value:.0f} %"


def _points(value: Estimate | None) -> str:
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{100 * value.value:+.0f}"
    return f"{100 * value.value:+.0f} [{100 * value.low:+.0f}, {100 * value.high:+.0f}]"
