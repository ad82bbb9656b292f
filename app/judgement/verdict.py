"""The parts of a verdict: outcomes, reasons, judgements."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from app.catalog.frozen import Frozen
from app.catalog.metrics import MetricId
from app.catalog.precisions import FULL as FULL_PRECISION
from app.evidence.evaluation import Evaluation, Role
from app.judgement.statistics.intervals import Estimate

Outcome = Literal["robust", "recovered", "not_forgotten", "collapsed", "inconclusive"]

FULL = FULL_PRECISION.name

BADNESS: dict[Outcome, int] = {"robust": 0, "inconclusive": 1, "collapsed": 2, "not_forgotten": 3, "recovered": 4}
"""Worst first: known to be bad outranks not known; what only quantization shows outranks what full precision shows."""


class Failure(Frozen):
    """An evaluation that gave no scores."""

    code: str
    detail: str


class Reason(Frozen):
    """Why an outcome is what it is."""

    code: str
    sentence: str
    precision: str
    metric: MetricId | None = None


@dataclass
class Gathered:
    """The reasons at one precision, collected while it is judged."""

    precision: str
    reasons: list[Reason] = field(default_factory=list)
    incomplete: bool = False
    """Whether a required metric is missing."""

    def because(self, code: str, sentence: str, metric: MetricId | None = None) -> None:
        """Add a reason."""
        self.reasons.append(Reason(code=code, sentence=sentence, precision=self.precision, metric=metric))


class MetricJudgement(Frozen):
    """One forget metric at one precision. Scores are x100 as in the papers; retention and recovery are fractions."""

    metric: MetricId
    outcome: Outcome | None = Field(description="Null when the metric does not count here; the reasons say why.")
    original: float | None = None
    unlearned: float | None = None
    reference: float | None = Field(default=None, description="The retrained checkpoint's score, or the constant.")
    auc: dict[str, float] = Field(default_factory=dict, description="PrivLeak only: role -> raw AUC.")
    raw: Estimate | None = Field(default=None, description="m(u, p) / m(o, p)")
    raw_to_full_original: float | None = Field(default=None, description="m(u, p) / m(o, full): the other denominator.")
    excess: Estimate | None = Field(default=None, description="Retention beyond the reference; null without one.")
    recovery: Estimate | None = Field(default=None, description="retained(p) - retained(full); null at full.")
    gain: Estimate | None = Field(
        default=None,
        description="How much more the unlearned model itself knows than in full precision, as a share of what the "
        "original knows there; null at full, and in older reports.",
    )
    at_most: float | None = Field(
        default=None, description="Retention above this is excluded at the policy's confidence (one-sided)."
    )
    excluded: float | None = Field(
        default=None, description="A gain of more than this is excluded at the policy's confidence (one-sided)."
    )
    judged_by: Literal["excess", "raw"] | None = None

    @property
    def retained(self) -> Estimate | None:
        """The retention that was judged."""
        return self.excess if self.judged_by == "excess" else self.raw


Finding = Literal["agrees", "remains", "returns", "says_nothing"]
"""What a column shows beside its metric: knowledge above the limit, knowledge that comes back, neither, or nothing."""


class Corroboration(Frozen):
    """A further per-item column at one precision. It decides nothing, but `robust` requires it not to disagree."""

    metric: MetricId = Field(description="The metric whose items it is measured on.", examples=["knowmem_forget"])
    column: str = Field(examples=["probability", "extraction_strength"])
    finding: Finding
    items: int
    original: float | None = Field(description="x100, like all three.")
    unlearned: float | None
    reference: float | None
    retained: Estimate | None = Field(description="As for the metric: beyond the reference where there is one.")
    gain: Estimate | None = Field(description="As for the metric; null at full.")
    excluded: float | None = Field(description="As for the metric; null at full.")


class PrecisionJudgement(Frozen):
    """One precision of the plan."""

    precision: str
    outcome: Outcome
    utility: Estimate | None = Field(description="KnowMem on retain, unlearned / original, same precision.")
    knowmem_retain: dict[str, float] = Field(description="Role -> KnowMem on retain, x100.")
    metrics: list[MetricJudgement]
    corroboration: list[Corroboration] = Field(default=[], description="Further columns; none in older reports.")
    reasons: list[Reason]


class Tests(Frozen):
    """How many tests each kind of bad outcome had. Its level is divided by their number (Bonferroni), so that the
    chance that any of them is wrong is at most 1 - confidence. `robust` requires every test to exclude something, so
    its own error needs no such division (an intersection-union test)."""

    recovered: int = 0
    not_forgotten: int = 0
    collapsed: int = 0
    corroboration: int = 0


class Judgement(Frozen):
    """An audit's verdict with all that led to it."""

    verdict: Outcome
    reasons: list[Reason] = Field(description="Those of the precisions that decided the verdict.")
    precisions: list[PrecisionJudgement]
    tests: Tests
    disagreements: list[Reason] = Field(description="Evidence that speaks against what the metrics say.")
    missed: list[str] = Field(description="What the audit could have missed, in sentences.")


Results = Mapping[tuple[Role, str], Evaluation | Failure]
