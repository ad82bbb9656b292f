"""What is retained as the paper tables it (arXiv 2410.16454, Table 1): technique x bits."""

from app.catalog.metrics import METRIC_NAMES
from app.catalog.precisions import PRECISIONS
from app.catalog.quantizers import Precision
from app.judgement.figures import hundredfold, whole_percent
from app.judgement.verdict import PrecisionJudgement
from app.reports.model import AuditReport

Row = tuple[str, ...]


def table(report: AuditReport) -> tuple[Row, list[Row]] | None:
    """(header, rows): what is retained by each technique at each bit width; None for fewer than two techniques.

    A cell holds the forget metrics in the order of `caption`, each as the policy judges it.
    """
    cells: dict[str, dict[int | None, str]] = {}
    for judged in report.precisions:
        base, at, source = judged.precision.partition("@")
        precision = PRECISIONS.get(base)
        if precision is not None:
            cells.setdefault(_technique(precision) + at + source, {})[precision.bits] = _cell(judged)
    widths = sorted({bits for row in cells.values() for bits in row if bits is not None}, reverse=True)
    if len(cells) < 3:
        return None
    header = ("technique", "full", *(f"{bits} bits" for bits in widths))
    return header, [(name, row.get(None, ""), *(row.get(bits, "") for bits in widths)) for name, row in cells.items()]


def caption(report: AuditReport) -> str:
    """What the cells hold, and that each was proven."""
    metrics = " / ".join(METRIC_NAMES[metric.metric] for metric in report.precisions[0].metrics)
    quantized = [evidence for evidence in report.evidence if evidence.precision != "full"]
    proofs = [found.evaluation.census for found in quantized if found.evaluation and found.evaluation.census]
    proven = f"{len(proofs)} of {len(quantized)} quantized evaluations are proven by a census"
    if proofs:
        proven += f", which covers at least {whole_percent(min(proof.coverage for proof in proofs))} of the parameters"
    return f"Forget knowledge retained in %: {metrics}. {proven}."


def _technique(precision: Precision) -> str:
    """The name without its bits: `rtn-int4-g128` is `rtn-g128`; with them where they define the technique."""
    if precision.method == "bnb":
        return precision.name
    parts = (part for part in precision.name.split("-") if not part.startswith(("int", "q4", "q8")))
    return "-".join(parts)


def _cell(judged: PrecisionJudgement) -> str:
    kept = [metric.retained for metric in judged.metrics]
    if not kept:
        return judged.outcome
    return " / ".join(hundredfold(value) for value in kept)
