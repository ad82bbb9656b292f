"""From per-item scores to knowledge, retention and utility (README.md, "What is asked").

For a metric m, the pair (o, u), a precision p and a reference r (a retrained checkpoint at the same precision, or a
constant given with the forget set):

    raw(p)      = m(u, p) / m(o, p)                                    both models at the same precision
    excess(p)   = max(0, (m(u, p) - m(r, p)) / (m(o, p) - m(r, p)))
    recovery(p) = retained(p) - retained(full)                         retained: excess, or raw without a reference
    gain(p)     = (m(u, p) - m(u, full)) / (m(o, full) - m(r, full))   the unlearned model against itself
    utility(p)  = KnowMem_retain(u, p) / KnowMem_retain(o, p)

PrivLeak enters as m = 1 - AUC: a memorised forget set has an AUC near 0. Its excess is that of the membership leak,
-PrivLeak / 100 = (AUC_ref - AUC) / AUC_ref, in which AUC_ref cancels; an over-unlearned model (below the reference)
retains nothing.

Items that repeat others (`ForgetSetInfo.duplicates`) never count.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from app.catalog.metrics import METRICS, MetricId
from app.evidence.evaluation import Evaluation, PrivLeakScores, Role
from app.judgement.statistics.intervals import Array, Clipped, Mask, Ratio, Statistic, auc, constant
from app.judgement.statistics.intervals import mean as mean_of

Evaluations = Mapping[Role, Evaluation]
"""The evaluations of one precision."""

PRIVLEAK_K = "40"
"""MUSE's k: the least likely 40 % of a text's tokens."""
SUBSETS = ("forget", "holdout")
UNUSABLE = ("non_finite", "too_short")
"""Flags of texts that have no statistic."""


class Knowledge(NamedTuple):
    """One metric at one precision; higher knows more."""

    items: int
    original: Statistic
    unlearned: Statistic
    reference: Statistic | None
    auc: dict[str, float]
    """PrivLeak only: role -> raw AUC."""

    @property
    def gap(self) -> Statistic:
        """What the original knows beyond the reference, or beyond nothing."""
        return self.original if self.reference is None else self.original.minus(self.reference)

    @property
    def beyond(self) -> Statistic:
        """What the unlearned model knows beyond the reference, or beyond nothing."""
        return self.unlearned if self.reference is None else self.unlearned.minus(self.reference)

    @property
    def retained(self) -> Ratio:
        """What the policy judges: excess where there is a reference, else raw. Not clipped at 0."""
        return Ratio(self.beyond, self.gap)

    @property
    def known(self) -> float:
        """How much the original knows beyond the reference, as a fraction: what makes the metric count.

        For PrivLeak, whose reference's AUC may differ from one half, the share that leaks.
        """
        if not self.auc:
            return self.gap.value
        return self.gap.value / self.auc_reference if self.auc_reference > 0 else math.nan

    @property
    def auc_reference(self) -> float:
        """The reference's AUC; PrivLeak only."""
        return math.nan if self.reference is None else 1.0 - self.reference.value

    @property
    def raw(self) -> Ratio:
        """m(u) / m(o). For PrivLeak it is the ratio of the membership leaks, which are 0 at the reference."""
        return self.retained if self.auc else Ratio(self.unlearned, self.original)


def recovery(now: Knowledge, before: Knowledge) -> Clipped:
    """How retention grew over full precision, each relative to the original at the same precision."""
    return Clipped(now.retained, before.retained)


def gain(now: Knowledge, before: Knowledge) -> Ratio:
    """How much more the unlearned model itself knows than in full precision, in units of what the original knows."""
    return Ratio(now.unlearned.minus(before.unlearned), before.gap)


def gain_beyond(now: Knowledge, before: Knowledge) -> list[Ratio]:
    """The same for a model that knows less than the reference in full precision: what it now knows beyond the
    reference, taken here and taken in full precision."""
    whole = now.unlearned if before.reference is None else now.unlearned.minus(before.reference)
    return [Ratio(now.beyond, before.gap), Ratio(whole, before.gap)]


def knowledge(
    evaluations: Evaluations,
    metric: MetricId,
    references: Mapping[MetricId, float],
    alongside: Evaluations | None = None,
) -> Knowledge | None:
    """The metric at one precision; None when it was not measured, or when PrivLeak has no reference.

    `alongside` are the evaluations of another precision that this one is compared with: a text without a statistic in
    either counts in neither.
    """
    if metric == "privleak":
        return _leak(evaluations, references.get("privleak"), alongside or {})
    found = {role: evaluation.generation(metric) for role, evaluation in evaluations.items()}
    columns = {role: np.asarray(scores.scores) for role, scores in found.items() if scores and scores.scores}
    if len(columns) < len(found):
        return None
    distinct = distinct_items([*evaluations.values(), *(alongside or {}).values()], metric)
    return of_columns(columns, distinct, references.get(metric))


def of_columns(columns: Mapping[Role, Array], mask: Mask, reference: float | None) -> Knowledge:
    """Knowledge by a column of per-item scores [n]; the constant replaces a retrained checkpoint's column."""
    found = {role: mean_of(scores, mask) for role, scores in columns.items()}
    known = found.get("retrained")
    if known is None and reference is not None:
        known = constant(reference, found["original"])
    return Knowledge(int(mask.sum()), found["original"], found["unlearned"], known, {})


def means(evaluations: Evaluations, metric: MetricId) -> dict[Role, float]:
    """Role -> the mean score over the distinct items, for those that have any."""
    found: dict[Role, float] = {}
    for role, evaluation in evaluations.items():
        scores = evaluation.generation(metric)
        if scores is not None:
            distinct = distinct_items(evaluations.values(), metric)
            if distinct.any():
                found[role] = float(np.asarray(scores.scores)[distinct].mean())
    return found


def mean(evaluation: Evaluation, metric: MetricId, alongside: Evaluation | None = None) -> Statistic | None:
    """The mean score over the distinct items; None when it was not measured."""
    scores = evaluation.generation(metric)
    if scores is None or not scores.scores:
        return None
    compared = [evaluation] if alongside is None else [evaluation, alongside]
    return mean_of(np.asarray(scores.scores), distinct_items(compared, metric))


def truncated(evaluation: Evaluation, metric: MetricId) -> float:
    """The share of a generation metric's distinct items whose prompt or continuation was cut to fit the window."""
    scores = evaluation.generation(metric)
    if scores is None or not scores.scores:
        return 0.0
    distinct = distinct_items([evaluation], metric)
    cut = np.zeros(len(distinct), dtype=np.bool_)
    for flag in ("prompt_truncated", "new_tokens_reduced"):
        cut[scores.flags.get(flag, [])] = True
    return float(cut[distinct].mean()) if distinct.any() else 0.0


def distinct_items(evaluations: Iterable[Evaluation], metric: MetricId) -> Mask:
    """Which of a generation metric's items do not repeat others."""
    found = list(evaluations)
    size = next(len(scores.scores) for one in found if (scores := one.generation(metric)) is not None)
    return _unrepeated(found, METRICS[metric].needs[0], size)


def _unrepeated(evaluations: Iterable[Evaluation], name: str, size: int) -> Mask:
    mask = np.ones(size, dtype=np.bool_)
    for evaluation in evaluations:
        mask[[index for index in evaluation.forget_set.duplicates.get(name, ()) if index < size]] = False
    return mask


def numberless(evaluations: Evaluations, metric: MetricId) -> dict[Role, int]:
    """Role -> number of items scored 0 because the model's logits were NaN or infinite; only roles with any.

    PrivLeak has none: its texts without a statistic are left out.
    """
    found: dict[Role, int] = {}
    for role, evaluation in evaluations.items():
        scores = evaluation.generation(metric)
        if scores is not None:
            items = {item for flag in ("non_finite", "forced_non_finite") for item in scores.flags.get(flag, ())}
            if items:
                found[role] = len(items)
    return found


def utility(evaluations: Evaluations) -> Knowledge | None:
    """KnowMem on retain, whose `raw` is utility(p); None when it was not measured.

    There is no reference here: what must be kept is what the original knows, whatever a retrained model knows.
    """
    pair: Evaluations = {role: evaluation for role, evaluation in evaluations.items() if role != "retrained"}
    return knowledge(pair, "knowmem_retain", {})


def membership(evaluations: Evaluations, alongside: Evaluations | None = None) -> dict[Role, Statistic] | None:
    """Role -> how well the forget set's texts are distinguished from the holdout's, as an AUC, at one precision.

    None unless every one of the evaluations measured it. `alongside`: as in `knowledge`.
    """
    found = {role: scores for role, e in evaluations.items() if (scores := e.membership) is not None}
    if not found or len(found) != len(evaluations):
        return None
    compared = [*evaluations.values(), *(alongside or {}).values()]
    masks = [_usable(compared, subset) for subset in SUBSETS]
    return {role: auc(*_statistics(scores), *masks) for role, scores in found.items()}


def raw_auc(evaluations: Evaluations) -> dict[str, float]:
    """Role -> AUC, reported whether or not PrivLeak has a reference."""
    measured: Evaluations = {role: e for role, e in evaluations.items() if e.membership is not None}
    found = membership(measured) or {}
    return {role: statistic.value for role, statistic in found.items() if math.isfinite(statistic.value)}


def _statistics(scores: PrivLeakScores) -> tuple[Array, Array]:
    return np.asarray(scores.forget.min_k[PRIVLEAK_K]), np.asarray(scores.holdout.min_k[PRIVLEAK_K])


def _usable(evaluations: Sequence[Evaluation], subset: str) -> Mask:
    """Which texts are distinct and have a statistic in every model: a text without one counts in none, so that all
    models are compared on the same texts."""
    found = [scores for e in evaluations if (scores := e.membership) is not None]
    mask = _unrepeated(evaluations, f"privleak/{subset}", len(getattr(found[0], subset).loss))
    for scores in found:
        for flag in UNUSABLE:
            mask[scores.flags.get(f"{subset}.{flag}", [])] = False
    return mask


def _leak(evaluations: Evaluations, reference: float | None, alongside: Evaluations) -> Knowledge | None:
    found = membership(evaluations, alongside)
    if found is None:
        return None
    knows = {role: statistic.times(-1).shifted(1) for role, statistic in found.items()}
    known = knows.get("retrained")
    if known is None:
        if reference is None:
            return None
        known = constant(1.0 - reference, knows["original"])
    told: dict[str, float] = {
        role: statistic.value for role, statistic in found.items() if math.isfinite(statistic.value)
    }
    return Knowledge(found["original"].items, knows["original"], knows["unlearned"], known, told)
