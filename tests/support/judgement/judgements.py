"""Verdicts on models made to fit each outcome, and where to look in them."""

from app.judgement import judge as rules
from app.judgement.policy import Policy
from app.judgement.verdict import Failure, Judgement
from tests.support.judgement.evaluations import MEMBER, OUTSIDER, evaluation, knowing

METRICS = ("verbmem", "knowmem_forget", "knowmem_retain")


def judge(results, precisions, metrics, policy, references=None) -> Judgement:
    """The verdict on a pair whose weights differ; membership is unlearned with the rest, unless something is said."""
    results = {
        (role, precision): knowing(found, MEMBER if role == "original" else OUTSIDER)
        if not isinstance(found, Failure) and found.privleak is None
        else found
        for (role, precision), found in results.items()
    }
    return rules.judge(results, precisions, metrics, policy, references, weights="different")


def at(judgement: Judgement, precision: str):
    return next(p for p in judgement.precisions if p.precision == precision)


def metric(judgement: Judgement, precision: str, name: str):
    return next(m for m in at(judgement, precision).metrics if m.metric == name)


def audit_of(unlearned_full, unlearned_4bit, original=(90, 90, 90), **policy):
    results = {
        ("original", "full"): evaluation(*original),
        ("original", "rtn-int4"): evaluation(*original),
        ("unlearned", "full"): unlearned_full,
        ("unlearned", "rtn-int4"): unlearned_4bit,
    }
    return judge(results, ["full", "rtn-int4"], METRICS, Policy(**policy))


def codes(judgement, precision="rtn-int4"):
    return {reason.code for reason in at(judgement, precision).reasons}
