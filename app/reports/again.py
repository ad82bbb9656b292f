"""Judging an audit again: by another policy, or by this version's rules, from the evidence in its report.

Nothing is measured anew, and the earlier report stays as it is.
"""

from app.evidence.evaluation import SUITE_VERSION
from app.judgement.policy import Policy
from app.judgement.verdict import Outcome, PrecisionJudgement, Reason
from app.reports.model import VERDICT_SENTENCES, AuditInfo, AuditReport, JudgedAgain, make_report
from app.reports.stored import StoredReport

PROTECTED = frozenset({"muse-2", "muse-3", SUITE_VERSION})
"""Suites that ran every role with the original's tokenizer, end tokens and window, compared the pair's configs, and
knew which items repeat others."""

EARLIER_SUITE = "measured_by_earlier_suite"

UNSIGNED = (
    "The earlier report came as a file whose signature was not checked, because reports are not signed yet: this "
    "verdict is only as good as that file."
)


def judge_again(stored: StoredReport, policy: Policy, audit: AuditInfo, *, from_file: bool = False) -> AuditReport:
    """A new report on the evidence of an earlier one.

    Evidence from an earlier suite, which did not keep a checkpoint's own files from hiding what the model knows, is
    never `robust`: it is `inconclusive` instead, whatever the scores.

    Args:
        audit: The audit that the new report is about.
        from_file: Whether the report came from a file, not from this service's own records.
    """
    report = make_report(
        audit=audit,
        checkpoints=stored.checkpoints,
        forget_set=stored.forget_set,
        plan=stored.plan,
        policy=policy,
        # All of it existed before this judgement asked for it.
        evidence=[one.model_copy(update={"reused": one.evaluation is not None}) for one in stored.evidence],
        diagnosis=stored.diagnosis,
        artifacts=stored.artifacts,
        judged_again=JudgedAgain(
            report=stored.digest, audit=stored.audit.id, lethe=stored.lethe, policy_digest=stored.policy_digest
        ),
    )
    known = {alarm.code for alarm in report.alarms}
    changes = {
        "notes": [_origin(stored), *([UNSIGNED] if from_file else []), *report.notes],
        # Alarms that an earlier version raised and this one does not are kept: they must be checked all the same.
        "alarms": [*(alarm for alarm in stored.alarms if alarm.code not in known), *report.alarms],
    }
    return _without_robust(report.model_copy(update=changes), stored)


def _origin(stored: StoredReport) -> str:
    of = f"audit {stored.audit.id}" if stored.audit.id else "an audit that ran without the service"
    return (
        f"Judged again from the stored scores of report {stored.digest} ({of}), which Lethe {stored.lethe} wrote under "
        f"policy {stored.policy_digest}. Nothing was measured anew, and the scores were known when this policy was "
        "chosen."
    )


def _without_robust(report: AuditReport, stored: StoredReport) -> AuditReport:
    suites = {one.evaluation.engine.suite for one in stored.evidence if one.evaluation} - PROTECTED
    if not suites:
        return report
    sentence = (
        f"Measured by suite {', '.join(sorted(suites))}, which ran each checkpoint with its own tokenizer, end tokens "
        "and window, compared no configs and counted repeated items: a model may have hidden what it knows. Audit the "
        "pair anew."
    )
    precisions = [_doubted(one, sentence) for one in report.precisions]
    changes: dict[str, object] = {"precisions": precisions}
    if report.verdict in ("robust", "inconclusive"):
        verdict: Outcome = "inconclusive"
        added = [reason for one in precisions for reason in one.reasons if reason.code == EARLIER_SUITE]
        known = report.reasons if report.verdict == verdict else []
        changes |= {"verdict": verdict, "sentence": VERDICT_SENTENCES[verdict], "reasons": [*known, *added]}
    return report.model_copy(update=changes)


def _doubted(judged: PrecisionJudgement, sentence: str) -> PrecisionJudgement:
    if judged.outcome not in ("robust", "inconclusive"):
        return judged
    # As with every doubt, no reason may say that the forget set is forgotten.
    reasons = [one for one in judged.reasons if one.code not in ("forgotten", "stays_forgotten")]
    reasons.append(Reason(code=EARLIER_SUITE, sentence=sentence, precision=judged.precision))
    return judged.model_copy(update={"outcome": "inconclusive", "reasons": reasons})
