"""Intervals by linearisation, against figures by hand and against how often they hold the truth."""

import math
from collections.abc import Callable, Sized

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from app.judgement.statistics.intervals import (
    Clipped,
    Mask,
    Quantity,
    Ratio,
    Statistic,
    auc,
    constant,
    estimate,
    items_needed,
    mean,
    unseen,
)


def all_of(values: Sized) -> Mask:
    return np.full(len(values), True)


def of(values: npt.ArrayLike) -> Statistic:
    found = np.asarray(values, dtype=float)
    return mean(found, all_of(found))


def test_the_interval_of_a_mean_without_skew_is_students() -> None:
    values = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    found = estimate(of(values), 0.95)
    assert found is not None
    low, high = stats.t.interval(0.95, 4, loc=0.5, scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, low, high))


def test_skew_widens_an_interval_where_the_long_tail_may_lie() -> None:
    """Of 100 items: Student's alone would exclude 7.3 % of 4, the exact bound (Clopper and Pearson) 8.9 %."""
    bounds = [of([1.0] * rare + [0.0] * (100 - rare)).bounds(0.05)[1] for rare in (1, 2, 4, 8)]
    exact = [stats.beta.ppf(0.95, rare + 1, 100 - rare) for rare in (1, 2, 4, 8)]
    students = [rare / 100 + 1.66 * np.sqrt(rare / 100 * (1 - rare / 100) / 99) for rare in (1, 2, 4, 8)]
    assert bounds == sorted(bounds)
    assert all(low < bound < high for low, bound, high in zip(students, bounds, exact, strict=True))


def test_masked_items_do_not_count() -> None:
    values = np.array([0.2, 0.4, 0.9, math.nan])
    found = mean(values, np.array([True, True, False, False]))
    assert found.value == pytest.approx(0.3)
    assert found.items == 2


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_items_give_no_interval(values: list[float]) -> None:
    found = estimate(of(values), 0.95)
    assert found is None or (found.low, found.high) == (None, None)


def test_the_auc_counts_pairs_with_ties_half() -> None:
    rng = np.random.default_rng(1)
    forget, holdout = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 25).astype(float)
    by_hand = np.mean([(f > h) + 0.5 * (f == h) for f in forget for h in holdout])
    assert auc(forget, holdout, all_of(forget), all_of(holdout)).value == pytest.approx(by_hand)


def coverage(draw: Callable[[np.random.Generator], Quantity], truth: float, samples: int = 600) -> float:
    held = 0
    for seed in range(samples):
        low, high = draw(np.random.default_rng(seed)).bounds(0.025)
        held += low <= truth <= high
    return held / samples


def test_an_auc_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    def draw(rng: np.random.Generator) -> Quantity:
        forget, holdout = rng.normal(0, 1, 60), rng.normal(1, 1, 60)
        return auc(forget, holdout, all_of(forget), all_of(holdout))

    assert 0.92 <= coverage(draw, stats.norm.cdf(-1 / math.sqrt(2))) <= 0.98


def test_a_ratio_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    def draw(rng: np.random.Generator) -> Quantity:
        original = rng.beta(2, 2, 60)
        return Ratio(of(np.clip(0.3 * original + rng.normal(0, 0.1, 60), -1, 1)), of(original))

    assert 0.93 <= coverage(draw, 0.3) <= 0.975


def test_a_ratio_to_what_cannot_be_told_from_nothing_has_no_bounds() -> None:
    values = np.array([0.4, -0.4] * 10)
    assert Ratio(of([0.2] * 20), of(values + 0.01)).bounds(0.025) == (-math.inf, math.inf)
    assert math.isnan(Ratio(of([0.2] * 20), of([-0.1] * 20)).value)


def test_growth_below_the_reference_is_none() -> None:
    """From far below the reference to just below it, nothing came back that lies beyond it."""
    gap = of(np.tile([0.4, 0.6], 20))
    before, after = of(np.tile([-0.5, -0.3], 20)), of(np.tile([-0.02, -0.01], 20))
    growth = Clipped(Ratio(after, gap), Ratio(before, gap))
    assert growth.value == 0
    assert growth.bounds(0.025) == (0.0, 0.0)


def test_growth_needs_both_the_difference_and_the_end_to_lie_above_the_reference() -> None:
    gap = constant(0.5, of([0.1] * 40))
    before, after = of(np.tile([-0.5, -0.3], 20)), of(np.tile([0.2, 0.3], 20))
    low, high = Clipped(Ratio(after, gap), Ratio(before, gap)).bounds(0.025)
    assert 0.45 < low < 0.5 < high < 0.55


def test_what_no_item_shows_may_still_hold_for_few() -> None:
    assert unseen(100, 0.05) == pytest.approx(0.0295, abs=1e-4)
    assert (1 - unseen(20, 0.05)) ** 20 == pytest.approx(0.05)


def test_half_the_distance_needs_four_times_the_items() -> None:
    assert items_needed(100, 0.2, 0.1) == 400
    assert items_needed(100, 0.2, 0.0) == math.inf
