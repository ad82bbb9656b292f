"""From a request to the recipes to try."""

from pydantic import BaseModel, ValidationError

from app.catalog.ladder import DEFAULT_LADDER, DEFAULT_LOSS, LadderStep, ladder_recipes
from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.recipes import Recipe, recipe
from app.errors import FieldProblem, InvalidRequest
from app.http.problems import invalid_fields
from app.remediations.schemas import AUTO, NewRemediation
from app.settings import settings


class _Given(BaseModel):
    """Its field is named like the setting, so that errors name the setting."""

    remediation_ladder: list[LadderStep]


def ladder() -> list[LadderStep]:
    """What the method `auto` tries, in order. The service also calls it at its start, so that a bad setting stops it.

    Raises:
        InvalidRequest: `unknown_method`, `unknown_loss`.
        pydantic.ValidationError: another part of the setting is wrong.
    """
    given = settings().remediation_ladder
    return (
        list(DEFAULT_LADDER)
        if given is None
        else _Given.model_validate({"remediation_ladder": given}).remediation_ladder
    )


def recipes(body: NewRemediation) -> list[Recipe]:
    """What to try, in order: the one requested recipe, or the ladder's.

    Raises:
        InvalidRequest: `unknown_method`, `unknown_loss`, or `invalid_request` naming the hyperparameter.
    """
    if body.method != AUTO and body.method not in UNLEARNING_METHODS:
        known = ", ".join((*UNLEARNING_METHODS, AUTO))
        raise InvalidRequest("unknown_method", f"There is no method {body.method!r}. Known: {known}")
    if body.method != AUTO and body.budget is not None:
        message = f"only the method {AUTO} takes a budget; {body.method} is a single trial"
        raise InvalidRequest("invalid_request", message, errors=[FieldProblem(field="budget", message=message)])
    loss = body.loss or DEFAULT_LOSS
    try:
        method = next(iter(UNLEARNING_METHODS)) if body.method == AUTO else body.method
        asked = recipe(method, loss, body.hyperparameters)
        if body.method != AUTO:
            return [asked]
        return ladder_recipes(ladder(), asked.loss, body.hyperparameters)
    except ValidationError as error:
        raise invalid_fields([(("hyperparameters", *found["loc"]), found["msg"]) for found in error.errors()]) from None
