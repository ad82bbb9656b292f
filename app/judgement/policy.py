"""The policy: the thresholds that judge an audit, fixed and hashed before it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from app import canonical
from app.catalog.frozen import Frozen
from app.catalog.metrics import METRICS, ForgetMetricId, MetricId
from app.errors import FieldProblem, InvalidRequest, NotFound

RETIRED = ("resamples", "bootstrap_seed")
"""Settings of versions whose intervals were resampled; policies that they stored still have them."""

Fraction = Annotated[float, Field(ge=0, le=1)]


JUDGED = {metric.id: metric.judged for metric in METRICS.values() if metric.judged is not None}
ByMetric = Mapping[ForgetMetricId, Fraction]
"""Forget metric -> a fraction; what is not given is the catalog's."""


class Policy(Frozen):
    """Thresholds; retention, excess and recovery are fractions (0.10 is ten points of retention).

    The defaults are explained in README.md beside this file, with the table of `python -m tests.bench.power`.
    """

    excess_limit: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="With a reference: the share of what the original knows beyond it that may remain.",
    )
    raw_limit: float = Field(
        default=0.6, gt=0, le=1, description="Without a reference: the share of the original's score that may remain."
    )
    limit_slack: ByMetric = Field(
        default={},
        validate_default=True,
        description="A metric is below its limit when its value is, and the upper bound of its interval (one-sided, at "
        "`confidence`) lies below the limit plus this. Spreads differ by metric: at 100 items KnowMem's bound lies 0.2 "
        "above its value.",
    )
    guards: list[MetricId] = Field(
        default=["privleak"],
        description="Metrics that must be below their limit for `robust`, but whose retention above it does not make an"
        " audit `not_forgotten`: the audit is then at best `inconclusive`.",
    )
    corroboration_limit: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="The share of a corroborating column (probability, extraction strength, ...) that may remain where "
        "its metric shows forgetting. Higher than the metrics' limits because these scales saturate: only a "
        "column that hardly moved disagrees.",
    )
    recovery_margin: float = Field(
        default=0.10,
        ge=0,
        le=1,
        description="An audit is `recovered` when retention is shown to grow by more than this from full precision to "
        "another precision, and the unlearned model itself to know more there.",
    )
    excluded_recovery: ByMetric = Field(
        default={},
        validate_default=True,
        description="An audit is `robust` when a growth of the unlearned model's own knowledge by this much is excluded"
        " at `confidence`. Spreads at 100 items allow nothing smaller than about 0.15 for VerbMem, 0.3 for the other"
        " two.",
    )
    utility_floor: float = Field(
        default=0.5, ge=0, le=1, description="The share of the original's KnowMem on retain that must be kept."
    )
    min_items: int = Field(default=20, ge=1, description="A metric counts if it has at least this many distinct items.")
    min_original: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="A metric counts when the original scores at least this much above the reference, or above zero"
        " without one.",
    )
    allowed_differences: list[str] = Field(
        default=[],
        description="Fields of configs and tokenizers in which the unlearned (or the retrained) checkpoint may differ "
        "from the original; the report says so on its first screen. Any other difference is refused.",
        examples=[["config.rope_theta", "generation_config.suppress_tokens"]],
    )
    trained_auc: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="Without a retrained checkpoint the original must be shown to have trained on the forget set. One "
        "proof: the upper bound of its membership AUC in full precision lies below this. Published originals have "
        "0.001 (MUSE-News) and 0.23 (MUSE-Books; with 100 texts up to 0.30), retrained models 0.48 and 0.54; with "
        "those, 100 texts reach an upper bound of 0.4 by chance less than once in 10,000 times. Where the forget set "
        "gives the AUC of a retrained model and that is below 0.5, this is lowered in proportion. A `retrained` "
        "checkpoint that passes the test is not a reference.",
    )
    trained_verbmem: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The other proof: the lower bound of its VerbMem in full precision lies above this. Models that "
        "never saw the texts have 0.21 (MUSE-News), 0.14 (MUSE-Books), 0.42 (the demo's formulaic articles).",
    )
    may_be_missing: list[MetricId] = Field(
        default=[],
        description="Metrics of the plan without which an audit may still be `robust`, because the forget set lacks "
        "their items or has fewer distinct ones than `min_items`.",
        examples=[["privleak"]],
    )
    max_truncated: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The share of a metric's items whose prompt or continuation may be cut to fit the model's window.",
    )
    max_row_update: float = Field(
        default=0.75,
        ge=0,
        description="How far a row of an embedding or of the output layer may move, relative to its norm; 1 is a row "
        "set to zero. Trained models: at most 0.02 in small steps, 0.53 in large ones (the demo's, all modules).",
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="The level of the intervals. Each kind of bad outcome (recovered, not_forgotten, collapsed) is "
        "tested at every precision, for every metric: the chance that any of those tests is wrong is at most "
        "1 - confidence.",
    )

    @field_validator("limit_slack")
    @classmethod
    def _slack(cls, given: ByMetric) -> ByMetric:
        return {metric: given.get(metric, judged.slack) for metric, judged in JUDGED.items()}

    @field_validator("excluded_recovery")
    @classmethod
    def _excluded(cls, given: ByMetric) -> ByMetric:
        return {metric: given.get(metric, judged.excluded) for metric, judged in JUDGED.items()}

    def digest(self) -> str:
        """SHA-256 over the policy's RFC 8785 canonical JSON."""
        return canonical.digest(self.model_dump(mode="json"))


def _without_retired(record: object) -> object:
    if not isinstance(record, Mapping):
        return record
    return {name: value for name, value in record.items() if name not in RETIRED}


StoredPolicy = Annotated[Policy, BeforeValidator(_without_retired)]
"""A policy as an earlier version may have stored it."""


def stored(record: Mapping[str, object]) -> Policy:
    """A policy from a record that an earlier version may have written."""
    return Policy.model_validate(_without_retired(record))


def read_policy(file: Path) -> Policy:
    """A policy from a JSON file that names the thresholds which differ from the defaults.

    Raises:
        NotFound: the file cannot be read.
        InvalidRequest: it is not JSON or not a policy; names the field.
    """
    try:
        return Policy.model_validate_json(file.read_bytes())
    except OSError as error:
        raise NotFound("not_found", f"{file}: {error.strerror}") from error
    except ValidationError as error:
        places = [
            FieldProblem(file=str(file), field=".".join(map(str, e["loc"])) or None, message=e["msg"])
            for e in error.errors()
        ]
        raise InvalidRequest("invalid_request", f"{file} is not a policy", errors=places) from error
