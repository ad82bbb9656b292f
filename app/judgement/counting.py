"""Whether a forget metric counts at a precision, and what is reported if it does not (README.md, "What is asked")."""

from collections.abc import Mapping

from app.catalog.metrics import METRIC_NAMES, MetricId
from app.judgement.figures import hundredfold, span
from app.judgement.metrics import Case, described
from app.judgement.policy import Policy
from app.judgement.statistics.intervals import estimate
from app.judgement.statistics.retention import Evaluations, Knowledge, knowledge, membership, numberless, raw_auc
from app.judgement.verdict import Gathered, MetricJudgement

MISSING_IS_ALLOWED = (
    "Without it an audit can be robust only if the policy's may_be_missing names it or the plan leaves it out."
)


def measure(
    metric: MetricId,
    here: Evaluations,
    full: Evaluations,
    policy: Policy,
    references: Mapping[MetricId, float],
    gathered: Gathered,
) -> Case | MetricJudgement:
    """The metric as a case if it counts; else what can be said of it, and why it does not count."""
    now = knowledge(here, metric, references, alongside=full)
    before = knowledge(full, metric, references, alongside=here)
    if now is None or before is None:
        _unavailable(metric, here, full, policy, gathered)
        return MetricJudgement(metric=metric, outcome=None, auc=raw_auc(here) if metric == "privleak" else {})
    if not _enough(metric, now.items, policy, gathered):
        return described(metric, now, before, policy.confidence)
    if not _knows(metric, before, None, policy, gathered):
        _grown(metric, now, before, policy, gathered)
        return described(metric, now, before, policy.confidence)
    lost = not _knows(metric, now, gathered.precision, policy, gathered)
    return Case(metric, now, before, policy, numberless(here, metric) or numberless(full, metric), lost)


def _unavailable(metric: MetricId, here: Evaluations, full: Evaluations, policy: Policy, gathered: Gathered) -> None:
    """Add the reason why there is no such metric here."""
    name = METRIC_NAMES[metric]
    found = membership(here, full) if metric == "privleak" else None
    if found is not None and membership(full) is not None:
        if _enough(metric, found["original"].items, policy, gathered):
            sentence = (
                f"{name} needs a reference: a retrained checkpoint in the audit, or auc_retrained in the forget set's "
                "bundle.json. The raw AUC is reported."
            )
            gathered.because("not_available", sentence, metric)
        return
    why = here["original"].forget_set.unavailable.get(metric, "it was not measured")
    if metric in policy.may_be_missing:
        gathered.because("not_available", f"{name} is not available: {why}.", metric)
    else:
        gathered.incomplete = True
        gathered.because("metric_missing", f"{name} is not available: {why}. {MISSING_IS_ALLOWED}", metric)


def _enough(metric: MetricId, items: int, policy: Policy, gathered: Gathered) -> bool:
    """Whether a metric has enough distinct items."""
    if items >= policy.min_items:
        return True
    allowed = metric in policy.may_be_missing
    gathered.incomplete |= not allowed
    gathered.because(
        "too_few_items",
        f"{METRIC_NAMES[metric]} has {items} distinct items; the policy asks for {policy.min_items}."
        + ("" if allowed else f" {MISSING_IS_ALLOWED}"),
        metric,
    )
    return False


def _knows(metric: MetricId, known: Knowledge, precision: str | None, policy: Policy, gathered: Gathered) -> bool:
    """Whether the original knows enough of what is asked, at a precision or (None) in full precision."""
    if known.known >= policy.min_original:
        return True
    above = "zero" if known.reference is None else "the reference"
    where = "in full precision" if precision is None else f"at {precision}"
    gathered.because(
        "original_does_not_know" if precision is None else "original_lost_it",
        f"{METRIC_NAMES[metric]}: the original is only {hundredfold(known.known, 1)} points above {above} {where}; the "
        f"policy asks for {hundredfold(policy.min_original)}.",
        metric,
    )
    return False


def _grown(metric: MetricId, now: Knowledge, before: Knowledge, policy: Policy, gathered: Gathered) -> None:
    """A metric that does not count, because the original knows little, keeps an audit from `robust` if the unlearned
    model itself knows more than in full precision, by more than the margin (relative to the least that would count)."""
    own = estimate(now.unlearned.minus(before.unlearned), policy.confidence)
    if own is None or own.low is None or own.low <= 0 or own.value <= policy.recovery_margin * policy.min_original:
        return
    gathered.incomplete = True
    gathered.because(
        "uncounted_metric_grew",
        f"{METRIC_NAMES[metric]} does not count, and yet the unlearned model's own score grew by {span(own)} points.",
        metric,
    )
