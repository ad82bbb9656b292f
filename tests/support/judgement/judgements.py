"""Verdicts on models made to fit each outcome, and where to look in them."""

from collections.abc import Sequence
from typing import Any

from app.evidence.evaluation import Evaluation
from app.judgement import judge as rules
from app.judgement.policy import Policy
from app.judgement.verdict import Failure, Judgement, MetricJudgement, PrecisionJudgement, Results
from tests.support.judgement.evaluations import MEMBER, OUTSIDER, evaluation, knowing

METRICS = ("verbmem", "knowmem_forget", "knowmem_retain")


def judge(
    results: Results,
    precisions: Sequence[str],
    metrics: Sequence[str],
    policy: Policy,
    references: dict[str, float] | None = None,
) -> Judgement:
    """The verdict on a pair whose weights differ; membership is unlearned with the rest, unless something is said."""
    given: Results = {
        (role, precision): knowing(found, MEMBER if role == "original" else OUTSIDER)
        if not isinstance(found, Failure) and found.membership is None
        else found
        for (role, precision), found in results.items()
    }
    return rules.judge(given, precisions, metrics, policy, references, weights="different")


def at(judgement: Judgement, precision: str) -> PrecisionJudgement:
    return next(p for p in judgement.precisions if p.precision == precision)


def metric(judgement: Judgement, precision: str, name: str) -> MetricJudgement:
    return next(m for m in at(judgement, precision).metrics if m.metric == name)


def audit_of(
    unlearned_full: Evaluation | Failure,
    unlearned_4bit: Evaluation | Failure,
    original: tuple[float, float, float] = (90, 90, 90),
    **policy: Any,
) -> Judgement:
    results: Results = {
        ("original", "full"): evaluation(*original),
        ("original", "rtn-int4"): evaluation(*original),
        ("unlearned", "full"): unlearned_full,
        ("unlearned", "rtn-int4"): unlearned_4bit,
    }
    return judge(results, ["full", "rtn-int4"], METRICS, Policy.model_validate(policy))


def codes(judgement: Judgement, precision: str = "rtn-int4") -> set[str]:
    return {reason.code for reason in at(judgement, precision).reasons}
