"""The model card that goes with a new checkpoint, with the verdict once there is one."""

from app.evidence.unlearning import Unlearned
from app.reports.model import AuditReport
from app.reports.rendering.markdown import table
from app.reports.rendering.model_card import model_card
from app.reports.rendering.table import HEADER, rows


def card(result: Unlearned, report: AuditReport | None) -> str:
    """What was done to which model, and how it was judged.

    Args:
        report: The report of this checkpoint's audit; None while there is none, which the card then says.
    """
    return model_card(result) if report is None else model_card(result, _verdict(report))


def _verdict(report: AuditReport) -> str:
    missing = "\n".join(f"- {line}" for line in report.not_tested)
    return (
        f"**{report.verdict.upper().replace('_', ' ')}**. {report.sentence} Audit {report.audit.id}, policy"
        f" `{report.policy_digest}`.\n\n{table(HEADER, rows(report))}\nNot tested:\n\n{missing}"
    )
