"""What unlearning a model returns: the recipe, how training went, and what it changed. No text of the forget set."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from app.catalog.frozen import Frozen
from app.catalog.recipes import Recipe
from app.evidence.evaluation import CheckpointInfo, EngineInfo, ForgetSetInfo

StopReason = Literal["steps", "forgotten", "utility_floor", "non_finite", "runaway"]


class LossPoint(Frozen):
    """One optimiser step."""

    step: int
    loss: float
    forget: float
    retain: float | None = Field(
        description="Not yet multiplied by alpha; null for a loss without a part on retained texts."
    )
    learning_rate: float
    gradient_norm: float | None = None


SHOWN = 500
"""The most points of a loss curve that are shown, and stored while training runs."""


def thin(losses: Sequence[LossPoint]) -> list[LossPoint]:
    """At most `SHOWN` evenly spaced points, including the last one."""
    stride = -(-len(losses) // SHOWN) or 1
    return [point for number, point in enumerate(losses) if (len(losses) - 1 - number) % stride == 0]


class Reading(Frozen):
    """A reading of the stop rule on the watched half of the items, each a share in 0..1."""

    step: int
    passages: float | None
    answers: float | None
    membership: float | None
    utility: float | None


class ModuleSaliency(Frozen):
    """How much the forget loss would move one module of the original."""

    module: str
    parameters: int
    saliency: float = Field(description="||grad L_forget||_F at theta_o, over the forget set.")
    updated: int = Field(description="How many of its parameters training may change.")


class Unlearned(Frozen):
    """The record of one unlearning."""

    recipe: Recipe
    original: CheckpointInfo
    forget_set: ForgetSetInfo
    engine: EngineInfo
    digest: str = Field(description="Of the checkpoint that was written.")
    stopped: StopReason
    steps: int = Field(description="Optimiser steps that the checkpoint holds.")
    steps_planned: int
    resumed: int = Field(default=0, description="How many times training was interrupted and resumed.")
    losses: list[LossPoint]
    readings: list[Reading] = Field(default_factory=list)
    saliency: list[ModuleSaliency] | None = Field(default=None, description="SURE's map, largest first.")
    parameters_total: int
    parameters_trained: int = Field(description="Those that have optimiser state (LoRA: the adapters').")
    parameters_changed: int = Field(description="Parameters of the checkpoint whose stored value changed.")
    peak_memory: dict[str, int] = Field(description="Bytes: weights, gradients, optimizer, and what was measured.")
    seconds: dict[str, float] = Field(description="Stage -> wall seconds. Never compared.")
