"""One measure of the forget set at one precision: what is still known, what came back, what is excluded.

The same for MUSE's metrics and for the columns that corroborate them.
"""

import math
from typing import NamedTuple

from app.judgement.statistics.intervals import Clipped, Estimate, Ratio, estimate, items_needed, unseen
from app.judgement.statistics.retention import Knowledge, gain, gain_beyond, recovery

MANY = 100_000
"""More items than anyone would write; beyond this, more items are said not to decide."""


class Levels(NamedTuple):
    """The probabilities with which bounds may be wrong."""

    confidence: float
    """For the intervals that are shown: two-sided."""
    excluded: float
    """For a bound that excludes something: one-sided, not divided, because `robust` needs every one of them."""
    remains: float
    """For a bound that shows knowledge above a limit: divided by the number of such tests."""
    returns: float
    """For a bound that shows a recovery: divided by the number of such tests."""


class Comparison(NamedTuple):
    """A measure at a precision (`now`) and in full precision (`before`), over the same items."""

    now: Knowledge
    before: Knowledge
    levels: Levels
    full: bool
    """Whether `now` is full precision itself."""

    @property
    def retained(self) -> Estimate | None:
        """What is retained here."""
        return estimate(self.now.retained, self.levels.confidence, 0.0)

    @property
    def recovery(self) -> Estimate | None:
        """How retention grew over full precision."""
        return None if self.full else estimate(self._recovery, self.levels.confidence)

    @property
    def gain(self) -> Estimate | None:
        """How much more the unlearned model itself knows than in full precision."""
        return None if self.full else estimate(self._gain, self.levels.confidence)

    @property
    def at_most(self) -> float:
        """Retention above this is excluded here."""
        return self._high(self.now)

    @property
    def at_most_in_full(self) -> float:
        """Retention above this is excluded in full precision."""
        return self._high(self.before)

    @property
    def excluded(self) -> float:
        """A gain of more than this is excluded.

        For a model that knows less than the reference in full precision, only what lies beyond the reference is a gain:
        the reference here or in full precision, whichever leaves more (one that rises with the model excuses nothing).
        """
        tail, found = self.levels.excluded, [self._gain]
        if self.before.retained.bounds(tail)[1] < 0:
            beyond = gain_beyond(self.now, self.before)
            most = max(one.bounds(tail)[1] for one in beyond)
            if most < self._gain.bounds(tail)[1]:
                found = beyond
        return max(self._above(one.value, one.bounds(tail)[1], self.now, self.before) for one in found)

    def remains(self, limit: float) -> bool:
        """Whether more than the limit is shown to be retained here."""
        return self._low(self.now.retained, self.now, self.levels.remains) > limit

    def remains_in_full(self, limit: float) -> bool:
        """Whether more than the limit is shown to be retained in full precision."""
        return self._low(self.before.retained, self.before, self.levels.remains) > limit

    def grew(self, margin: float) -> bool:
        """Whether retention is shown to have grown by more than the margin."""
        return self._low(self._recovery, self.now, self.levels.returns) > margin

    def gained(self, margin: float) -> bool:
        """Whether the unlearned model itself is shown to know more by the margin, in units of full precision."""
        gains = [self._gain, *gain_beyond(self.now, self.before)]
        return all(self._low(one, self.now, self.levels.returns, self.before) > margin for one in gains)

    @property
    def knows_more(self) -> bool:
        """Whether the unlearned model itself is shown to know more than in full precision."""
        return self._low(self._gain, self.now, self.levels.returns, self.before) > 0

    def items_below(self, limit: float, bound: float, at: Knowledge) -> float:
        """How many items would show retention to be below a bound; infinite where its value is above the limit."""
        if not at.retained.value <= limit:
            return math.inf
        return items_needed(at.items, self._high(at) - at.retained.value, bound - at.retained.value)

    def items_for_gain(self, excluded: float) -> float:
        """How many items would exclude a gain of this size; infinite where the value is not below it."""
        return items_needed(self.now.items, self.excluded - self._gain.value, excluded - self._gain.value)

    def items_for_recovery(self, margin: float) -> float:
        """How many items would show the recovery to lie beyond the margin; infinite where its value does not."""
        low = self._low(self._recovery, self.now, self.levels.returns)
        return items_needed(self.now.items, self._recovery.value - low, self._recovery.value - margin)

    @property
    def _recovery(self) -> Clipped:
        return recovery(self.now, self.before)

    @property
    def _gain(self) -> Ratio:
        return gain(self.now, self.before)

    def _high(self, at: Knowledge) -> float:
        return self._above(at.retained.value, at.retained.bounds(self.levels.excluded)[1], at, at)

    def _above(self, value: float, high: float, at: Knowledge, scale: Knowledge) -> float:
        """The bound, at least as high as the value would be if rare items that were not drawn were fully known."""
        if not scale.gap.value > 0:
            return math.inf
        rare = unseen(at.items, self.levels.excluded) * (1.0 - at.unlearned.value) / scale.gap.value
        return max(high, max(0.0, value) + rare)

    def _low(self, found: Ratio | Clipped, at: Knowledge, tail: float, scale: Knowledge | None = None) -> float:
        """The lower bound, at most as high as the value would be if rare items that were not drawn were not known."""
        gap = (scale or at).gap.value
        if not gap > 0:
            return -math.inf
        return min(found.bounds(tail)[0], found.value - unseen(at.items, tail) * max(0.0, at.unlearned.value) / gap)


def so_many(items: float) -> str:
    """How many items would decide, as a clause."""
    if not items < MANY:
        return "more items alone would not decide it"
    return f"about {_rounded(items):,} items like these would decide it"


def _rounded(items: float) -> int:
    """Rounded up to two digits."""
    unit = 10 ** max(0, len(str(int(items))) - 2)
    return int(math.ceil(items / unit) * unit)
