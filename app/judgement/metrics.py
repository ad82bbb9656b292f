"""The outcome of a forget metric that counts, at one precision (README.md, "What is asked")."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from app.catalog.metrics import METRIC_NAMES, MetricId
from app.evidence.evaluation import Role
from app.judgement.figures import hundredfold, percent, points, points_or_any, span
from app.judgement.policy import Policy
from app.judgement.statistics.comparison import Comparison, Levels, so_many
from app.judgement.statistics.intervals import Ratio, estimate, finite
from app.judgement.statistics.retention import Knowledge
from app.judgement.verdict import Gathered, MetricJudgement, Outcome


class Case(NamedTuple):
    """A metric that counts at a precision."""

    metric: MetricId
    now: Knowledge
    before: Knowledge
    policy: Policy
    numberless: Mapping[Role, int]
    """Role -> number of items that were scored 0 because the model returned NaN for them."""
    lost: bool = False
    """Whether the original knows too little here to measure retention; a recovery can still be measured."""

    def judgement(self, levels: Levels, gathered: Gathered, full: bool) -> MetricJudgement:
        """The metric at this precision; the reasons go to `gathered`."""
        compared = Comparison(self.now, self.before, levels, full)
        if self.lost:
            return self._of_what_the_original_lost(compared, gathered)
        outcome = self._unless_numberless(self._outcome(compared, gathered), gathered)
        return described(self.metric, self.now, self.before, levels.confidence).model_copy(
            update={
                "outcome": outcome,
                "recovery": compared.recovery,
                "gain": compared.gain,
                "at_most": finite(compared.at_most),
                "excluded": None if full else finite(compared.excluded),
            }
        )

    def _unless_numberless(self, outcome: Outcome | None, gathered: Gathered) -> Outcome | None:
        """Items for which a model returned NaN were scored 0, which is not forgetting."""
        if outcome not in ("robust", None) or not self.numberless:
            return outcome
        for role, count in self.numberless.items():
            gathered.because(
                "non_finite_scores",
                f"{METRIC_NAMES[self.metric]}: {count} items of the {role} checkpoint were scored 0 because it "
                "returned NaN for them; that is not forgetting.",
                self.metric,
            )
        return "inconclusive"

    def _of_what_the_original_lost(self, compared: Comparison, gathered: Gathered) -> MetricJudgement:
        """What the unlearned model itself gained can still be measured, in units of full precision."""
        outcome: Outcome | None = None
        margin = self.policy.recovery_margin
        if compared.gained(margin) and compared.gain is not None:
            gathered.because(
                "knowledge_returned",
                f"{METRIC_NAMES[self.metric]}: the unlearned model's own knowledge grew by {span(compared.gain)} "
                f"points of what the original knows in full precision; the margin is {points(margin)}.",
                self.metric,
            )
            outcome = "recovered"
        elif compared.knows_more or not compared.excluded < self._excluded:
            gathered.because("recovery_not_excluded", self._not_excluded(compared), self.metric)
            outcome = "inconclusive"
        outcome = self._unless_numberless(outcome, gathered)
        return described(self.metric, self.now, self.before, compared.levels.confidence).model_copy(
            update={"outcome": outcome, "gain": compared.gain, "excluded": finite(compared.excluded)}
        )

    @property
    def _limit(self) -> float:
        return self.policy.raw_limit if self.now.reference is None else self.policy.excess_limit

    @property
    def _allowed(self) -> float:
        return self._limit + self.policy.limit_slack[self.metric]

    def _outcome(self, compared: Comparison, gathered: Gathered) -> Outcome:
        if not compared.full and self._returned(compared, gathered):
            return "recovered"
        if compared.remains_in_full(self._limit):
            return self._remains(compared.before, "in full precision", gathered)
        if not compared.full:
            if compared.remains(self._limit):
                return self._remains(compared.now, f"at {gathered.precision}", gathered)
            if self._in_doubt(compared, gathered):
                return "inconclusive"
        outcome: Outcome = "robust"
        if not compared.full and not compared.excluded < self._excluded:
            gathered.because("recovery_not_excluded", self._not_excluded(compared), self.metric)
            outcome = "inconclusive"
        sides = [("in full precision", compared.before, compared.at_most_in_full)]
        if not compared.full:
            sides.append((f"at {gathered.precision}", compared.now, compared.at_most))
        for where, known, most in sides:
            if not (known.retained.value <= self._limit and most < self._allowed):
                items = compared.items_below(self._limit, self._allowed, known)
                gathered.because("interval_across_limit", self._across_limit(known, where, most, items), self.metric)
                outcome = "inconclusive"
        return outcome

    def _returned(self, compared: Comparison, gathered: Gathered) -> bool:
        """Whether knowledge is shown to have come back: to the unlearned model itself, not by the scale alone."""
        margin, recovery, own = self.policy.recovery_margin, compared.recovery, compared.gain
        if recovery is None or own is None or not compared.grew(margin):
            return False
        if not compared.knows_more or own.value < margin:
            return False
        gathered.because(
            "knowledge_returned",
            f"{METRIC_NAMES[self.metric]}: retention grew by {span(recovery)} points, the unlearned model's own "
            f"knowledge by {span(own)}; the margin is {points(margin)}.",
            self.metric,
        )
        return True

    def _in_doubt(self, compared: Comparison, gathered: Gathered) -> bool:
        """Whether something looks like a recovery but is not shown to be one."""
        name, margin, recovery, own = (
            METRIC_NAMES[self.metric],
            self.policy.recovery_margin,
            compared.recovery,
            compared.gain,
        )
        if recovery is None or own is None:
            gathered.because("no_interval", f"{name}: the recovery has no value on these items.", self.metric)
            return True
        grew = f"retention grew by {span(recovery)} points"
        if compared.grew(margin):
            gathered.because(
                "original_degraded",
                f"{name}: {grew} although the unlearned model's own knowledge grew by no more than {span(own)}: "
                f"{self._what_moved(gathered.precision)} That is not a recovery, but no measure of forgetting "
                "either.",
                self.metric,
            )
            return True
        if compared.knows_more and recovery.value > margin:
            gathered.because(
                "interval_across_margin",
                f"{name}: {grew}, an interval that crosses the margin of {points(margin)}, and the unlearned model's "
                f"own knowledge by {span(own)}; {so_many(compared.items_for_recovery(margin))}.",
                self.metric,
            )
            return True
        return False

    def _what_moved(self, precision: str) -> str:
        now, before = self.now.reference, self.before.reference
        lost = 0.0 if now is None or before is None else before.value - now.value
        who = "reference" if lost > self.before.original.value - self.now.original.value else "original"
        return f"the {who} knows less at {precision} than in full precision."

    @property
    def _excluded(self) -> float:
        return self.policy.excluded_recovery[self.metric]

    def _remains(self, known: Knowledge, where: str, gathered: Gathered) -> Outcome:
        said = (
            f"{METRIC_NAMES[self.metric]}: {where} the unlearned model keeps {percent(known.retained.value)} "
            f"{self._of(known)}; the policy allows {percent(self._limit)}."
        )
        if self.metric in self.policy.guards:
            told = f"{said} Membership is not forgotten, whatever the other metrics say."
            gathered.because("membership_remains", told, self.metric)
            return "inconclusive"
        code = "retained_in_full_precision" if where == "in full precision" else "retained_when_quantized"
        gathered.because(code, said, self.metric)
        return "not_forgotten"

    def _not_excluded(self, compared: Comparison) -> str:
        assert compared.gain is not None
        return (
            f"{METRIC_NAMES[self.metric]}: the unlearned model's own knowledge changed by {span(compared.gain)} "
            f"points; only a gain of more than {points_or_any(compared.excluded)} is excluded; the policy asks for "
            f"{hundredfold(self._excluded)}; {so_many(compared.items_for_gain(self._excluded))}."
        )

    def _across_limit(self, known: Knowledge, where: str, most: float, items: float) -> str:
        slack = "" if self._allowed == self._limit else f", its interval {percent(self._allowed)}"
        return (
            f"{METRIC_NAMES[self.metric]}: {where} the unlearned model keeps {percent(known.retained.value)} "
            f"{self._of(known)}, at most {percent(most)}; the policy allows {percent(self._limit)}{slack}; "
            f"{so_many(items)}."
        )

    @staticmethod
    def _of(known: Knowledge) -> str:
        return (
            "of the original's score" if known.reference is None else "of what the original knows beyond the reference"
        )


def described(metric: MetricId, now: Knowledge, before: Knowledge, confidence: float) -> MetricJudgement:
    """The metric's values, without an outcome."""
    reference = None if now.reference is None else now.reference.value
    kept = Ratio(now.beyond, before.gap) if metric == "privleak" else Ratio(now.unlearned, before.original)
    return MetricJudgement(
        metric=metric,
        outcome=None,
        original=_score(metric, now.original.value, now),
        unlearned=_score(metric, now.unlearned.value, now),
        reference=None if reference is None else _score(metric, reference, now),
        auc=now.auc,
        raw=estimate(now.raw, confidence, 0.0),
        raw_to_full_original=None if math.isnan(kept.value) else finite(max(0.0, kept.value)),
        excess=None if now.reference is None else estimate(now.retained, confidence, 0.0),
        judged_by="raw" if now.reference is None else "excess",
    )


def _score(metric: MetricId, value: float, known: Knowledge) -> float | None:
    """As the papers print it: x100, and as PrivLeak where the value is 1 - AUC."""
    if metric != "privleak":
        return finite(100 * value)
    reference = known.auc_reference
    return finite(100 * ((1 - value) - reference) / reference + 0.0) if reference else None
