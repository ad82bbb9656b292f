"""Remediation by `auto`: the ladder of recipes, tried until one passes."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.catalog.recipes import Recipe
from app.settings import settings
from tests.support.remediations import begin, drain, failed_audit, read
from tests.support.service import Service
from tests.support.stand_ins.scored import BROKEN, FORGOT_IN_FULL, ROBUST, Scores, Unlearning
from worker.attempts import remediations


def by_percentile(scores: dict[float | str, Scores]) -> Any:
    """Scores by SURE's percentile, or by the method."""

    def of(recipe: Recipe) -> Scores:
        key = recipe.hyperparameters.saliency_percentile if recipe.method == "sure" else recipe.method
        return scores[key]

    return of


LADDER = [
    {"method": "sure", "hyperparameters": {"saliency_percentile": 90}},
    {"method": "sure", "hyperparameters": {"saliency_percentile": 75}},
    {"method": "lora"},
]


@pytest.fixture
def ladder(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LETHE_REMEDIATION_LADDER", json.dumps(LADDER))
    settings.cache_clear()
    yield LADDER
    monkeypatch.undo()
    settings.cache_clear()


def test_the_ladder_can_be_seen(service: Service, ladder: Any) -> None:
    shown = service.get("/v1/remediations/ladder").json()["steps"]
    assert [step["method"] for step in shown] == ["sure", "sure", "lora"]
    assert shown[0]["hyperparameters"] == {"saliency_percentile": 90}


def test_auto_stops_at_the_first_robust_trial_and_audits_it_with_the_whole_plan(service: Service, ladder: Any) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit, method="auto", loss="ga_gdr", hyperparameters={"alpha": 3})
    assert len(remediation["recipes"]) == 3
    unlearning = Unlearning(by_percentile({90: FORGOT_IN_FULL, 75: ROBUST, "lora": ROBUST}))
    drain(unlearning)
    done = read(service, remediation)
    assert (done["state"], done["verdict"], done["chosen"]) == ("finished", "robust", 1)
    assert [recipe.loss for recipe in unlearning.recipes] == ["ga_gdr"] * 2
    assert {recipe.hyperparameters.alpha for recipe in unlearning.recipes} == {3}
    first, second = done["trials"]
    screening = service.get(f"/v1/audits/{first['screening']['id']}").json()
    assert screening["plan"]["precisions"] == ["full", "rtn-int4"]  # rtn-int8 did not fail
    assert (first["screening"]["verdict"], first["audit"]) == ("recovered", None)
    assert second["screening"]["verdict"] == second["audit"]["verdict"] == "robust"
    assert second["audit"]["total"] == 6
    # What is not returned is not kept; its digest is.
    remediations.clean()
    first, second = read(service, remediation)["trials"]
    assert first["model"]["deleted_at"] is not None
    assert first["model"]["digest"].startswith("sha256:")
    assert not Path(first["model"]["uri"]).exists()
    assert second["model"]["deleted_at"] is None
    assert Path(second["model"]["uri"]).exists()


def test_auto_goes_on_where_the_whole_plan_finds_what_the_screening_did_not(service: Service, ladder: Any) -> None:
    remediation = begin(service, failed_audit(service), method="auto")
    at_eight: Scores = ROBUST | {"rtn-int8": (80, 90)}
    drain(Unlearning(by_percentile({90: at_eight, 75: ROBUST, "lora": ROBUST})))
    done = read(service, remediation)
    assert [(trial["screening"]["verdict"], trial["audit"]["verdict"]) for trial in done["trials"]] == [
        ("robust", "recovered"),
        ("robust", "robust"),
    ]
    assert done["chosen"] == 1


def test_auto_returns_the_best_with_honest_words_where_none_is_robust(service: Service, ladder: Any) -> None:
    remediation = begin(service, failed_audit(service), method="auto")
    better: Scores = {"full": (10, 90), "rtn-int8": (10, 90), "rtn-int4": (40, 90)}
    drain(Unlearning(by_percentile({90: FORGOT_IN_FULL, 75: better, "lora": BROKEN})))
    done = read(service, remediation)
    assert (done["state"], done["verdict"], done["chosen"]) == ("finished", "recovered", 1)
    for said in ("No trial was robust", "1 collapsed", "2 recovered", "Trial 2", "44 %", "does not pass the audit"):
        assert said in done["sentence"], (said, done["sentence"])
    assert service.get(done["links"]["report"]).json()["trials"][2]["outcome"] == "collapsed"


def test_a_budget_ends_the_ladder_and_says_so(service: Service, ladder: Any) -> None:
    audit = failed_audit(service)
    by_trials = begin(service, audit, method="auto", budget={"trials": 1})
    by_time = begin(service, audit, method="auto", budget={"minutes": 1e-6})
    drain(Unlearning(lambda recipe: FORGOT_IN_FULL))
    for remediation in (by_trials, by_time):
        done = read(service, remediation)
        assert (done["verdict"], len(done["trials"])) == ("recovered", 1)
        assert "2 more were not tried" in done["sentence"]


def test_a_trial_that_fails_does_not_end_the_ladder(service: Service, ladder: Any) -> None:
    remediation = begin(service, failed_audit(service), method="auto")

    def scores(recipe: Recipe) -> Scores:
        if recipe.hyperparameters.saliency_percentile == 90 and recipe.method == "sure":
            raise MemoryError("all of it")
        return ROBUST

    drain(Unlearning(scores))
    done = read(service, remediation)
    assert (done["verdict"], done["trials"][0]["error_code"]) == ("robust", "out_of_memory")
