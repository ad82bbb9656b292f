"""A request -> the recipes to try."""

from collections.abc import Iterable

from pydantic import ValidationError

from app.errors import FieldProblem, InvalidRequest
from app.ladder import DEFAULT_BASE, climb
from app.methods import DEFAULTS, METHODS, RETAINING, Hyperparameters, Recipe, recipe
from app.problems import invalid_fields
from app.remediations.schemas import AUTO, NewRemediation
from app.settings import settings


def recipes(body: NewRemediation) -> list[Recipe]:
    """What to try, in order: the one recipe that was asked for, or the ladder's.

    Raises:
        InvalidRequest: `unknown_method`, `unknown_base`, or `invalid_request` naming the hyperparameter.
    """
    if body.method != AUTO and body.method not in METHODS:
        known = ", ".join((*METHODS, AUTO))
        raise InvalidRequest("unknown_method", f"There is no method {body.method!r}. Known: {known}")
    if body.method != AUTO and body.budget is not None:
        message = f"a budget is for the method {AUTO}; {body.method} is one trial"
        raise InvalidRequest("invalid_request", message, errors=[FieldProblem(field="budget", message=message)])
    base = body.base or DEFAULT_BASE
    try:
        asked = recipe(METHODS[0] if body.method == AUTO else body.method, base, body.hyperparameters)
        if body.method != AUTO:
            return [asked]
        return climb(settings().remediation_ladder, asked.base, body.hyperparameters)
    except ValidationError as error:
        raise invalid_fields([(("hyperparameters", *found["loc"]), found["msg"]) for found in error.errors()]) from None


def check_texts(wanted: Iterable[Recipe], counts: dict[str, int]) -> None:
    """Raise unless the forget set has the texts that these recipes train on.

    Args:
        counts: Items per file, as reports.schemas.ForgetSetInfo has them.

    Raises:
        InvalidRequest: `raw_text_missing`, naming each file.
    """
    problems: list[FieldProblem] = []
    if not counts.get("raw/forget"):
        problems.append(
            FieldProblem(file="raw/forget.json", message="is missing or empty: there is no text to be forgotten")
        )
    retaining = sorted({found.base for found in wanted} & RETAINING)
    if retaining and not counts.get("raw/retain"):
        problems.append(
            FieldProblem(
                file="raw/retain.json",
                message=f"is missing or empty, and {', '.join(retaining)} trains on it; upload a forget set that"
                " has it, or take the base ga or npo",
            )
        )
    if problems:
        detail = "; ".join(f"{problem.file} {problem.message}" for problem in problems)
        raise InvalidRequest("raw_text_missing", detail, errors=problems)


def describe(found: Recipe) -> str:
    """`sure over npo_gdr (alpha 8, learning_rate 0.0003)`: what it says beyond the method's defaults."""
    usual = Hyperparameters.model_validate(DEFAULTS[found.method])
    own = [
        f"{name} {_short(value)}"
        for name, value in found.hyperparameters
        if value != getattr(usual, name) and value is not None
    ]
    return f"{found.method} over {found.base}" + (f" ({', '.join(own)})" if own else "")


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int | str) else type(value).__name__
