"""Means, AUCs and their ratios with intervals, by linearisation over items.

A `Statistic` is a value and what each item contributes to its error. Items are the same for all models and precisions
of an audit, so a difference of two statistics keeps what they share: that is what makes every comparison paired.
Intervals are Student's, widened for skew by the first term of the Edgeworth expansion (Johnson, "Modified t tests and
confidence intervals for asymmetrical populations", JASA 73, 1978); those of ratios are Fieller's (Fieller, "Some
problems in interval estimation", JRSS B 16, 1954); the AUC's contributions are DeLong's placements (DeLong et al.,
Biometrics 44, 1988). Nothing is drawn at random.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from app.catalog.frozen import Frozen

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Estimate(Frozen):
    """A value with its interval; null bounds where the data allow none."""

    value: float
    low: float | None
    high: float | None


class Statistic(NamedTuple):
    """A value, and the contributions of the items to its error."""

    value: float
    influence: Array
    """One per item; their squares sum to the variance, their cubes to the third cumulant."""
    items: int
    """The number of items behind it, in the smaller of two samples."""

    def minus(self, other: "Statistic") -> "Statistic":
        """The paired difference of two statistics over the same items."""
        return Statistic(self.value - other.value, self.influence - other.influence, self.items)

    def times(self, factor: float) -> "Statistic":
        """The statistic multiplied by a constant."""
        return Statistic(factor * self.value, factor * self.influence, self.items)

    def shifted(self, constant: float) -> "Statistic":
        """The statistic with a constant added."""
        return self._replace(value=self.value + constant)

    def bounds(self, tail: float) -> tuple[float, float]:
        """(low, high), each missed with probability `tail`; infinite where there are too few items."""
        below, above = _quantiles(self, tail)
        if not math.isfinite(above):
            return -math.inf, math.inf
        error = _error(self)
        return self.value - error * above, self.value - error * below


class Ratio(NamedTuple):
    """A ratio of two statistics over the same items."""

    numerator: Statistic
    denominator: Statistic

    @property
    def value(self) -> float:
        """NaN where the denominator is not positive."""
        return self.numerator.value / self.denominator.value if self.denominator.value > 0 else math.nan

    @property
    def linear(self) -> Statistic:
        """The ratio as a statistic: its linearisation at the estimate."""
        value = self.value
        influence = (self.numerator.influence - value * self.denominator.influence) / self.denominator.value
        return Statistic(value, influence, self.numerator.items)

    def bounds(self, tail: float) -> tuple[float, float]:
        """(low, high) by Fieller; infinite where the denominator cannot be distinguished from 0."""
        if not self.denominator.value > 0:
            return -math.inf, math.inf
        below, above = _quantiles(self.linear, tail)
        if not math.isfinite(above):
            return -math.inf, math.inf
        return _fieller(self, above)[0], _fieller(self, below)[1]


class Clipped(NamedTuple):
    """The growth of max(0, ratio) from one precision to another."""

    after: Ratio
    before: Ratio

    @property
    def value(self) -> float:
        """NaN where one of the ratios has no value."""
        if math.isnan(self.after.value) or math.isnan(self.before.value):
            return math.nan
        return max(0.0, self.after.value) - max(0.0, self.before.value)

    def bounds(self, tail: float) -> tuple[float, float]:
        """(low, high). A growth above 0 is the smaller of `after - before` and `after`, so both must lie above `low`.

        It lies below `high` when the difference does; when `before` is known to be negative, `after` is the growth.
        """
        if math.isnan(self.value):
            return -math.inf, math.inf
        low, high = self.after.linear.minus(self.before.linear).bounds(tail)
        low_after, high_after = self.after.bounds(tail)
        high_before = self.before.bounds(tail)[1]
        low = max(0.0, min(low, low_after)) if low > 0 else max(low, -max(0.0, high_before))
        if high_before < 0:
            high = max(0.0, min(high, high_after))
        high = max(high, -max(0.0, self.before.bounds(tail)[0]))
        return low, high


Quantity = Statistic | Ratio | Clipped


def mean(scores: Array, mask: Mask) -> Statistic:
    """The mean of per-item scores [n] over the items of `mask` [n]."""
    n = int(mask.sum())
    value = float(scores[mask].mean()) if n else math.nan
    return Statistic(value, _contributions(np.where(mask, scores - value, 0.0), n), n)


def auc(forget: Array, holdout: Array, forget_mask: Mask, holdout_mask: Mask) -> Statistic:
    """AUC = P(stat_forget > stat_holdout), ties half (worker/engine/README.md, "Metrics").

    Args:
        forget, holdout: mean negative log-probability of the least likely 40 % of tokens, per text, [nf] and [nh].
        forget_mask, holdout_mask: which texts count.
    """
    nf, nh = int(forget_mask.sum()), int(holdout_mask.sum())
    if not nf or not nh:
        return Statistic(math.nan, np.full(len(forget) + len(holdout), math.nan), 0)
    by_forget, by_holdout = _above(forget, holdout[holdout_mask]), 1.0 - _above(holdout, forget[forget_mask])
    value = float(by_forget[forget_mask].mean())
    parts = (
        _contributions(np.where(forget_mask, by_forget - value, 0.0), nf),
        _contributions(np.where(holdout_mask, by_holdout - value, 0.0), nh),
    )
    return Statistic(value, np.concatenate(parts), min(nf, nh))


def constant(value: float, like: Statistic) -> Statistic:
    """A number that is known without error, as a statistic."""
    return Statistic(value, np.zeros_like(like.influence), like.items)


def estimate(quantity: Quantity, confidence: float, least: float = -math.inf) -> Estimate | None:
    """The value and its two-sided interval, both clipped below at `least`; None where there is no value."""
    value = quantity.value
    if not math.isfinite(value):
        return None
    low, high = (max(least, bound) for bound in quantity.bounds((1 - confidence) / 2))
    return Estimate(value=max(least, value), low=finite(low), high=finite(high))


def unseen(items: int, tail: float) -> float:
    """The largest share of all possible items that a sample of `items` misses entirely with probability `tail`.

    At 5 % about 3 / items, the "rule of three": where no item shows anything, this much is left possible.
    """
    return float(1.0 - tail ** (1.0 / items)) if items else 1.0


def items_needed(items: int, width: float, distance: float) -> float:
    """How many items would shrink half an interval's width to `distance`, all else being equal; may be infinite."""
    return items * (width / distance) ** 2 if distance > 0 else math.inf


def _above(values: Array, others: Array) -> Array:
    """Per value, the share of the others that it lies above, ties half."""
    ordered = np.sort(others)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((below + upto) / (2 * len(ordered)), dtype=np.float64)


def _contributions(deviations: Array, n: int) -> Array:
    """The contributions of n items to the error of their mean, estimated by their deviations."""
    if n < 2:
        return np.full_like(deviations, math.nan)
    return np.asarray(deviations / math.sqrt(n * (n - 1)), dtype=np.float64)


def _error(statistic: Statistic) -> float:
    return float(np.sqrt(np.square(statistic.influence).sum()))


def _quantiles(statistic: Statistic, tail: float) -> tuple[float, float]:
    """Quantiles of the studentised error at `tail` and 1 - `tail`: Student's, widened on the side of the longer tail.

    The correction would narrow the other side; samples of 20 do not bear that out.
    """
    error = _error(statistic)
    if statistic.items < 2 or not math.isfinite(error):
        return -math.inf, math.inf
    t = _student(1 - tail, statistic.items - 1)
    skew = float((statistic.influence**3).sum()) / error**3 if error > 0 else 0.0
    shift = skew * (2 * t**2 + 1) / 6
    return -t - max(0.0, shift), t - min(0.0, shift)


@lru_cache(maxsize=256)
def _student(probability: float, freedom: int) -> float:
    return float(stats.t.ppf(probability, freedom))


def _fieller(ratio: Ratio, quantile: float) -> tuple[float, float]:
    """The ratios m at which `numerator - m denominator` is at most `quantile` standard errors from 0."""
    b, g = ratio.numerator, ratio.denominator
    square = quantile**2
    a = g.value**2 - square * float(np.dot(g.influence, g.influence))
    if not a > 0:
        return -math.inf, math.inf
    half = b.value * g.value - square * float(np.dot(b.influence, g.influence))
    c = b.value**2 - square * float(np.dot(b.influence, b.influence))
    root = math.sqrt(max(0.0, half**2 - a * c))
    return (half - root) / a, (half + root) / a


def finite(value: float) -> float | None:
    """The value; None where it is not a number or has no bound."""
    return value if math.isfinite(value) else None
