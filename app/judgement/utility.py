"""Whether a model is still useful, or forgot by breaking: KnowMem on retain, relative to the original."""

from typing import NamedTuple

from app.judgement.figures import hundredfold, percent
from app.judgement.policy import Policy
from app.judgement.statistics.comparison import so_many
from app.judgement.statistics.intervals import Ratio, items_needed
from app.judgement.statistics.retention import Evaluations, Knowledge
from app.judgement.verdict import Gathered


class UtilityFound(NamedTuple):
    """What is known of utility at one precision."""

    shown: bool
    """Whether utility is shown to be kept here."""
    broken: bool
    """Whether it is shown to be lost here."""
    broken_in_full: bool
    original_collapsed: bool
    """Whether this precision breaks the original itself."""


class UtilityCheck:
    """Utility at one precision and in full precision, with the reasons where it is lost or not known."""

    def __init__(
        self,
        here: Knowledge | None,
        full: Knowledge | None,
        policy: Policy,
        gathered: Gathered,
        evaluations: Evaluations,
    ) -> None:
        self.here, self.full, self.policy, self.gathered = here, full, policy, gathered
        self._unknown = self._why_unknown(evaluations)

    @property
    def known(self) -> bool:
        """Whether KnowMem on retain can distinguish a model that forgot from one that broke."""
        return self._unknown is None

    def judge(self, tail: float, *, full: bool) -> UtilityFound:
        """The outcome of utility; the reasons go to `gathered`.

        Args:
            tail: The probability with which a bound that shows utility to be lost may be wrong.
            full: Whether this is full precision.
        """
        if self.here is None or self.full is None or not self.known:
            self._because(
                "utility_unknown",
                "Utility is unknown, so a model that forgot cannot be distinguished from one that broke. KnowMem on "
                f"retain: {self._unknown}.",
            )
            return UtilityFound(shown=False, broken=False, broken_in_full=False, original_collapsed=False)
        original = Ratio(self.here.original, self.full.original)
        floor = self.policy.utility_floor
        if not full and original.bounds(tail)[1] < floor:
            self._because(
                "quantized_original_collapsed",
                f"{self.gathered.precision} breaks the original itself: it keeps {percent(original.value)} of its "
                "KnowMem on retain.",
            )
            return UtilityFound(shown=False, broken=False, broken_in_full=False, original_collapsed=True)
        broken = self._below(self.here.raw, tail)
        broken_in_full = self._below(self.full.raw, tail)
        if broken:
            self._because(
                "utility_lost_in_full_precision" if full else "utility_lost",
                f"Utility is lost: at {self.gathered.precision} the unlearned model keeps "
                f"{percent(self.here.raw.value)} of the original's KnowMem on retain; the policy asks for "
                f"{percent(floor)}.",
            )
        elif broken_in_full:
            self._because(
                "broken_in_full_precision",
                f"In full precision the unlearned model is broken; at {self.gathered.precision} it keeps "
                f"{percent(self.here.raw.value)} of the original's KnowMem on retain.",
            )
        shown = broken or (self._above(self.here.raw) and (full or self._above(original, of_original=True)))
        return UtilityFound(shown=shown, broken=broken, broken_in_full=broken_in_full, original_collapsed=False)

    def _why_unknown(self, evaluations: Evaluations) -> str | None:
        if self.here is None or self.full is None:
            return evaluations["original"].forget_set.unavailable.get("knowmem_retain", "it was not measured")
        if self.full.items < self.policy.min_items:
            return f"it has {self.full.items} distinct items; the policy asks for {self.policy.min_items}"
        if not self.full.original.value >= self.policy.min_original:
            return f"the original itself scores only {hundredfold(self.full.original.value, 1)}"
        return None

    def _below(self, kept: Ratio, tail: float) -> bool:
        """Whether utility is shown to lie below the floor; NaN (the original knows nothing) counts as no utility."""
        return not kept.value >= self.policy.utility_floor and not kept.bounds(tail)[1] >= self.policy.utility_floor

    def _above(self, kept: Ratio, *, of_original: bool = False) -> bool:
        """Whether it is shown to lie above the floor; adds the reason if it is not."""
        floor = self.policy.utility_floor
        low = kept.bounds(1 - self.policy.confidence)[0]
        if low >= floor:
            return True
        items = 0 if self.here is None else self.here.items
        whose = "the original itself keeps" if of_original else "the unlearned model keeps"
        of = "its KnowMem on retain in full precision" if of_original else "the original's KnowMem on retain"
        self._because(
            "utility_across_floor",
            f"Utility: {whose} {percent(kept.value)} of {of} (at least {percent(max(0.0, low))}), and the floor is "
            f"{percent(floor)}; {so_many(items_needed(items, kept.value - low, kept.value - floor))}.",
        )
        return False

    def _because(self, code: str, sentence: str) -> None:
        self.gathered.because(code, sentence, "knowmem_retain")
