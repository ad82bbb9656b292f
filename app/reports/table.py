"""A report as rows of text: the one table that markdown, the terminal and the demo show."""

from collections.abc import Iterable
from typing import NamedTuple

from app.reports.bootstrap import Estimate
from app.reports.report import Report
from app.reports.schemas import Role
from app.reports.verdict import METRIC_NAMES, MetricJudgement, Reason

HEADER = ("precision", "metric", "original", "unlearned", "reference", "retained", "recovery", "outcome")


class Row(NamedTuple):
    """One metric at one precision; `outcome` is the metric's, the precision's own stands in its utility row."""

    precision: str
    metric: str
    original: str
    unlearned: str
    reference: str
    retained: str
    recovery: str
    outcome: str


def rows(report: Report) -> list[Row]:
    """The table: per precision its forget metrics, then KnowMem on retain with the precision's outcome."""
    found: list[Row] = []
    for judged in report.precisions:
        found += [_metric_row(judged.precision, metric) for metric in judged.metrics]
        scores = judged.knowmem_retain
        found.append(
            Row(
                judged.precision,
                METRIC_NAMES["knowmem_retain"],
                _score(scores.get("original")),
                _score(scores.get("unlearned")),
                _score(scores.get("retrained")),
                _percent(judged.utility),
                "",
                judged.outcome.upper().replace("_", " "),
            )
        )
    return found


def grouped(reasons: Iterable[Reason]) -> list[tuple[Reason, list[str]]]:
    """Reasons with the precisions that they hold at; one that is the same at several is said once."""
    found: dict[tuple[str, str], tuple[Reason, list[str]]] = {}
    for reason in reasons:
        found.setdefault((reason.code, reason.sentence), (reason, []))[1].append(reason.precision)
    return list(found.values())


def _metric_row(precision: str, metric: MetricJudgement) -> Row:
    return Row(
        precision,
        METRIC_NAMES[metric.metric],
        _score(metric.original) if metric.original is not None else _auc(metric, "original"),
        _score(metric.unlearned) if metric.unlearned is not None else _auc(metric, "unlearned"),
        _score(metric.reference),
        _percent(metric.retained),
        _points(metric.recovery),
        (metric.outcome or "does not count").replace("_", " "),
    )


def _auc(metric: MetricJudgement, role: Role) -> str:
    """PrivLeak without a reference shows what there is."""
    return f"AUC {metric.auc[role]:.2f}" if role in metric.auc else "–"


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
