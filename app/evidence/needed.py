"""Which evaluations an audit needs, for the service and for `lethe run` alike."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.catalog.plans import Plan
from app.evidence.artifacts import Shipped
from app.evidence.evaluation import Role


class Needed(NamedTuple):
    """One evaluation that an audit asks for."""

    role: Role
    precision: str
    """What the audit calls it."""
    evaluated_at: str
    """The evaluation's own precision, which differs from the audit's name only for artifacts."""
    artifact: str | None = None
    """The name of the artifact that is evaluated; None for the role's own checkpoint."""

    @property
    def base(self) -> Role | None:
        """The role whose checkpoint an artifact is said to be made from."""
        return None if self.artifact is None else self.role


def evaluations(plan: Plan, roles: Iterable[Role], shipped: Sequence[Shipped]) -> list[Needed]:
    """Every role at every precision of the plan, then the artifacts as they are shipped."""
    every = list(roles)
    needed = [Needed(role, precision, precision) for precision in plan.precisions for role in every]
    for pair in shipped:
        for one in (pair.original, pair.unlearned):
            if one is not None:
                needed.append(Needed(one.of, pair.precision, one.format_precision, one.name))
    return needed


def whole(plan: Plan, shipped: Sequence[Shipped]) -> Plan:
    """The plan with the precisions that its artifacts add."""
    return Plan(precisions=[*plan.precisions, *(pair.precision for pair in shipped)], metrics=plan.metrics)
