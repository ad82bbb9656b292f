"""The ladder as a setting, and which trial is the best."""

import pytest
from pydantic import ValidationError

from app.catalog.plans import Plan
from app.catalog.recipes import describe, recipe
from app.database.models import Audit, Remediation, Trial
from app.database.states import AuditState
from app.errors import InvalidRequest
from app.evidence.evaluation import ForgetSetInfo
from app.evidence.unlearning import Unlearned
from app.judgement.policy import Policy
from app.remediations import outcome
from app.remediations.ranking import Standing, screening_precisions
from app.remediations.recipes import ladder
from app.reports.model import AuditReport, Evidence, make_report
from app.settings import settings
from tests.support.judgement.evaluations import AUDIT, MEMBER, OUTSIDER, PAIR, diagnosis, evaluation


@pytest.mark.parametrize(
    "steps",
    ["[]", '[{"method": "magic"}]', '[{"method": "sure", "hyperparameters": {"alfa": 1}}]', '[{"methd": "sure"}]'],
)
def test_a_ladder_of_unknown_recipes_is_refused(steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_REMEDIATION_LADDER", steps)
    settings.cache_clear()
    with pytest.raises((ValidationError, InvalidRequest)):
        ladder()
    settings.cache_clear()


def judged(**scores: float) -> AuditReport:
    """A report on a pair: precision -> KnowMem on forget of the unlearned model."""
    names = [name.replace("_", "-") for name in scores]
    evidence = [
        Evidence(
            role=role,
            precision=name,
            evaluation=evaluation(forget=forget, retain=90, items=24, precision=name, membership=membership),
        )
        for name, own in zip(names, scores.values(), strict=True)
        for role, forget, membership in zip(PAIR, (90, own), (MEMBER, OUTSIDER), strict=True)
    ]
    info = {role: evaluation(forget=1).checkpoint for role in PAIR}
    plan = Plan(precisions=names, metrics=["knowmem_forget", "knowmem_retain"])
    forget_set = ForgetSetInfo(digest="sha256:1", counts={}, unavailable={})
    return make_report(AUDIT, info, forget_set, plan, Policy(), evidence, diagnosis())


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (judged(full=10, gptq_int4=88, rtn_int8=10, rtn_int4=88, bnb_nf4=88), ["full", "rtn-int4"]),
        (judged(full=10, gptq_int4=88, rtn_int4=10, awq_int4=88), ["full", "gptq-int4"]),
        (judged(full=10, gptq_int4=10, bnb_nf4=10), ["full", "bnb-nf4"]),
        (judged(full=80), ["full"]),
    ],
)
def test_the_cheapest_precision_that_failed_is_looked_at_first(report: AuditReport, expected: list[str]) -> None:
    assert screening_precisions(report) == expected


def test_a_precision_of_which_nothing_is_known_has_not_failed() -> None:
    report = judged(full=10, rtn_int4=10, bnb_nf4=88)
    unknown = [
        found.model_copy(update={"outcome": "inconclusive"}) if found.precision == "rtn-int4" else found
        for found in report.precisions
    ]
    assert screening_precisions(report.model_copy(update={"precisions": unknown})) == ["full", "bnb-nf4"]


@pytest.mark.parametrize(("others", "said"), [("collapsed", True), (None, True), ("inconclusive", False)])
def test_a_collapse_that_only_the_whole_plan_found_is_not_said_of_all(others: str | None, said: bool) -> None:
    chosen = recipe("sure", "ga", {})
    info = judged(full=10).checkpoints["original"]
    engine = evaluation(forget=1).engine
    made = Unlearned(
        recipe=chosen,
        original=info,
        forget_set=ForgetSetInfo(digest="sha256:1", counts={}, unavailable={}),
        engine=engine,
        digest="sha256:2",
        stopped="steps",
        steps=1,
        steps_planned=1,
        losses=[],
        parameters_total=1,
        parameters_trained=1,
        parameters_changed=1,
        peak_memory={},
        seconds={},
    )
    best = Trial(position=0, recipe=chosen.model_dump(), result=made.model_dump(), audit=Audit(verdict="collapsed"))
    screening = None if others is None else Audit(verdict=others, state=AuditState.FINISHED)
    other = Trial(position=1, recipe=chosen.model_dump(), screening=screening, error_code="runaway")
    report = judged(full=10, rtn_int4=10).model_copy(update={"verdict": "collapsed"})
    sentence = outcome.ending(Remediation(recipes=[{}, {}]), [best, other], best, report)
    assert ("all did" in sentence) is said


def test_a_robust_trial_goes_before_one_that_kept_less_and_a_broken_one_after_all() -> None:
    robust, leaky = Standing(False, False, 0.3, 3), Standing(True, False, 0.1, 0)
    broken, unknown = Standing(True, True, 0.0, 1), Standing(True, False, float("inf"), 2)
    assert sorted([broken, unknown, leaky, robust]) == [robust, leaky, unknown, broken]


def test_a_recipe_is_described_by_what_differs_from_its_methods_defaults() -> None:
    own = {"alpha": 8, "learning_rate": 3e-4, "stop": {"every": 5}}
    assert describe(recipe("sure", "npo", own)) == "sure over npo (learning_rate 0.0003, alpha 8, stop.every 5)"
    assert describe(recipe("sure", "npo", {"stop": None})) == "sure over npo (stop None)"
    assert describe(recipe("lora", "ga")) == "lora over ga"
