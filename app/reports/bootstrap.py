"""Paired bootstrap over items, AUC and PrivLeak.

Every quantity is a `Series`: a float array of length 1 + B. Index 0 is the point estimate on the items as they are;
1 … B are its values on B resamples. All models and precisions of an audit see the same resamples (items are resampled
together), so a formula written once, elementwise, gives the estimate and its paired distribution.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from app.reports.schemas import Frozen

Array = NDArray[np.float64]
Series = NDArray[np.float64]


class Estimate(Frozen):
    """A value with its bootstrap interval; null bounds when no resample gave a finite value."""

    value: float
    low: float | None
    high: float | None


@lru_cache(maxsize=16)
def resample_weights(items: int, resamples: int, seed: int) -> Array:
    """Weights of shape [1 + B, n], each row summing to 1; row 0 weighs every item alike.

    The same (items, seed) always gives the same rows: that is what pairs the models.
    """
    rng = np.random.default_rng([seed, items])
    counts = rng.multinomial(items, np.full(items, 1.0 / items), size=resamples)
    weights = np.vstack([np.full(items, 1.0 / items), counts / items])
    weights.flags.writeable = False
    return weights


def mean_series(scores: Array, weights: Array) -> Series:
    """Weighted means of per-item scores [n] under weights [1 + B, n]."""
    return np.asarray(weights @ scores, dtype=np.float64)


def auc_series(forget: Array, holdout: Array, forget_weights: Array, holdout_weights: Array) -> Series:
    """AUC = P(stat_forget > stat_holdout), ties half, under each resample (science.md section 2, PrivLeak).

    Args:
        forget, holdout: mean negative log-probability of the least likely 40 % of tokens, per text, [nf] and [nh].
        forget_weights, holdout_weights: [1 + B, nf] and [1 + B, nh].
    """
    wins = (forget[:, None] > holdout[None, :]) + 0.5 * (forget[:, None] == holdout[None, :])
    return np.asarray(np.einsum("bh,bh->b", forget_weights @ wins, holdout_weights), dtype=np.float64)


def auc(forget: Array, holdout: Array) -> float:
    """The same AUC as one number, by ranks (Mann-Whitney U / (nf * nh))."""
    ranks = rankdata(np.concatenate([forget, holdout]))[: len(forget)]
    return float((ranks.sum() - len(forget) * (len(forget) + 1) / 2) / (len(forget) * len(holdout)))


def privleak(auc_model: Series, auc_reference: Series | float) -> Series:
    """PrivLeak = 100 (AUC - AUC_ref) / AUC_ref; negative: still a member (MUSE, arXiv 2407.06460)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100.0 * (auc_model - auc_reference) / auc_reference, dtype=np.float64)


def estimate(series: Series, confidence: float) -> Estimate | None:
    """The point and its percentile interval; None when the point itself is not finite."""
    value = float(series[0])
    if not math.isfinite(value):
        return None
    finite = series[1:][np.isfinite(series[1:])]
    if not len(finite):
        return Estimate(value=value, low=None, high=None)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Estimate(value=value, low=float(low), high=float(high))
