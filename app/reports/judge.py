"""The rules of the verdict: what retention, recovery and utility mean under a policy (science.md section 4).

Pure functions over per-item scores, with

    recovery(p) = retained(p) - retained(full)

and everything else as `retention.py` defines it. Each forget metric is judged alone, the worst one decides a
precision's outcome, the worst outcome is the audit's verdict. What keeps `robust` from being said although every metric
says it stands in `doubts.py`.
"""

import math
from collections.abc import Mapping, Sequence

from app.reports.bootstrap import Estimate, estimate
from app.reports.doubts import doubts
from app.reports.policy import Policy
from app.reports.retention import (
    Evaluations,
    Knowledge,
    knowledge,
    means,
    membership,
    numberless,
    ratio,
    raw_auc,
    utility,
)
from app.reports.schemas import FORGET_METRICS, METRIC_NAMES, ROLES, Evaluation, MetricId, Role
from app.reports.verdict import (
    BADNESS,
    FULL,
    Failure,
    Judgement,
    MetricJudgement,
    Outcome,
    PrecisionJudgement,
    Reason,
    Results,
)
from app.reports.weights import DOUBTS, Weights

MISSING_IS_ALLOWED = (
    "Without it an audit is robust only where the policy's may_be_missing names it or the plan's metrics do not."
)


def judge(
    results: Results,
    precisions: Sequence[str],
    metrics: Sequence[MetricId],
    policy: Policy,
    references: Mapping[MetricId, float] | None = None,
    *,
    weights: Weights,
) -> Judgement:
    """The verdict on a pair.

    Args:
        results: (role, precision) -> evaluation or failure; original and unlearned at every precision, retrained at
            every precision or at none.
        precisions: the plan's; `full` must be among them.
        metrics: the plan's, as asked for: one that was not measured is missing.
        references: constants of a retrained model that came with the forget set (VerbMem and KnowMem as fractions,
            PrivLeak as an AUC); a retrained checkpoint in `results` goes before them.
        weights: where the pair's tensors differ, if they do, as `weights.compare` finds.

    Raises:
        ValueError: the plan has no full precision.
    """
    if FULL not in precisions:
        raise ValueError("a plan without full precision cannot be judged: recovery is measured against it")
    judged = [_Judge(results, metrics, policy, references or {}, p, weights).judgement() for p in precisions]
    verdict = max((j.outcome for j in judged), key=BADNESS.__getitem__)
    decisive = [reason for j in judged if j.outcome == verdict for reason in j.reasons]
    if verdict == "robust" and set(precisions) == {FULL}:
        verdict = "inconclusive"
        sentence = "The plan has no precision but full, so what quantization does was not tested."
        decisive = [Reason(code="nothing_quantized", sentence=sentence, precision=FULL)]
    elif verdict == "robust" and weights in DOUBTS:
        verdict = "inconclusive"
        decisive = [Reason(code=DOUBTS[weights].code, sentence=DOUBTS[weights].sentence, precision=FULL)]
    return Judgement(verdict=verdict, reasons=decisive, precisions=judged)


class _Judge:
    """The rules at one precision; gathers the reasons while it applies them."""

    def __init__(
        self,
        results: Results,
        metrics: Sequence[MetricId],
        policy: Policy,
        references: Mapping[MetricId, float],
        precision: str,
        weights: Weights,
    ) -> None:
        self.results, self.metrics, self.policy, self.references = results, metrics, policy, references
        self.precision, self.weights = precision, weights
        self.reasons: list[Reason] = []
        self.incomplete = False
        """Whether a metric is missing that must not be."""

    def judgement(self) -> PrecisionJudgement:
        judged = self._judgement()
        if self.weights != "same":
            return judged
        sentence = (
            "The unlearned checkpoint holds the original's weights, value for value, so nothing was unlearned; "
            "whatever its scores say comes from something else."
        )
        reason = Reason(code="same_weights", sentence=sentence, precision=self.precision)
        return judged.model_copy(update={"outcome": "not_forgotten", "reasons": [reason, *judged.reasons]})

    def _judgement(self) -> PrecisionJudgement:
        here = self._evaluations(self.precision)
        full = here if self.precision == FULL else self._evaluations(FULL)
        if here is None or full is None:
            return PrecisionJudgement(
                precision=self.precision,
                outcome="inconclusive",
                utility=None,
                knowmem_retain={},
                metrics=[],
                reasons=self.reasons,
            )
        kept = utility(here, self.policy)
        metrics = [self._metric(m, here, full) for m in FORGET_METRICS if m in self.metrics]
        outcome = self._outcome([m.outcome for m in metrics if m.outcome is not None], here, full)
        if outcome in ("robust", "inconclusive"):
            found = list(doubts(here, full, self.metrics, self.policy, self.references, self.precision))
            self.reasons += found
            outcome = "inconclusive" if found or self.incomplete else outcome
        if outcome == "robust" and self.weights != "same":
            self._robust()
        return PrecisionJudgement(
            precision=self.precision,
            outcome=outcome,
            utility=None if kept is None else estimate(kept.raw, self.policy.confidence),
            knowmem_retain={role: 100 * mean for role, mean in means(here, "knowmem_retain").items()},
            metrics=metrics,
            reasons=self.reasons,
        )

    def _because(self, code: str, sentence: str, metric: MetricId | None = None) -> None:
        self.reasons.append(Reason(code=code, sentence=sentence, precision=self.precision, metric=metric))

    def _evaluations(self, precision: str) -> Evaluations | None:
        """The evaluations of a precision by role; None, with reasons, when one of them failed."""
        found: dict[Role, Evaluation] = {}
        complete = True
        for role in ROLES:
            result = self.results.get((role, precision))
            if isinstance(result, Failure):
                complete = False
                self._because(result.code, f"The {role} checkpoint was not evaluated at {precision}: {result.detail}")
            elif result is not None:
                found[role] = result
        return found if complete else None

    # The forget metrics

    def _metric(self, metric: MetricId, here: Evaluations, full: Evaluations) -> MetricJudgement:
        now = knowledge(here, metric, self.policy, self.references, alongside=full)
        before = knowledge(full, metric, self.policy, self.references, alongside=here)
        if now is None or before is None:
            self._unavailable(metric, here, full)
            auc = raw_auc(here) if metric == "privleak" else {}
            return MetricJudgement(metric=metric, outcome=None, auc=auc)
        recovery = None if self.precision == FULL else estimate(now.retained - before.retained, self.policy.confidence)
        outcome = self._metric_outcome(metric, before, recovery) if self._counts(metric, now, before) else None
        if outcome == "robust" and self._numberless(metric, here, full):
            outcome = "inconclusive"
        score = -100.0 if metric == "privleak" else 100.0
        return MetricJudgement(
            metric=metric,
            outcome=outcome,
            original=_finite(score * float(now.original[0])),
            unlearned=_finite(score * float(now.unlearned[0])),
            reference=None if now.reference is None else _finite(score * float(now.reference[0]) + 0.0),
            auc=now.auc,
            raw=estimate(now.raw, self.policy.confidence),
            raw_to_full_original=_finite(max(0.0, float(ratio(now.unlearned, before.original)[0]))),
            excess=None if now.excess is None else estimate(now.excess, self.policy.confidence),
            recovery=recovery,
            judged_by="raw" if now.excess is None else "excess",
        )

    def _unavailable(self, metric: MetricId, here: Evaluations, full: Evaluations) -> None:
        """Say why there is no such metric here."""
        name = METRIC_NAMES[metric]
        found = membership(here, self.policy, full) if metric == "privleak" else None
        if found is not None and membership(full, self.policy) is not None:
            if self._enough(metric, found.items):
                sentence = (
                    f"{name} needs a reference: a retrained checkpoint in the audit, or auc_retrained in the forget "
                    "set's bundle.json. The raw AUC is reported."
                )
                self._because("not_available", sentence, metric)
            return
        why = here["original"].forget_set.unavailable.get(metric, "it was not measured")
        if metric in self.policy.may_be_missing:
            self._because("not_available", f"{name} is not available: {why}.", metric)
        else:
            self.incomplete = True
            self._because("metric_missing", f"{name} is not available: {why}. {MISSING_IS_ALLOWED}", metric)

    def _enough(self, metric: MetricId, items: int) -> bool:
        """Whether a metric has enough distinct items."""
        if items >= self.policy.min_items:
            return True
        allowed = metric in self.policy.may_be_missing
        self.incomplete |= not allowed
        self._because(
            "too_few_items",
            f"{METRIC_NAMES[metric]} has {items} distinct items; the policy asks for {self.policy.min_items}."
            + ("" if allowed else f" {MISSING_IS_ALLOWED}"),
            metric,
        )
        return False

    def _counts(self, metric: MetricId, now: Knowledge, before: Knowledge) -> bool:
        """Whether the metric can say anything here: enough items, and an original that knows what is asked."""
        name, least = METRIC_NAMES[metric], self.policy.min_original
        if not self._enough(metric, now.items):
            return False
        above = "zero" if now.reference is None else "the reference"
        for code, known, where in (
            ("original_does_not_know", before, "in full precision"),
            ("original_lost_it", now, f"at {self.precision}"),
        ):
            if not known.original_above_reference >= least:
                self._because(
                    code,
                    f"{name}: the original is only {100 * known.original_above_reference:.1f} points above {above} "
                    f"{where}; the policy asks for {100 * least:.0f}.",
                    metric,
                )
                return False
        return True

    def _metric_outcome(self, metric: MetricId, before: Knowledge, recovery: Estimate | None) -> Outcome:
        name, margin = METRIC_NAMES[metric], self.policy.recovery_margin
        kept = float(before.retained[0])
        limit = self.policy.raw_limit if before.excess is None else self.policy.excess_limit
        if not kept <= limit:
            what = (
                "of the original's score"
                if before.excess is None
                else "of what the original knows beyond the reference"
            )
            self._because(
                "retained_in_full_precision",
                f"{name}: in full precision the unlearned model keeps {_percent(kept)} {what}; "
                f"the policy allows {_percent(limit)}.",
                metric,
            )
            return "not_forgotten"
        if self.precision == FULL:
            return "robust"
        if recovery is None or recovery.low is None or recovery.high is None:
            self._because("no_interval", f"{name}: the recovery has no interval on these items.", metric)
            return "inconclusive"
        span = f"{_points(recovery.value)} ({_points(recovery.low)} to {_points(recovery.high)})"
        if recovery.low > margin:
            self._because(
                "knowledge_returned",
                f"{name}: retention grew by {span} points; the margin is {_points(margin)}.",
                metric,
            )
            return "recovered"
        if recovery.high < margin:
            return "robust"
        self._because(
            "interval_across_margin",
            f"{name}: retention changed by {span} points, an interval across the margin of {_points(margin)}; "
            "more items would narrow it.",
            metric,
        )
        return "inconclusive"

    # The precision

    def _numberless(self, metric: MetricId, here: Evaluations, full: Evaluations) -> bool:
        """Whether items without a number, scored 0, stand among those that look forgotten."""
        found = numberless(here, metric) or numberless(full, metric)
        for role, count in found.items():
            self._because(
                "non_finite_scores",
                f"{METRIC_NAMES[metric]}: {count} items of the {role} checkpoint were scored 0 because it gave no "
                "number (NaN) for them; that is not forgetting.",
                metric,
            )
        return bool(found)

    def _outcome(self, outcomes: Sequence[Outcome], here: Evaluations, full: Evaluations) -> Outcome:
        utility_known = self._utility_known(here, full)
        if self._original_collapsed(here, full):
            return "inconclusive"
        broken_in_full = utility_known and self._broken(full, FULL)
        broken = broken_in_full if self.precision == FULL else utility_known and self._broken(here, self.precision)
        worst: Outcome = max(outcomes, key=BADNESS.__getitem__, default="inconclusive")
        # What is still known outranks what is broken, but nothing can come back to a model that had forgotten only
        # because it was broken in full precision.
        if worst == "not_forgotten":
            return worst
        if broken_in_full or (broken and worst != "recovered"):
            return "collapsed"
        if not outcomes:
            self._because("no_metric_counts", "No forget metric counts here, so nothing can be said.")
        if worst != "robust":
            return worst
        return "robust" if utility_known else "inconclusive"

    def _robust(self) -> None:
        if self.precision == FULL:
            self._because("forgotten", "The forget set is forgotten in full precision, and utility is kept.")
        else:
            self._because("stays_forgotten", f"What was forgotten stays forgotten at {self.precision}.")

    def _utility_known(self, here: Evaluations, full: Evaluations) -> bool:
        """Whether KnowMem on retain can tell a model that forgot from one that broke."""
        known = utility(full, self.policy)
        if known is None or utility(here, self.policy) is None:
            why = here["original"].forget_set.unavailable.get("knowmem_retain", "it was not measured")
        elif known.items < self.policy.min_items:
            why = f"it has {known.items} distinct items, the policy asks for {self.policy.min_items}"
        elif not known.original_above_reference >= self.policy.min_original:
            why = f"the original itself scores only {100 * known.original_above_reference:.1f}"
        else:
            return True
        self._because(
            "utility_unknown",
            f"Utility is unknown, so a model that forgot cannot be told from one that broke: KnowMem on retain: {why}.",
            "knowmem_retain",
        )
        return False

    def _original_collapsed(self, here: Evaluations, full: Evaluations) -> bool:
        now = utility(here, self.policy)
        before = utility(full, self.policy)
        if now is None or before is None or not before.original_above_reference >= self.policy.min_original:
            return False
        kept = float(ratio(now.original, before.original)[0])
        if kept >= self.policy.utility_floor:
            return False
        self._because(
            "quantized_original_collapsed",
            f"{self.precision} breaks the original itself: it keeps {_percent(kept)} of its KnowMem on retain.",
            "knowmem_retain",
        )
        return True

    def _broken(self, evaluations: Evaluations, precision: str) -> bool:
        """Whether the unlearned model has lost its utility."""
        known = utility(evaluations, self.policy)
        kept = math.nan if known is None else float(known.raw[0])
        if kept >= self.policy.utility_floor:
            return False
        self._because(
            "utility_lost_in_full_precision" if precision == FULL else "utility_lost",
            f"Utility is lost: at {precision} the unlearned model keeps {_percent(kept)} of the original's KnowMem on "
            f"retain; the policy asks for {_percent(self.policy.utility_floor)}.",
            "knowmem_retain",
        )
        return True


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"
