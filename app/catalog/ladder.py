"""The ladder of `"method": "auto"`: recipes in the order in which they are tried."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from app.catalog.frozen import Frozen
from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.recipes import Loss, MethodName, Recipe, recipe

DEFAULT_LOSS: Loss = "npo_gdr"


class LadderStep(Frozen):
    """One recipe of the ladder; what it leaves open comes from the request, then from the method's defaults."""

    method: MethodName
    loss: Loss | None = Field(default=None, description="The request's where it is left out.")
    hyperparameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_a_recipe(self) -> "LadderStep":
        recipe(self.method, self.loss or DEFAULT_LOSS, self.hyperparameters)
        return self


DEFAULT_LADDER: tuple[LadderStep, ...] = tuple(
    LadderStep(method=method.name, hyperparameters=dict(given))
    for method in UNLEARNING_METHODS.values()
    for given in method.ladder
)


def ladder_recipes(steps: list[LadderStep], loss: Loss | None, given: Mapping[str, Any]) -> list[Recipe]:
    """The ladder's recipes, completed by a request.

    Args:
        loss: The request's; a step that names its own keeps it.
        given: The request's hyperparameters. A step's own take precedence: they are what sets the steps apart.
    """
    return [recipe(step.method, step.loss or loss or DEFAULT_LOSS, {**given, **step.hyperparameters}) for step in steps]
