"""From per-item scores to knowledge, retention and utility (science.md sections 1, 2 and 4).

For a metric m, the pair (o, u), a precision p and a reference r (a retrained checkpoint at the same precision, or a
constant given with the forget set):

    raw(p)     = m(u, p) / m(o, p)                                    both models at the same precision
    excess(p)  = max(0, (m(u, p) - m(r, p)) / (m(o, p) - m(r, p)))
    utility(p) = KnowMem_retain(u, p) / KnowMem_retain(o, p)

PrivLeak enters as what membership leaks, m = -PrivLeak / 100 = (AUC_ref - AUC) / AUC_ref: 0 for the reference by
construction, near 1 for a memorised forget set; over-unlearned (m below 0) retains nothing.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.reports.bootstrap import Array, Series, auc, auc_series, mean_series, privleak, resample_weights
from app.reports.policy import Policy
from app.reports.schemas import Evaluation, GenerationScores, MetricId, PrivLeakScores, Role

Evaluations = Mapping[Role, Evaluation]
"""The evaluations of one precision."""

PRIVLEAK_K = "40"
"""MUSE's k: the least likely 40 % of a text's tokens."""
SUBSETS = ("forget", "holdout")
UNUSABLE = ("non_finite", "too_short")
"""Flags of texts that have no statistic."""

Mask = NDArray[np.bool_]


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
    evaluations: Evaluations,
    metric: MetricId,
    policy: Policy,
    references: Mapping[MetricId, float],
    alongside: Evaluations | None = None,
) -> Knowledge | None:
    """The metric at one precision; None when it was not measured, or when PrivLeak has no reference.

    `alongside` are the evaluations of another precision that this one is compared with: a text without a statistic in
    either counts in neither.
    """
    if metric == "privleak":
        return _membership(evaluations, policy, references.get("privleak"), alongside or {})
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


def numberless(evaluations: Evaluations, metric: MetricId) -> dict[Role, int]:
    """Role -> items that were scored 0 because the model gave no number (NaN or infinite logits); those with any.

    PrivLeak has none: its texts without a statistic are left out.
    """
    found: dict[Role, int] = {}
    for role, evaluation in evaluations.items():
        scores = getattr(evaluation, metric)
        if isinstance(scores, GenerationScores) and scores.flags.get("non_finite"):
            found[role] = len(scores.flags["non_finite"])
    return found


def utility(evaluations: Evaluations, policy: Policy) -> Knowledge | None:
    """KnowMem on retain, whose `raw` is utility(p); None when it was not measured.

    There is no reference here: what must be kept is what the original knows, whatever a retrained model knows.
    """
    pair: Evaluations = {role: evaluation for role, evaluation in evaluations.items() if role != "retrained"}
    return knowledge(pair, "knowmem_retain", policy, {})


def raw_auc(evaluations: Evaluations) -> dict[str, float]:
    """Role -> AUC, reported whether or not PrivLeak has a reference."""
    found = {role: e.privleak for role, e in evaluations.items() if e.privleak is not None}
    if not found:
        return {}
    kept = [_usable(found.values(), subset) for subset in SUBSETS]
    if not all(mask.any() for mask in kept):
        return {}
    return {
        role: auc(*(statistics[mask] for statistics, mask in zip(_statistics(scores), kept, strict=True)))
        for role, scores in found.items()
    }


def _statistics(scores: PrivLeakScores) -> tuple[Array, Array]:
    return np.asarray(scores.forget.min_k[PRIVLEAK_K]), np.asarray(scores.holdout.min_k[PRIVLEAK_K])


def _usable(found: Iterable[PrivLeakScores], subset: str) -> Mask:
    """Which texts have a statistic in every model: a text without one counts in none, so that all see the same."""
    scores = list(found)
    mask = np.ones(len(getattr(scores[0], subset).loss), dtype=np.bool_)
    for one in scores:
        for flag in UNUSABLE:
            mask[one.flags.get(f"{subset}.{flag}", [])] = False
    return mask


def _only(weights: Array, mask: Mask) -> Array:
    """The same resamples without the masked items; a resample that has no other item becomes NaN."""
    kept = weights * mask
    total: Array = kept.sum(axis=1, keepdims=True)
    return np.asarray(kept / np.where(total > 0, total, np.nan), dtype=np.float64)


def _membership(
    evaluations: Evaluations, policy: Policy, constant: float | None, alongside: Evaluations
) -> Knowledge | None:
    found = {role: e.privleak for role, e in evaluations.items() if e.privleak is not None}
    if len(found) != len(evaluations):
        return None
    compared = [*found.values(), *(e.privleak for e in alongside.values() if e.privleak is not None)]
    forget, holdout = (_usable(compared, subset) for subset in SUBSETS)
    # Another stream for the holdout texts: the two sets are independent samples.
    weights = (
        _only(resample_weights(len(forget), policy.resamples, policy.bootstrap_seed), forget),
        _only(resample_weights(len(holdout), policy.resamples, policy.bootstrap_seed + 1), holdout),
    )
    series = {role: auc_series(*_statistics(scores), *weights) for role, scores in found.items()}
    reference: Series | None = series.get("retrained")
    if reference is None and constant is not None:
        reference = np.full(policy.resamples + 1, constant)
    if reference is None:
        return None
    leak = {role: -privleak(of_role, reference) / 100.0 for role, of_role in series.items()}
    return Knowledge(
        int(min(forget.sum(), holdout.sum())),
        leak["original"],
        leak["unlearned"],
        np.zeros(policy.resamples + 1),
        {role: float(of_role[0]) for role, of_role in series.items() if np.isfinite(of_role[0])},
    )
