"""A report as rows of text: the table that Markdown, the terminal and the demo share."""

from collections.abc import Iterable
from typing import NamedTuple

from app.catalog.metrics import METRIC_NAMES
from app.judgement.figures import excluding, narrow_span, score, score_with_auc, whole_percent
from app.judgement.verdict import MetricJudgement, Reason
from app.reports.model import AuditReport

HEADER = (
    "precision", "metric", "original", "unlearned", "reference", "retained", "raw", "raw / full", "recovery",
    "own gain", "outcome",
)  # fmt: skip
EXPLANATION = (
    "Scores are x100. retained is what the policy judges, at the same precision: what lies beyond the reference if "
    "there is one, else unlearned / original, which is shown under raw; raw / full divides by the original in full "
    "precision. For KnowMem retain it is the utility kept. recovery: how retained grew over full precision, in "
    "points. own gain: how much more the unlearned model itself knows than in full precision, in points of what the "
    "original knows there; more than the number after < is excluded (one-sided)."
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


def rows(report: AuditReport) -> list[Row]:
    """The table: for each precision its forget metrics, KnowMem on retain, and its outcome."""
    found: list[Row] = []
    for judged in report.precisions:
        found += [_metric_row(judged.precision, metric) for metric in judged.metrics]
        scores = judged.knowmem_retain
        if scores:
            found.append(
                Row(
                    judged.precision,
                    METRIC_NAMES["knowmem_retain"],
                    score(scores.get("original")),
                    score(scores.get("unlearned")),
                    score(scores.get("retrained")),
                    whole_percent(judged.utility),
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


def corroboration(report: AuditReport) -> list[tuple[str, ...]]:
    """What the columns beside the metrics show, as rows under `CORROBORATION_HEADER`; empty if none was measured."""
    return [
        (
            judged.precision,
            METRIC_NAMES[found.metric],
            found.column.replace("_", " "),
            score(found.original),
            score(found.unlearned),
            score(found.reference),
            whole_percent(found.retained),
            excluding(found.gain, found.excluded),
            found.finding.replace("_", " "),
        )
        for judged in report.precisions
        for found in judged.corroboration
    ]


def grouped(reasons: Iterable[Reason]) -> list[tuple[Reason, list[str]]]:
    """Reasons with the precisions that they apply to; one that is the same at several is listed once."""
    found: dict[tuple[str, str], tuple[Reason, list[str]]] = {}
    for reason in reasons:
        found.setdefault((reason.code, reason.sentence), (reason, []))[1].append(reason.precision)
    return list(found.values())


def _metric_row(precision: str, metric: MetricJudgement) -> Row:
    return Row(
        precision,
        METRIC_NAMES[metric.metric],
        score_with_auc(metric.original, metric.auc.get("original")),
        score_with_auc(metric.unlearned, metric.auc.get("unlearned")),
        score_with_auc(metric.reference, metric.auc.get("retrained")),
        whole_percent(metric.retained),
        whole_percent(metric.raw),
        whole_percent(metric.raw_to_full_original),
        narrow_span(metric.recovery),
        excluding(metric.gain, metric.excluded),
        (metric.outcome or "does not count").replace("_", " "),
    )
