"""The ladder that `"method": "auto"` climbs: recipes in the order in which they are tried."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from app.catalog.frozen import Frozen
from app.catalog.methods import Base, Method, Recipe, recipe

DEFAULT_BASE: Base = "npo_gdr"


class Rung(Frozen):
    """One recipe of the ladder; what it does not say comes from the request, and then from the method's defaults."""

    method: Method
    base: Base | None = Field(default=None, description="The request's where it is left out.")
    hyperparameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_a_recipe(self) -> "Rung":
        recipe(self.method, self.base or DEFAULT_BASE, self.hyperparameters)
        return self


DEFAULT_LADDER: tuple[Rung, ...] = (
    Rung(method="sure", hyperparameters={"saliency_percentile": 90, "learning_rate": 1e-4}),
    Rung(method="sure", hyperparameters={"saliency_percentile": 75, "learning_rate": 1e-4}),
    Rung(method="sure", hyperparameters={"saliency_percentile": 75, "learning_rate": 3e-4}),
    Rung(method="lora", hyperparameters={"learning_rate": 1e-4}),
    Rung(method="lora", hyperparameters={"learning_rate": 1e-3}),
)
"""SURE from few modules and small steps to more of both, then LoRA. Ours: neither paper publishes such a list."""


def climb(rungs: list[Rung], base: Base | None, given: Mapping[str, Any]) -> list[Recipe]:
    """The recipes that a request makes of the ladder.

    Args:
        base: The request's; a rung that names its own keeps it.
        given: The request's hyperparameters. A rung's own go before them: they are what tells the rungs apart.
    """
    return [recipe(rung.method, rung.base or base or DEFAULT_BASE, {**given, **rung.hyperparameters}) for rung in rungs]
