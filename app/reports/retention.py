"""From per-item scores to knowledge, retention and utility (science.md sections 1, 2 and 4).

For a metric m, the pair (o, u), a precision p and a reference r (a retrained checkpoint at the same precision, or a
constant given with the forget set):

    raw(p)     = m(u, p) / m(o, p)                                    both models at the same precision
    excess(p)  = max(0, (m(u, p) - m(r, p)) / (m(o, p) - m(r, p)))
    utility(p) = KnowMem_retain(u, p) / KnowMem_retain(o, p)

PrivLeak enters as what membership leaks, m = -PrivLeak / 100 = (AUC_ref - AUC) / AUC_ref: 0 for the reference by
construction, near 1 for a memorised forget set; over-unlearned (m below 0) retains nothing.

Items that repeat others (`ForgetSetInfo.duplicates`) have no weight in any of it.
"""

from collections.abc import Iterable, Mapping, Sequence
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
ITEMS: Mapping[MetricId, str] = {
    "verbmem": "verbmem/forget",
    "knowmem_forget": "knowmem/forget_qa",
    "knowmem_retain": "knowmem/retain_qa",
    "verbmem_sampled": "verbmem/forget",
}
"""Metric -> the file of the forget set that its scores are in the order of."""

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
        return _leak(evaluations, policy, references.get("privleak"), alongside or {})
    found = {role: getattr(evaluation, metric) for role, evaluation in evaluations.items()}
    if not all(isinstance(scores, GenerationScores) and scores.scores for scores in found.values()):
        return None
    distinct = _distinct([*evaluations.values(), *(alongside or {}).values()], metric)
    weights = _only(resample_weights(len(distinct), policy.resamples, policy.bootstrap_seed), distinct)
    series = {role: mean_series(np.asarray(scores.scores), weights) for role, scores in found.items()}
    reference = series.get("retrained")
    if reference is None and metric in references:
        reference = np.full(policy.resamples + 1, references[metric])
    return Knowledge(int(distinct.sum()), series["original"], series["unlearned"], reference, {})


def means(evaluations: Evaluations, metric: MetricId) -> dict[Role, float]:
    """Role -> the mean score over the distinct items, for those that have any."""
    found: dict[Role, float] = {}
    for role, evaluation in evaluations.items():
        scores = getattr(evaluation, metric)
        if isinstance(scores, GenerationScores):
            distinct = _distinct(evaluations.values(), metric)
            if distinct.any():
                found[role] = float(np.asarray(scores.scores)[distinct].mean())
    return found


class Scores(NamedTuple):
    """One generation metric of one evaluation."""

    items: int
    """Distinct ones."""
    scores: Series
    """Its mean."""


def mean(evaluation: Evaluation, metric: MetricId, policy: Policy) -> Scores | None:
    """The mean score over the distinct items, over the resamples; None when it was not measured."""
    scores = getattr(evaluation, metric)
    if not isinstance(scores, GenerationScores) or not scores.scores:
        return None
    distinct = _distinct([evaluation], metric)
    weights = _only(resample_weights(len(distinct), policy.resamples, policy.bootstrap_seed), distinct)
    return Scores(int(distinct.sum()), mean_series(np.asarray(scores.scores), weights))


def truncated(evaluation: Evaluation, metric: MetricId) -> float:
    """The share of a generation metric's distinct items whose prompt or continuation was cut for the model's window."""
    scores = getattr(evaluation, metric)
    if not isinstance(scores, GenerationScores) or not scores.scores:
        return 0.0
    distinct = _distinct([evaluation], metric)
    cut = np.zeros(len(distinct), dtype=np.bool_)
    for flag in ("prompt_truncated", "new_tokens_reduced"):
        cut[scores.flags.get(flag, [])] = True
    return float(cut[distinct].mean()) if distinct.any() else 0.0


def _distinct(evaluations: Iterable[Evaluation], metric: MetricId) -> Mask:
    """Which of a generation metric's items repeat no other."""
    found = list(evaluations)
    size = next(len(scores.scores) for one in found if (scores := getattr(one, metric)) is not None)
    return _unrepeated(found, ITEMS[metric], size)


def _unrepeated(evaluations: Iterable[Evaluation], name: str, size: int) -> Mask:
    mask = np.ones(size, dtype=np.bool_)
    for evaluation in evaluations:
        mask[[index for index in evaluation.forget_set.duplicates.get(name, ()) if index < size]] = False
    return mask


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


class Membership(NamedTuple):
    """How well the forget set's texts are told from the holdout's, by role, over the same resamples."""

    items: int
    """Distinct texts with a statistic, in the smaller of the two sets."""
    auc: dict[Role, Series]


def membership(evaluations: Evaluations, policy: Policy, alongside: Evaluations | None = None) -> Membership | None:
    """The AUCs at one precision; None unless every one of the evaluations measured them.

    `alongside`: as in `knowledge`.
    """
    found = {role: e.privleak for role, e in evaluations.items() if e.privleak is not None}
    if not found or len(found) != len(evaluations):
        return None
    compared = [*evaluations.values(), *(alongside or {}).values()]
    forget, holdout = (_usable(compared, subset) for subset in SUBSETS)
    # Another stream for the holdout texts: the two sets are independent samples.
    weights = (
        _only(resample_weights(len(forget), policy.resamples, policy.bootstrap_seed), forget),
        _only(resample_weights(len(holdout), policy.resamples, policy.bootstrap_seed + 1), holdout),
    )
    series = {role: auc_series(*_statistics(scores), *weights) for role, scores in found.items()}
    return Membership(int(min(forget.sum(), holdout.sum())), series)


def raw_auc(evaluations: Evaluations) -> dict[str, float]:
    """Role -> AUC, reported whether or not PrivLeak has a reference."""
    found = {role: e.privleak for role, e in evaluations.items() if e.privleak is not None}
    if not found:
        return {}
    kept = [_usable([e for e in evaluations.values() if e.privleak is not None], subset) for subset in SUBSETS]
    if not all(mask.any() for mask in kept):
        return {}
    return {
        role: auc(*(statistics[mask] for statistics, mask in zip(_statistics(scores), kept, strict=True)))
        for role, scores in found.items()
    }


def _statistics(scores: PrivLeakScores) -> tuple[Array, Array]:
    return np.asarray(scores.forget.min_k[PRIVLEAK_K]), np.asarray(scores.holdout.min_k[PRIVLEAK_K])


def _usable(evaluations: Sequence[Evaluation], subset: str) -> Mask:
    """Which texts repeat no other and have a statistic in every model: one without counts in none, so that all see the
    same."""
    found = [e.privleak for e in evaluations if e.privleak is not None]
    mask = _unrepeated(evaluations, f"privleak/{subset}", len(getattr(found[0], subset).loss))
    for scores in found:
        for flag in UNUSABLE:
            mask[scores.flags.get(f"{subset}.{flag}", [])] = False
    return mask


def _only(weights: Array, mask: Mask) -> Array:
    """The same resamples without the masked items; a resample that has no other item becomes NaN."""
    if mask.all():
        return weights
    kept = weights * mask
    total: Array = kept.sum(axis=1, keepdims=True)
    return np.asarray(kept / np.where(total > 0, total, np.nan), dtype=np.float64)


def _leak(evaluations: Evaluations, policy: Policy, constant: float | None, alongside: Evaluations) -> Knowledge | None:
    found = membership(evaluations, policy, alongside)
    if found is None:
        return None
    reference: Series | None = found.auc.get("retrained")
    if reference is None and constant is not None:
        reference = np.full(policy.resamples + 1, constant)
    if reference is None:
        return None
    leak = {role: -privleak(of_role, reference) / 100.0 for role, of_role in found.auc.items()}
    return Knowledge(
        found.items,
        leak["original"],
        leak["unlearned"],
        np.zeros(policy.resamples + 1),
        {role: float(of_role[0]) for role, of_role in found.auc.items() if np.isfinite(of_role[0])},
    )
