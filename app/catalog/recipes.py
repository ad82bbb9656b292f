"""Recipes of unlearning: a loss, a method, and hyperparameters.

Names and numbers only, so that the API can validate a remediation without torch; `worker.engine.unlearning` runs them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from app.catalog.frozen import Frozen
from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.metrics import FORGET_METRICS, METRICS
from app.errors import FieldProblem, InvalidRequest

Loss = Literal["ga", "ga_gdr", "ga_klr", "npo", "npo_gdr", "npo_klr"]
"""The losses of arXiv 2410.16454: gradient ascent or NPO on the forget set; alone, with cross-entropy on the retain set
(gdr), or with the divergence from the original on it (klr)."""
LOSSES: tuple[Loss, ...] = get_args(Loss)
RETAINING: frozenset[Loss] = frozenset(loss for loss in LOSSES if loss.endswith(("_gdr", "_klr")))
"""The losses that need raw retain text."""


if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(UNLEARNING_METHODS)]


class StopRule(Frozen):
    """When to stop before all steps are done: every second item of the forget set is read every so often; the others
    never are.

    Training stops at the first reading at which they count as forgotten in all three senses, and at the first at which
    utility fell below the floor: then it goes back to the previous reading. Scores of such a model should be read with
    this in mind.
    """

    every: int = Field(default=10, ge=1, description="Steps between two readings.")
    passages: float = Field(
        default=0.6, ge=0, le=1, description="At most this share of VerbMem's true tokens is still the first choice."
    )
    answers: float = Field(
        default=0.3, ge=0, le=1, description="At most this share of KnowMem's forget questions is still answered."
    )
    membership: float = Field(
        default=0.6, ge=0, le=1, description="At least this AUC of Min-40 %; 0 where every text is recognised."
    )
    utility_floor: float = Field(
        default=0.6, ge=0, le=1, description="Share of KnowMem's retain answers at the start that must stay."
    )


class Hyperparameters(Frozen):
    """Everything that decides what training does, except the texts and the original."""

    learning_rate: float = Field(default=1e-5, gt=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1, description="Share of the steps in which the rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float | None = Field(default=None, gt=0, description="Clip gradients to this norm; null: never.")
    epochs: float = Field(default=10.0, gt=0, le=1000, description="Passes over raw/forget.")
    max_steps: int | None = Field(default=None, ge=1, le=1_000_000, description="Optimiser steps, instead of epochs.")
    batch_size: int = Field(
        default=2, ge=1, le=4096, description="Forget texts per forward pass, and as many retain texts."
    )
    retain_batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="Retain texts per forward pass, if not as many."
    )
    gradient_accumulation: int = Field(default=1, ge=1, le=4096, description="Forward passes per optimiser step.")
    alpha: float = Field(
        default=1.0, ge=0, description="Weight of the part on retained texts (losses with gdr or klr)."
    )
    beta: float = Field(default=0.1, gt=0, description="NPO's inverse temperature.")
    npo_ratio: Literal["sum", "mean"] = Field(
        default="sum", description="Log-ratios of whole sequences, as published, or per token: not NPO as published."
    )
    max_length: int = Field(default=2048, ge=8, description="Tokens per text; longer ones are cut into pieces.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="The dtype of the trained weights; auto: bfloat16 on a GPU, float32 on the CPU."
    )
    gradient_checkpointing: bool | None = Field(default=None, description="Null: only on a GPU.")
    modules: Literal["linear", "all"] = Field(
        default="linear",
        description="What may be trained: the decoder's linear layers alone, which are what a precision quantizes, or"
        " every parameter. Plain and control train every parameter unless told otherwise.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint_every: int = Field(default=50, ge=1, description="Steps between two states from which it can resume.")
    stop: StopRule | None = Field(default=None, description="Null: never stop early.")

    saliency_percentile: float = Field(
        default=90.0, ge=0, lt=100, description="SURE: the percentile of the saliencies that is the threshold."
    )
    saliency_granularity: Literal["module", "row"] = Field(
        default="module", description="SURE: choose whole modules, or their rows (by masked updates)."
    )
    lora_rank: int = Field(default=32, ge=1, le=4096)
    lora_alpha: float = Field(default=32.0, gt=0)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    lora_target_modules: list[str] | None = Field(
        default=None, min_length=1, description="LoRA: names of linear layers, e.g. q_proj; null: all of the decoder's."
    )


class Recipe(Frozen):
    """Everything that decides one unlearning: method, loss, hyperparameters."""

    method: MethodName
    loss: Loss
    hyperparameters: Hyperparameters

    @property
    def retains(self) -> bool:
        """Whether it reads raw/retain."""
        return self.loss in RETAINING or UNLEARNING_METHODS[self.method].needs_retain


def recipe(method: str, loss: str, given: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with the method's defaults for whatever is not given.

    Raises:
        InvalidRequest: `unknown_method`, `unknown_loss`.
        pydantic.ValidationError: hyperparameters that do not exist or are out of range.
    """
    if method not in UNLEARNING_METHODS:
        raise InvalidRequest("unknown_method", f"There is no method {method!r}. Known: {', '.join(UNLEARNING_METHODS)}")
    if loss not in LOSSES:
        raise InvalidRequest("unknown_loss", f"There is no loss {loss!r}. Known: {', '.join(LOSSES)}")
    chosen = Hyperparameters.model_validate({**UNLEARNING_METHODS[method].defaults, **(given or {})})
    return Recipe(method=method, loss=loss, hyperparameters=chosen)


def check_texts(chosen: Recipe, counts: Mapping[str, int]) -> None:
    """Raise unless a forget set holds what a recipe trains on and what its stop rule reads.

    Args:
        chosen: The recipe.
        counts: Items per set of the forget set (`ForgetSetInfo.counts`).

    Raises:
        InvalidRequest: `forget_set_incomplete`, naming the file.
    """

    def lacks(file: str, why: str) -> InvalidRequest:
        place = FieldProblem(file=f"{file}.json", message=f"is missing: {why}")
        return InvalidRequest("forget_set_incomplete", f"the forget set has no {file}.json: {why}", errors=[place])

    if not counts.get("raw/forget"):
        raise lacks("raw/forget", "unlearning trains on the raw texts that must be forgotten")
    if chosen.retains and not counts.get("raw/retain"):
        if chosen.loss in RETAINING:
            instead = chosen.loss.partition("_")[0]
            raise lacks("raw/retain", f"{chosen.loss} trains on raw texts that must be kept ({instead} does not)")
        raise lacks("raw/retain", f"{chosen.method} reads raw texts that must be kept")
    watched = [METRICS[metric].needs for metric in FORGET_METRICS]
    if chosen.hyperparameters.stop and not any(all(map(counts.get, sets)) for sets in watched):
        raise lacks(watched[0][0], "the stop rule has nothing to read; give items of a forget metric, or no stop rule")


def describe(found: Recipe) -> str:
    """`sure over npo_gdr (alpha 8, learning_rate 0.0003)`: the recipe, with what differs from the method's defaults."""
    usual = recipe(found.method, found.loss).hyperparameters
    own = _differences(found.hyperparameters.model_dump(), usual.model_dump())
    return f"{found.method} over {found.loss}" + (f" ({', '.join(own)})" if own else "")


def _differences(values: dict[str, Any], usual: dict[str, Any], within: str = "") -> list[str]:
    said: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            said += _differences(value, usual.get(name) or {}, f"{within}{name}.")
        elif value != usual.get(name):
            said.append(f"{within}{name} {f'{value:g}' if isinstance(value, float) else value}")
    return said
