"""The ladder: which recipes it makes of a request."""

from typing import Any

from app.catalog.ladder import DEFAULT_LADDER, LadderStep, ladder_recipes
from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.recipes import Hyperparameters, recipe


def test_the_default_ladder_tries_sure_and_then_lora_on_the_requests_loss() -> None:
    recipes = ladder_recipes(list(DEFAULT_LADDER), "ga_gdr", {"alpha": 3, "learning_rate": 0.5})
    assert [recipe.method for recipe in recipes] == ["sure", "sure", "sure", "lora", "lora"]
    assert {recipe.loss for recipe in recipes} == {"ga_gdr"}
    assert {recipe.hyperparameters.alpha for recipe in recipes} == {3}
    # What tells the steps apart is theirs.
    assert [recipe.hyperparameters.learning_rate for recipe in recipes] == [1e-4, 1e-4, 3e-4, 1e-4, 1e-3]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes)


def test_every_ladder_step_changes_only_what_precisions_quantize_unless_told_otherwise() -> None:
    def modules(given: dict[str, Any]) -> set[str]:
        return {recipe.hyperparameters.modules for recipe in ladder_recipes(list(DEFAULT_LADDER), "ga", given)}

    assert modules({}) == {"linear"}
    assert modules({"modules": "all"}) == {"all"}
    assert {method: recipe(method, "ga").hyperparameters.modules for method in UNLEARNING_METHODS} == {
        "plain": "all",
        "control": "all",
        "sure": "linear",
        "lora": "linear",
    }


def test_a_ladder_step_that_names_its_loss_keeps_it() -> None:
    assert ladder_recipes([LadderStep(method="lora", loss="npo")], "ga", {})[0].loss == "npo"


def test_every_hyperparameter_of_the_ladder_exists() -> None:
    for step in DEFAULT_LADDER:
        assert set(step.hyperparameters) <= set(Hyperparameters.model_fields)
