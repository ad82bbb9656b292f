"""A plan as it was asked for -> a plan that can run."""

from collections.abc import Mapping, Sequence

from app.audits.schemas import NewPlan
from app.errors import InvalidRequest
from app.precisions import FULL, parse
from app.reports.report import Plan
from app.reports.schemas import FORGET_METRICS, METRICS, MetricId


def check_names(plan: NewPlan) -> Plan:
    """The plan with `full` in it and without doubles; metrics in the suite's order.

    Raises:
        InvalidRequest: `unknown_precision`, `unknown_metric`, naming the known ones.
    """
    precisions = list(dict.fromkeys(parse(name).name for name in plan.precisions))
    if FULL.name not in precisions:
        precisions.insert(0, FULL.name)
    for name in plan.metrics:
        if name not in METRICS:
            raise InvalidRequest("unknown_metric", f"There is no metric {name!r}. Known: {', '.join(METRICS)}")
    return Plan(precisions=precisions, metrics=[metric for metric in METRICS if metric in plan.metrics])


def fit(plan: Plan, unavailable: Mapping[str, str]) -> Plan:
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


def left_out(asked: Sequence[MetricId], measured: Sequence[MetricId], unavailable: Mapping[str, str]) -> dict[str, str]:
    """Metric -> why it is not measured."""
    return {metric: unavailable.get(metric, "not part of the plan") for metric in asked if metric not in measured}
