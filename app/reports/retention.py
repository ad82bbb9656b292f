"""From per-item scores to knowledge, retention and utility (science.md sections 1, 2 and 4).

For a metric m, the pair (o, u), a precision p and a reference r (a retrained checkpoint at the same precision, or a
constant given with the forget set):

    raw(p)     = m(u, p) / m(o, p)                                    both models at the same precision
    excess(p)  = max(0, (m(u, p) - m(r, p)) / (m(o, p) - m(r, p)))
    utility(p) = KnowMem_retain(u, p) / KnowMem_retain(o, p)

PrivLeak enters as what membership leaks, m = -PrivLeak / 100 = (AUC_ref - AUC) / AUC_ref: 0 for the reference by
construction, near 1 for a memorised forget set; over-unlearned (m below 0) retains nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from app.reports.bootstrap import Array, Series, auc, auc_series, mean_series, privleak, resample_weights
from app.reports.policy import Policy
from app.reports.schemas import Evaluation, GenerationScores, MetricId, PrivLeakScores, Role

Evaluations = Mapping[Role, Evaluation]
"""The evaluations of one precision."""

PRIVLEAK_K = "40"
"""MUSE's k: the least likely 40 % of a text's tokens."""


class Knowledge(NamedTuple):
    """One metric at one precision, as series over the same resamples."""

    items: int
    original: Series
    unlearned: Series
    reference: Series | None
    auc: dict[str, float]
    """PrivLeak only: role -> raw AUC."""

    @property
    def raw(self) -> Series:
        """m(u) / m(o), never below 0."""
        return np.maximum(ratio(self.unlearned, self.original), 0.0)

    @property
    def excess(self) -> Series | None:
        """(m(u) - m(r)) / (m(o) - m(r)), never below 0; None without a reference."""
        if self.reference is None:
            return None
        return np.maximum(ratio(self.unlearned - self.reference, self.original - self.reference), 0.0)

    @property
    def retained(self) -> Series:
        """What the policy judges: excess where there is a reference, else raw."""
        return self.raw if self.excess is None else self.excess

    @property
    def original_above_reference(self) -> float:
        """How much the original knows, as a fraction: what makes the metric count."""
        floor = 0.0 if self.reference is None else float(self.reference[0])
        return float(self.original[0]) - floor


def ratio(numerator: Series, denominator: Series) -> Series:
    """Elementwise ratio; NaN where the denominator is not positive (such resamples carry no information)."""
    out = np.full_like(denominator, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def knowledge(
    evaluations: Evaluations, metric: MetricId, policy: Policy, references: Mapping[MetricId, float]
) -> Knowledge | None:
    """The metric at one precision; None when it was not measured, or when PrivLeak has no reference."""
    if metric == "privleak":
        return _membership(evaluations, policy, references.get("privleak"))
    found = {role: getattr(evaluation, metric) for role, evaluation in evaluations.items()}
    if not all(isinstance(scores, GenerationScores) and scores.scores for scores in found.values()):
        return None
    items = len(found["original"].scores)
    weights = resample_weights(items, policy.resamples, policy.bootstrap_seed)
    series = {role: mean_series(np.asarray(scores.scores), weights) for role, scores in found.items()}
    reference = series.get("retrained")
    if reference is None and metric in references:
        reference = np.full(policy.resamples + 1, references[metric])
    return Knowledge(items, series["original"], series["unlearned"], reference, {})


def utility(evaluations: Evaluations, policy: Policy) -> Knowledge | None:
    """KnowMem on retain, whose `raw` is utility(p); None when it was not measured.

    There is no reference here: what must be kept is what the original knows, whatever a retrained model knows.
    """
    pair: Evaluations = {role: evaluation for role, evaluation in evaluations.items() if role != "retrained"}
    return knowledge(pair, "knowmem_retain", policy, {})


def raw_auc(evaluations: Evaluations) -> dict[str, float]:
    """Role -> AUC, reported whether or not PrivLeak has a reference."""
    return {role: auc(*_statistics(e.privleak)) for role, e in evaluations.items() if e.privleak is not None}


def _statistics(scores: PrivLeakScores) -> tuple[Array, Array]:
    return np.asarray(scores.forget.min_k[PRIVLEAK_K]), np.asarray(scores.holdout.min_k[PRIVLEAK_K])


def _auc(scores: PrivLeakScores, policy: Policy) -> Series:
    forget, holdout = _statistics(scores)
    return auc_series(
        forget,
        holdout,
        resample_weights(len(forget), policy.resamples, policy.bootstrap_seed),
        # Another stream than the forget texts': the two sets are independent samples.
        resample_weights(len(holdout), policy.resamples, policy.bootstrap_seed + 1),
    )


def _membership(evaluations: Evaluations, policy: Policy, constant: float | None) -> Knowledge | None:
    found = {role: e.privleak for role, e in evaluations.items() if e.privleak is not None}
    if len(found) != len(evaluations):
        return None
    series = {role: _auc(scores, policy) for role, scores in found.items()}
    reference: Series | None = series.get("retrained")
    if reference is None and constant is not None:
        reference = np.full(policy.resamples + 1, constant)
    if reference is None or not reference[0] > 0:
        return None
    leak = {role: -privleak(of_role, reference) / 100.0 for role, of_role in series.items()}
    items = min(len(found["original"].forget.loss), len(found["original"].holdout.loss))
    return Knowledge(
        items,
        leak["original"],
        leak["unlearned"],
        np.zeros(policy.resamples + 1),
        {role: float(of_role[0]) for role, of_role in series.items()},
    )
