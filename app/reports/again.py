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

    `robust` is not said of evidence that an earlier suite measured without what keeps a checkpoint's own files from
    hiding what it knows: that is `inconclusive`, whatever the scores.

    Args:
        audit: The one that the new report is of.
        from_file: Whether the report came from somebody's file, and not from this service's own records.
    """
    report = make_report(
        audit=audit,
        checkpoints=stored.checkpoints,
        forget_set=stored.forget_set,
        plan=stored.plan,
        policy=policy,
        # All of it was there before this judgement asked for it.
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
        # What an earlier version raised an alarm about, and this one finds no more, is to be looked at all the same.
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
        "and window, compared no configs and counted repeated items: what a model knows may have been hidden from it. "
        "Audit the pair anew."
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
    # As beside every doubt, no reason says that what was forgotten is.
    reasons = [one for one in judged.reasons if one.code not in ("forgotten", "stays_forgotten")]
    reasons.append(Reason(code=EARLIER_SUITE, sentence=sentence, precision=judged.precision))
    return judged.model_copy(update={"outcome": "inconclusive", "reasons": reasons})
