"""Plans by name, and the precisions in them."""

import pytest
from pydantic import ValidationError

from app.audits.schemas import NewAudit
from app.errors import InvalidRequest
from app.plans import DEFAULT_PRECISIONS, PLANS, check_names
from app.precisions import parse
from app.reports.schemas import METRICS


def precisions(plan: object) -> list[str]:
    body = {"original": "a", "unlearned": "b", "forget_set": "c", "plan": plan}
    found = NewAudit.model_validate({key: value for key, value in body.items() if value is not None})
    return check_names(found.plan.precisions, found.plan.metrics).precisions


def test_a_plan_is_given_by_name_by_list_or_not_at_all() -> None:
    assert precisions("quick") == precisions({"name": "quick"}) == ["full", "rtn-int4"]
    assert precisions({"precisions": ["quick", "bnb-nf4", "rtn-int4"]}) == ["full", "rtn-int4", "bnb-nf4"]
    assert precisions(None) == precisions({}) == precisions("paper") == list(DEFAULT_PRECISIONS)
    assert precisions({"name": "deploy", "metrics": ["privleak"]}) == list(PLANS["deploy"])
    assert precisions({"precisions": ["gptq-int4@retain"]}) == ["full", "gptq-int4@retain"]


def test_an_unknown_plan_or_a_name_beside_a_list_is_refused() -> None:
    with pytest.raises(ValidationError, match="'quick', 'paper' or 'deploy'"):
        precisions("papers")
    with pytest.raises(ValidationError, match="not both"):
        precisions({"name": "quick", "precisions": ["rtn-int8"]})
    with pytest.raises(InvalidRequest, match="There is no precision 'papers'"):
        check_names(["papers"], METRICS)


@pytest.mark.parametrize("members", PLANS.values(), ids=PLANS)
def test_every_named_plan_holds_known_precisions_and_full(members: tuple[str, ...]) -> None:
    assert members[0] == "full"
    assert [parse(member).name for member in members] == list(members)
