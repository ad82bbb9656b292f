"""What a verdict is made of: outcomes, reasons, judgements."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from app.precisions import FULL as FULL_PRECISION
from app.reports.bootstrap import Estimate
from app.reports.schemas import Evaluation, Frozen, MetricId, Role

Outcome = Literal["robust", "recovered", "not_forgotten", "collapsed", "inconclusive"]

FULL = FULL_PRECISION.name

BADNESS: dict[Outcome, int] = {"robust": 0, "inconclusive": 1, "collapsed": 2, "recovered": 3, "not_forgotten": 4}
"""What is known to be bad outranks what is not known."""


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
    judged_by: Literal["excess", "raw"] | None = None

    @property
    def retained(self) -> Estimate | None:
        """The retention that was judged."""
        return self.excess if self.judged_by == "excess" else self.raw


class PrecisionJudgement(Frozen):
    """One precision of the plan."""

    precision: str
    outcome: Outcome
    utility: Estimate | None = Field(description="KnowMem on retain, unlearned / original, same precision.")
    knowmem_retain: dict[str, float] = Field(description="Role -> KnowMem on retain, x100.")
    metrics: list[MetricJudgement]
    reasons: list[Reason]


class Judgement(Frozen):
    """An audit's verdict with all that led to it."""

    verdict: Outcome
    reasons: list[Reason] = Field(description="Those of the precisions that decided the verdict.")
    precisions: list[PrecisionJudgement]


Results = Mapping[tuple[Role, str], Evaluation | Failure]
