"""A plan as it is asked for -> a plan that can run; the same for the service and for `lethe run`."""

from collections.abc import Iterable, Mapping, Sequence

from app.errors import InvalidRequest
from app.precisions import FULL, parse
from app.reports.report import Plan
from app.reports.schemas import FORGET_METRICS, METRICS, MetricId

DEFAULT_PRECISIONS = ("full", "rtn-int8", "rtn-int4", "bnb-nf4")


def check_names(precisions: Iterable[str], metrics: Sequence[str]) -> Plan:
    """The plan with `full` in it and without doubles; metrics in the suite's order.

    Raises:
        InvalidRequest: `unknown_precision`, `unknown_metric`, naming the known ones.
    """
    found = list(dict.fromkeys(parse(name).name for name in precisions))
    if not found:
        raise InvalidRequest("invalid_request", "the plan names no precision; for example full,rtn-int8,rtn-int4")
    if FULL.name not in found:
        found.insert(0, FULL.name)
    for name in metrics:
        if name not in METRICS:
            raise InvalidRequest("unknown_metric", f"There is no metric {name!r}. Known: {', '.join(METRICS)}")
    if not metrics:
        raise InvalidRequest("nothing_to_measure", f"the plan names no metric. Known: {', '.join(METRICS)}")
    return Plan(precisions=found, metrics=[metric for metric in METRICS if metric in metrics])


def fit(plan: Plan, unavailable: Mapping[MetricId, str] | Mapping[str, str]) -> Plan:
    """The plan with those metrics only that the forget set allows.

    Raises:
        InvalidRequest: `nothing_to_measure` when no metric of forgetting remains.
    """
    usable = [metric for metric in plan.metrics if metric not in unavailable]
    if not any(metric in FORGET_METRICS for metric in usable):
        reasons = "; ".join(left_out(plan.metrics, usable, unavailable).values())
        raise InvalidRequest(
            "nothing_to_measure",
            f"no metric of forgetting ({', '.join(FORGET_METRICS)}) remains of the plan"
            + (f": {reasons}" if reasons else "; add one to plan.metrics"),
        )
    return Plan(precisions=plan.precisions, metrics=usable)


def left_out(
    asked: Sequence[MetricId], measured: Sequence[MetricId], unavailable: Mapping[MetricId, str] | Mapping[str, str]
) -> dict[str, str]:
    """Metric -> why it is not measured."""
    why: dict[str, str] = {str(metric): reason for metric, reason in unavailable.items()}
    return {metric: why.get(metric, "not part of the plan") for metric in asked if metric not in measured}
