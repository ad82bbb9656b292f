"""The rules of the verdict: the outcome at each precision, and of the audit (README.md).

Each forget metric that counts (`counting.py`) is judged alone (`metrics.py`); the worst one decides a precision's
outcome, and the worst outcome is the audit's verdict. Each precision is judged for what it is: a model that is broken
in full precision and knows again when quantized is `collapsed` there and `recovered` here. What rules out `robust`
although every metric supports it is in `doubts.py` and `corroboration.py`.
"""

from collections.abc import Mapping, Sequence

from app.catalog.metrics import FORGET_METRICS, METRIC_NAMES, MetricId
from app.evidence.evaluation import ROLES, Evaluation, Role
from app.judgement import missed
from app.judgement.corroboration import Measured, disagreement, judge_column, measured
from app.judgement.counting import measure
from app.judgement.doubts import doubts
from app.judgement.figures import span
from app.judgement.metrics import Case
from app.judgement.policy import Policy
from app.judgement.statistics.comparison import Levels
from app.judgement.statistics.intervals import estimate
from app.judgement.statistics.retention import Evaluations, means, utility
from app.judgement.utility import UtilityCheck
from app.judgement.verdict import (
    BADNESS,
    FULL,
    Corroboration,
    Failure,
    Gathered,
    Judgement,
    MetricJudgement,
    Outcome,
    PrecisionJudgement,
    Reason,
    Results,
    Tests,
)
from app.judgement.weights import DOUBTS, Weights


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
        metrics: the plan's, as requested: one that was not measured is missing.
        references: constants of a retrained model that came with the forget set (VerbMem and KnowMem as fractions,
            PrivLeak as an AUC); a retrained checkpoint in `results` takes precedence.
        weights: where the pair's tensors differ, if they do, as `weights.compare` finds.

    Raises:
        ValueError: the plan has no full precision.
    """
    if FULL not in precisions:
        raise ValueError("a plan without full precision cannot be judged: recovery is measured against it")
    judges = [_Judge(results, metrics, policy, references or {}, precision, weights) for precision in precisions]
    tests = Tests(
        recovered=sum(len(one.cases) for one in judges if not one.full),
        not_forgotten=sum(not case.lost for one in judges for case in one.cases),
        collapsed=sum(one.utility.known for one in judges if one.utility is not None),
        corroboration=sum(column.counts(policy) for one in judges if not one.full for column in one.columns),
    )
    judged = [one.judgement(tests) for one in judges]
    verdict = max((j.outcome for j in judged), key=BADNESS.__getitem__)
    decisive = [reason for j in judged if j.outcome == verdict for reason in j.reasons]
    if verdict == "robust" and set(precisions) == {FULL}:
        verdict = "inconclusive"
        sentence = "The plan has no precision but full, so what quantization does was not tested."
        decisive = [Reason(code="nothing_quantized", sentence=sentence, precision=FULL)]
    elif verdict == "robust" and weights in DOUBTS:
        verdict = "inconclusive"
        decisive = [Reason(code=DOUBTS[weights].code, sentence=DOUBTS[weights].sentence, precision=FULL)]
    return Judgement(
        verdict=verdict,
        reasons=decisive,
        precisions=judged,
        tests=tests,
        disagreements=[reason for one in judges for reason in one.disagreements],
        missed=missed.sentences(judged, tests, policy),
    )


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
        self.precision, self.weights, self.full = precision, weights, precision == FULL
        self.gathered = Gathered(precision)
        self.cases: list[Case] = []
        self.uncounted: list[MetricJudgement] = []
        self.columns: list[Measured] = []
        self.utility: UtilityCheck | None = None
        self.disagreements: list[Reason] = []
        here = self._evaluations(precision)
        whole = here if self.full else self._evaluations(FULL)
        self.pair = None if here is None or whole is None else (here, whole)
        if self.pair is not None:
            self._measure(*self.pair)

    def _measure(self, here: Evaluations, full: Evaluations) -> None:
        """What can be judged here."""
        for metric in FORGET_METRICS:
            if metric in self.metrics:
                found = measure(metric, here, full, self.policy, self.references, self.gathered)
                if isinstance(found, Case):
                    self.cases.append(found)
                else:
                    self.uncounted.append(found)
        self.columns = measured(here, full)
        self.utility = UtilityCheck(utility(here), utility(full), self.policy, self.gathered, here)

    def judgement(self, tests: Tests) -> PrecisionJudgement:
        judged = self._judgement(tests)
        if self.weights != "same":
            return judged
        sentence = (
            "The unlearned checkpoint has the original's weights, value for value, so nothing was unlearned; if its "
            "scores differ, something else caused that."
        )
        reason = Reason(code="same_weights", sentence=sentence, precision=self.precision)
        return judged.model_copy(update={"outcome": "not_forgotten", "reasons": [reason, *judged.reasons]})

    def _judgement(self, tests: Tests) -> PrecisionJudgement:
        if self.pair is None or self.utility is None:
            return PrecisionJudgement(
                precision=self.precision,
                outcome="inconclusive",
                utility=None,
                knowmem_retain={},
                metrics=[],
                reasons=self.gathered.reasons,
            )
        here, full = self.pair
        error = 1 - self.policy.confidence
        levels = Levels(
            confidence=self.policy.confidence,
            excluded=error,
            remains=error / max(1, tests.not_forgotten),
            returns=error / max(1, tests.recovered),
        )
        metrics = [case.judgement(levels, self.gathered, self.full) for case in self.cases]
        outcome = self._outcome([m.outcome for m in metrics if m.outcome is not None], error / max(1, tests.collapsed))
        shared = levels._replace(returns=error / max(1, tests.corroboration))
        columns = [judge_column(one, self.policy, shared, full=self.full) for one in self.columns]
        if outcome in ("robust", "inconclusive"):
            counted = {case.metric for case in self.cases if not case.lost}
            found = [
                *doubts(here, full, self.metrics, self.policy, self.references, self.precision, counted),
                *self._disagreements(columns, [*metrics, *self.uncounted]),
            ]
            self.gathered.reasons += found
            outcome = "inconclusive" if found or self.gathered.incomplete else outcome
        if outcome == "robust" and self.weights != "same":
            self._robust(metrics)
        kept = utility(here)
        order = {metric: number for number, metric in enumerate(FORGET_METRICS)}
        return PrecisionJudgement(
            precision=self.precision,
            outcome=outcome,
            utility=None if kept is None else estimate(kept.raw, self.policy.confidence, 0.0),
            knowmem_retain={role: 100 * mean for role, mean in means(here, "knowmem_retain").items()},
            metrics=sorted([*metrics, *self.uncounted], key=lambda judged: order[judged.metric]),
            corroboration=columns,
            reasons=self.gathered.reasons,
        )

    def _evaluations(self, precision: str) -> Evaluations | None:
        """The evaluations at a precision by role; None, with reasons, when one of them failed."""
        found: dict[Role, Evaluation] = {}
        complete = True
        for role in ROLES:
            result = self.results.get((role, precision))
            if isinstance(result, Failure):
                complete = False
                self.gathered.because(
                    result.code, f"The {role} checkpoint was not evaluated at {precision}: {result.detail}"
                )
            elif result is not None:
                found[role] = result
        return found if complete else None

    def _disagreements(self, columns: Sequence[Corroboration], metrics: Sequence[MetricJudgement]) -> list[Reason]:
        """The columns whose metric shows no knowledge here, or cannot show any."""
        silent = {judged.metric for judged in metrics if judged.outcome in ("robust", None)}
        told = [disagreement(column, silent, self.precision, self.policy) for column in columns]
        found = [reason for reason in told if reason is not None]
        self.disagreements = [
            *found,
            *(r for r in self.gathered.reasons if silent - {"privleak"} and r.code == "membership_remains"),
        ]
        return found

    def _outcome(self, outcomes: Sequence[Outcome], tail: float) -> Outcome:
        assert self.utility is not None
        found = self.utility.judge(tail, full=self.full)
        if found.original_collapsed:
            return "inconclusive"
        worst: Outcome = max(outcomes, key=BADNESS.__getitem__, default="inconclusive")
        # What is still known outranks what is broken. Knowledge that comes back to a model that is as broken here as in
        # full precision is of no use to anybody.
        if worst == "not_forgotten" or (worst == "recovered" and not (found.broken and found.broken_in_full)):
            return worst
        if found.broken:
            return "collapsed"
        if not outcomes:
            self.gathered.because("no_metric_counts", "No forget metric counts here, so nothing can be said.")
        if worst != "robust":
            return worst
        return "robust" if found.shown else "inconclusive"

    def _robust(self, metrics: Sequence[MetricJudgement]) -> None:
        if self.full:
            self.gathered.because(
                "forgotten", "In full precision no metric shows more than the policy allows, and utility is kept."
            )
        else:
            grown = [one for one in metrics if one.gain is not None and one.gain.low is not None and one.gain.low > 0]
            some = "; ".join(
                f"{METRIC_NAMES[one.metric]} {span(one.gain)} points" for one in grown if one.gain is not None
            )
            margin = f"{100 * self.policy.recovery_margin:.0f} points"
            self.gathered.because(
                "stays_forgotten",
                f"At {self.precision} some knowledge came back, within the margin of {margin}: {some}."
                if grown
                else f"At {self.precision} no metric shows that anything came back.",
            )
