"""Plans by name, and the precisions in them."""

import pytest
from pydantic import ValidationError

from app.audits.schemas import NewAudit
from app.catalog.metrics import METRICS
from app.catalog.plans import DEFAULT_PRECISIONS, PLANS, check_names, measurable
from app.catalog.precisions import parse
from app.errors import InvalidRequest


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
        check_names(["papers"], list(METRICS))


def test_metrics_are_named_with_hyphens_too_and_only_muses_own_are_the_default() -> None:
    named = ["knowmem-retain", "verbmem-sampled", "verbmem", "verbmem_sampled"]
    assert check_names(["full"], named).metrics == ["verbmem", "knowmem_retain", "verbmem_sampled"]
    with pytest.raises(InvalidRequest, match=r"There is no metric 'verb-mem'. Known: .*verbmem_sampled"):
        check_names(["full"], ["verb-mem"])
    body = NewAudit.model_validate({"original": "a", "unlearned": "b", "forget_set": "c"})
    assert body.plan.metrics == ["verbmem", "knowmem_forget", "privleak", "knowmem_retain"]


def test_sampling_alone_says_nothing_of_forgetting() -> None:
    with pytest.raises(InvalidRequest) as refused:
        measurable(check_names(["full"], ["verbmem-sampled", "knowmem-retain"]), {})
    assert refused.value.code == "nothing_to_measure"


@pytest.mark.parametrize("members", PLANS.values(), ids=PLANS)
def test_every_named_plan_holds_known_precisions_and_full(members: tuple[str, ...]) -> None:
    assert members[0] == "full"
    assert [parse(member).name for member in members] == list(members)


def test_a_plan_gets_full_precision_and_loses_doubles() -> None:
    plan = check_names(["rtn-int4", "rtn-int4"], ["knowmem_retain", "verbmem"])
    assert plan.precisions == ["full", "rtn-int4"]
    assert plan.metrics == ["verbmem", "knowmem_retain"]


@pytest.mark.parametrize(
    ("precisions", "metrics", "code"),
    [
        (["rtn-int5"], ["verbmem"], "unknown_precision"),
        (["full"], ["memverb"], "unknown_metric"),
        (["full"], [], "nothing_to_measure"),
    ],
)
def test_a_plan_with_names_that_do_not_exist_is_refused(precisions: list[str], metrics: list[str], code: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_names(precisions, metrics)
    assert error.value.code == code


def test_a_plan_whose_metrics_the_forget_set_lacks_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest) as error:
        measurable(check_names(["full"], ["verbmem"]), {"verbmem": "verbmem/forget.json is missing"})
    assert error.value.code == "nothing_to_measure"
    assert "verbmem/forget.json is missing" in error.value.detail


def test_an_empty_plan_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        check_names([], ["verbmem"])
