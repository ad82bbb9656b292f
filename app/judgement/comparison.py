"""One measure of the forget set at one precision: what is still known, what came back, what is excluded.

The same for MUSE's metrics and for the columns that corroborate them.
"""

import math
from typing import NamedTuple

from app.judgement.intervals import Clipped, Estimate, Ratio, estimate, items_needed, unseen
from app.judgement.retention import Knowledge, gain, gain_beyond, recovery

MANY = 100_000
"""More items than anybody would write: the answer is then that more items do not decide it."""


class Levels(NamedTuple):
    """The probabilities with which bounds may be wrong."""

    confidence: float
    """Of the intervals that are shown, two-sided."""
    excluded: float
    """Of a bound that excludes something: one side, not divided, because `robust` needs every one of them."""
    remains: float
    """Of a bound that shows knowledge above a limit: divided by the number of such tests."""
    returns: float
    """Of a bound that shows a recovery: divided by the number of such tests."""


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
        """More than this retained is excluded here."""
        return self._high(self.now)

    @property
    def at_most_in_full(self) -> float:
        """More than this retained is excluded in full precision."""
        return self._high(self.before)

    @property
    def excluded(self) -> float:
        """A gain of more than this is excluded.

        A model that knows less than the reference in full precision gains what lies beyond the reference, no more. What
        no item shows is not excluded for the items that were not drawn (`unseen`).
        """
        tail = self.levels.excluded
        high = self._gain.bounds(tail)[1]
        if self.before.retained.bounds(tail)[1] < 0:
            high = min(high, gain_beyond(self.now, self.before).bounds(tail)[1])
        return max(high, self._unseen(self.now, self.before), 0.0)

    def remains(self, limit: float) -> bool:
        """Whether more than the limit is shown to be retained here."""
        return self.now.retained.bounds(self.levels.remains)[0] > limit

    def remains_in_full(self, limit: float) -> bool:
        """Whether more than the limit is shown to be retained in full precision."""
        return self.before.retained.bounds(self.levels.remains)[0] > limit

    def grew(self, margin: float) -> bool:
        """Whether retention is shown to have grown beyond the margin."""
        return self._recovery.bounds(self.levels.returns)[0] > margin

    def gained(self, margin: float) -> bool:
        """Whether the unlearned model itself is shown to know more by the margin, in units of full precision."""
        gains = (self._gain, gain_beyond(self.now, self.before))
        return all(one.bounds(self.levels.returns)[0] > margin for one in gains)

    @property
    def knows_more(self) -> bool:
        """Whether the unlearned model itself is shown to know more than in full precision."""
        return self.now.unlearned.minus(self.before.unlearned).bounds(self.levels.returns)[0] > 0

    def items_below(self, bound: float, *, full: bool = False) -> float:
        """The items that would show retention to be below a bound; infinite where its value is not."""
        at = self.before if full else self.now
        return items_needed(at.items, self._high(at) - at.retained.value, bound - at.retained.value)

    def items_for_gain(self, excluded: float) -> float:
        """The items that would exclude a gain; infinite where the value is not below it."""
        return items_needed(self.now.items, self.excluded - self._gain.value, excluded - self._gain.value)

    def items_for_recovery(self, margin: float) -> float:
        """The items that would show the recovery to lie beyond the margin; infinite where its value does not."""
        low = self._recovery.bounds(self.levels.returns)[0]
        return items_needed(self.now.items, self._recovery.value - low, self._recovery.value - margin)

    @property
    def _recovery(self) -> Clipped:
        return recovery(self.now, self.before)

    @property
    def _gain(self) -> Ratio:
        return gain(self.now, self.before)

    def _high(self, at: Knowledge) -> float:
        return max(at.retained.bounds(self.levels.excluded)[1], self._unseen(at, at), 0.0)

    def _unseen(self, at: Knowledge, scale: Knowledge) -> float:
        """What items of which none was drawn could add, if they were known as well as can be."""
        if not scale.gap.value > 0:
            return math.inf
        return unseen(at.items, self.levels.excluded) * (1.0 - at.unlearned.value) / scale.gap.value


def so_many(items: float) -> str:
    """How many items would decide, as a clause."""
    if not items < MANY:
        return "more items alone would not decide it"
    return f"about {_rounded(items):,} items like these would decide it"


def _rounded(items: float) -> int:
    """To two digits, upwards."""
    unit = 10 ** max(0, len(str(int(items))) - 2)
    return int(math.ceil(items / unit) * unit)
