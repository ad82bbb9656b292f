"""What a method lets training change, and how that is written back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.recipes import Hyperparameters, Recipe
from app.evidence.unlearning import ModuleSaliency
from worker.engine.inference.subject import Progress
from worker.engine.layers.linear import targets
from worker.engine.unlearning import write
from worker.engine.unlearning.objective import Objective

COPIES_TRAINED: Final = 3
"""A gradient and AdamW's two moments: what training holds of a parameter beside its weight."""


class FrozenRows:
    """The rows that must stay, put back after every optimiser step.

    Masking gradients would not do: AdamW's momentum and weight decay move a weight whose gradient is zero.
    """

    def __init__(self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor]) -> None:
        self._rows: list[tuple[Parameter, Tensor, Tensor]] = []
        for name, mask in masks.items():
            if not mask.all():
                stays = (~mask).nonzero()[:, 0].to(parameters[name].device)
                self._rows.append((parameters[name], stays, parameters[name].detach()[stays].clone()))

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return sum(values.nbytes for _, _, values in self._rows)

    @torch.no_grad()
    def restore(self) -> None:
        """θ = θ_o + m ⊙ (θ - θ_o)."""
        for parameter, stays, values in self._rows:
            parameter[stays] = values


@dataclass(frozen=True)
class Trainable:
    """The parameters that training changes, all others frozen."""

    parameters: dict[str, Parameter]
    written: Callable[[], Mapping[str, write.Change]] | None = None
    """Called once training has ended: parameter of the original -> how it changes. None: each of `parameters` takes the
    value that it was trained to."""
    frozen_rows: FrozenRows | None = None
    saliency: list[ModuleSaliency] | None = None
    saliency_bytes: int = 0


def make_trainable(
    model: PreTrainedModel, recipe: Recipe, objective: Objective, work: Path, progress: Progress
) -> Trainable:
    """Freeze the model, in place, but for what the method may change.

    `work` is the folder of states: what is measured once may be kept there, so that going on takes the same.

    Raises:
        UnlearningFailed: What the method raises.
    """
    # Only now: the libraries of one method are no concern of another's.
    method = importlib.import_module(f"worker.engine.unlearning.methods.{UNLEARNING_METHODS[recipe.method].module}")
    found: Trainable = method.make_trainable(model, recipe.hyperparameters, objective, work, progress)
    return found


def train_only(model: PreTrainedModel, parameters: dict[str, Parameter]) -> Trainable:
    """Freeze the model, in place, but for these of its parameters."""
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Trainable(parameters)


def candidates(model: PreTrainedModel, chosen: Hyperparameters) -> dict[str, Parameter]:
    """The parameters of the hyperparameter `modules`: the decoder's linear layers' weights, or all."""
    if chosen.modules == "linear":
        linear = {id(module.weight) for module in targets(model).values()}
        return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in linear}
    return dict(model.named_parameters())


def changes(trainable: Trainable, places: Mapping[str, Sequence[str]]) -> dict[str, write.Change]:
    """Stored tensor -> how it changes; `places` are `write.stored_names` of the model before adapters.

    Raises:
        UnlearningFailed: What the method's `written` raises.
    """
    whole = {name: write.whole(parameter) for name, parameter in trainable.parameters.items()}
    found = whole if trainable.written is None else trainable.written()
    return {stored: change for name, change in found.items() for stored in places[name]}
