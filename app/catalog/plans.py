"""From a plan as requested to a plan that can run; the same for the service and for `lethe run`."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from app.catalog.frozen import Frozen
from app.catalog.metrics import FORGET_METRICS, METRICS, MetricId
from app.catalog.precisions import FULL, parse
from app.errors import InvalidRequest


class Plan(Frozen):
    """What to run."""

    precisions: list[str] = Field(min_length=1, examples=[["full", "rtn-int8", "rtn-int4"]])
    metrics: list[MetricId] = Field(min_length=1)


PlanName = Literal["quick", "paper", "deploy"]
PLANS: Mapping[PlanName, tuple[str, ...]] = MappingProxyType(
    {
        "quick": ("full", "rtn-int4"),
        # The techniques and bit widths of arXiv 2410.16454; its published "4-bit RTN" numbers came from bnb-fp4.
        "paper": ("full", "rtn-int8", "rtn-int4", "gptq-int8", "gptq-int4", "awq-int4", "bnb-fp4"),
        "deploy": ("full", "bnb-nf4", "gptq-int4", "awq-int4", "mxfp4", "gguf-q4_0", "bnb-int8"),
    }
)
"""Lists of precisions by name; such a name may be used wherever a plan names a precision."""
DEFAULT_PLAN: PlanName = "paper"
DEFAULT_PRECISIONS = PLANS[DEFAULT_PLAN]


def split(text: str) -> list[str]:
    """The names in an option's comma-separated text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_names(precisions: Iterable[str], metrics: Sequence[str]) -> Plan:
    """The plan with `full` and without duplicates; metrics in the suite's order. Names of plans are expanded.

    Raises:
        InvalidRequest: `unknown_precision`, `unknown_metric`, naming the known ones.
    """
    expanded = (single for name in precisions for single in _members(name))
    found = list(dict.fromkeys(parse(name).name for name in expanded))
    if not found:
        raise InvalidRequest("invalid_request", "the plan names no precision; give some, such as full,rtn-int4")
    if FULL.name not in found:
        found.insert(0, FULL.name)
    if not metrics:
        raise InvalidRequest("nothing_to_measure", f"the plan names no metric. Known: {', '.join(METRICS)}")
    return Plan(precisions=found, metrics=check_metrics(metrics))


def check_metrics(names: Iterable[str]) -> list[MetricId]:
    """The metrics of these names, in the suite's order, without duplicates; `verbmem-sampled` is `verbmem_sampled`.

    Raises:
        InvalidRequest: `unknown_metric`, naming the known ones.
    """
    found = {name: name.replace("-", "_") for name in names}
    unknown = next((name for name, metric in found.items() if metric not in METRICS), None)
    if unknown is not None:
        raise InvalidRequest("unknown_metric", f"There is no metric {unknown!r}. Known: {', '.join(METRICS)}")
    return [metric for metric in METRICS if metric in found.values()]


def measurable(plan: Plan, unavailable: Mapping[MetricId, str] | Mapping[str, str]) -> list[MetricId]:
    """The plan's metrics that can be measured on the forget set; the report says that the plan's others are missing.

    Raises:
        InvalidRequest: `nothing_to_measure` when no metric of forgetting remains.
    """
    usable = [metric for metric in plan.metrics if metric not in unavailable]
    if not any(metric in FORGET_METRICS for metric in usable):
        reasons = "; ".join(left_out(plan.metrics, usable, unavailable).values())
        raise InvalidRequest(
            "nothing_to_measure",
            f"the plan is left without a metric of forgetting ({', '.join(FORGET_METRICS)})"
            + (f": {reasons}" if reasons else "; add one to plan.metrics"),
        )
    return usable


def left_out(
    asked: Sequence[MetricId], measured: Sequence[MetricId], unavailable: Mapping[MetricId, str] | Mapping[str, str]
) -> dict[str, str]:
    """Metric -> why it is not measured."""
    why: dict[str, str] = {str(metric): reason for metric, reason in unavailable.items()}
    return {metric: why.get(metric, "not part of the plan") for metric in asked if metric not in measured}


def _members(name: str) -> Sequence[str]:
    return next((precisions for plan, precisions in PLANS.items() if plan == name), (name,))
