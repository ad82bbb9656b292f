"""What a method lets training change: everything, what is salient, or adapters; and how that is written back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from app.catalog.methods import Hyperparameters, Recipe
from app.evidence.unlearning import ModuleSaliency
from worker.engine.layers.linear import targets
from worker.engine.muse.subject import Progress
from worker.engine.unlearning import lora, write
from worker.engine.unlearning.objective import Objective
from worker.engine.unlearning.saliency import row_saliency
from worker.engine.unlearning.sure import FrozenRows, choose, saliency_map

COPIES_TRAINED: Final = 3
"""A gradient and AdamW's two moments: what training holds of a parameter beside its weight."""
_SALIENCY: Final = "saliency.safetensors"


@dataclass(frozen=True)
class Trainable:
    """The parameters that training changes, all others frozen."""

    parameters: dict[str, Parameter]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """SURE: which rows of a parameter may change."""
    frozen_rows: FrozenRows | None = None
    saliency: list[ModuleSaliency] | None = None
    saliency_bytes: int = 0


def make_trainable(
    model: PreTrainedModel, recipe: Recipe, objective: Objective, work: Path, progress: Progress
) -> Trainable:
    """Freeze the model, in place, but for what the method may change.

    SURE's saliency is measured once and kept in `work`, so that going on takes the same modules.
    """
    chosen = recipe.hyperparameters
    if recipe.method == "lora":
        lora.inject(model, chosen)
        return Trainable({name: p for name, p in model.named_parameters() if p.requires_grad})
    candidates = _candidates(model, chosen)
    if recipe.method != "sure":
        model.requires_grad_(False)
        for parameter in candidates.values():
            parameter.requires_grad_(True)
        return Trainable(candidates)

    candidates = {name: parameter for name, parameter in candidates.items() if parameter.ndim > 1}
    weights = sum(parameter.nbytes for parameter in candidates.values())
    # Not more than training itself will hold, if the salient modules are of common size.
    budget = int((1 - chosen.saliency_percentile / 100) * weights * COPIES_TRAINED)
    if (work / _SALIENCY).exists():
        measured, size = load_file(work / _SALIENCY), 0
        rows = {name: measured[name] for name in candidates}
    else:
        rows, size = row_saliency(
            model, candidates, objective, batch_size=chosen.batch_size, budget=budget, progress=progress
        )
        save_file(rows, work / f".{_SALIENCY}")
        os.replace(work / f".{_SALIENCY}", work / _SALIENCY)
    masks = choose(rows, chosen.saliency_percentile, chosen.saliency_granularity)
    parameters = {name: candidates[name] for name in masks}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)
    return Trainable(parameters, masks, FrozenRows(parameters, masks), saliency_map(rows, masks, candidates), size)


def changes(
    model: PreTrainedModel, recipe: Recipe, trainable: Trainable, places: Mapping[str, Sequence[str]]
) -> dict[str, write.Change]:
    """Stored tensor -> how it changes; `places` are `write.stored_names` of the model before adapters.

    Raises:
        UnlearningFailed: `adapters_unmoved`.
    """
    if recipe.method == "lora":
        found = {f"{layer}.weight": write.plus(delta) for layer, delta in lora.merged(model).items()}
    else:
        found = {
            name: write.rows(parameter, trainable.masks[name]) if name in trainable.masks else write.whole(parameter)
            for name, parameter in trainable.parameters.items()
        }
    return {stored: change for name, change in found.items() for stored in places[name]}


def _candidates(model: PreTrainedModel, chosen: Hyperparameters) -> dict[str, Parameter]:
    if chosen.modules == "linear":
        linear = {id(module.weight) for module in targets(model).values()}
        return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in linear}
    return dict(model.named_parameters())
