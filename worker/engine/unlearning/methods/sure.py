"""SURE (arXiv 2410.16454, section 5): only what is salient is updated, θ_u = θ_o + m ⊙ Δθ.

Saliency is how much the forget loss would move each part of the original.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from app.catalog.recipes import Hyperparameters
from app.errors import UnlearningFailed
from app.evidence.unlearning import ModuleSaliency
from worker.engine.inference.subject import Progress
from worker.engine.unlearning import write
from worker.engine.unlearning.objective import Objective
from worker.engine.unlearning.trainable import COPIES_TRAINED, FrozenRows, Trainable, candidates, train_only

ACCUMULATOR_BYTES: Final = 4
_MEASURED: Final = "saliency.safetensors"


def make_trainable(
    model: PreTrainedModel, chosen: Hyperparameters, objective: Objective, work: Path, progress: Progress
) -> Trainable:
    """The most salient of the candidates' matrices, the rows that are not chosen held.

    Saliency is measured once and kept in `work`, so that going on takes the same modules.

    Raises:
        UnlearningFailed: `non_finite`, `nothing_salient`.
    """
    matrices = {name: parameter for name, parameter in candidates(model, chosen).items() if parameter.ndim > 1}
    weights = sum(parameter.nbytes for parameter in matrices.values())
    # Not more than training itself will hold, if the salient modules are of common size.
    budget = int((1 - chosen.saliency_percentile / 100) * weights * COPIES_TRAINED)
    if (work / _MEASURED).exists():
        measured, size = load_file(work / _MEASURED), 0
        rows = {name: measured[name] for name in matrices}
    else:
        rows, size = row_saliency(
            model, matrices, objective, batch_size=chosen.batch_size, budget=budget, progress=progress
        )
        save_file(rows, work / f".{_MEASURED}")
        os.replace(work / f".{_MEASURED}", work / _MEASURED)
    masks = choose(rows, chosen.saliency_percentile, chosen.saliency_granularity)
    parameters = {name: matrices[name] for name in masks}
    return replace(
        train_only(model, parameters),
        written=lambda: {name: write.rows(parameters[name], mask) for name, mask in masks.items()},
        frozen_rows=FrozenRows(parameters, masks),
        saliency=saliency_map(rows, masks, matrices),
        saliency_bytes=size,
    )


def row_saliency(
    model: PreTrainedModel,
    candidates: Mapping[str, Parameter],
    objective: Objective,
    *,
    batch_size: int,
    budget: int,
    progress: Progress,
) -> tuple[dict[str, Tensor], int]:
    """Per candidate, ||∇ L_forget(θ_o)||_2 of each of its rows ([rows], float32, on the CPU);
    and the bytes that the sums took.

    The gradient is the mean over the whole forget set. A module's s_i = ||∇_{θ_i} L_forget||_F is the norm of its rows'
    norms. A batch's gradient of one parameter is added to a float32 sum and freed as soon as it is complete; sums are
    held for at most `budget` bytes of parameters (at least one), and the forget set is read once for each such group.

    Raises:
        UnlearningFailed: `non_finite`, `nothing_salient`.
    """
    found: dict[str, Tensor] = {}
    texts = range(len(objective.forget))
    groups = list(_groups(candidates, budget))
    largest = max(sum(parameter.numel() for parameter in group.values()) for group in groups) * ACCUMULATOR_BYTES
    for turn, group in enumerate(groups):
        model.requires_grad_(False)
        sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in group.items()}
        hooks = []
        for name, parameter in group.items():
            parameter.requires_grad_(True)
            hook = parameter.register_post_accumulate_grad_hook(_into(sums[name]))  # type: ignore[no-untyped-call]
            hooks.append(hook)
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            loss = objective.forget_loss(model, batch, at_original=True) * (len(batch) / len(texts))
            loss.backward()  # type: ignore[no-untyped-call]
            progress("saliency", turn * len(texts) + batch.stop, len(groups) * len(texts))
        for hook in hooks:
            hook.remove()
        for name in group:
            found[name] = sums.pop(name).flatten(1).norm(dim=1).cpu()
    model.requires_grad_(False)
    total = torch.stack([rows.norm() for rows in found.values()])
    if not torch.isfinite(total).all():
        raise UnlearningFailed("non_finite", "the forget loss of the original has no finite gradient")
    if not total.any():
        raise UnlearningFailed("nothing_salient", "the forget loss of the original has no gradient in any module")
    return found, largest


def choose(
    rows: Mapping[str, Tensor], percentile: float, granularity: Literal["module", "row"] = "module"
) -> dict[str, Tensor]:
    """m: for every module of which something may change, which of its rows may ([rows], bool).

    `rows` are `row_saliency`'s. γ is the percentile of the modules' saliencies (of all rows', by row), and
    what has s_i >= γ is chosen.
    """
    if granularity == "row":
        gamma = np.percentile(torch.cat(list(rows.values())).double().numpy(), percentile)
        masks = {name: saliency.double() >= gamma for name, saliency in rows.items()}
    else:
        gamma = np.percentile([float(saliency.double().norm()) for saliency in rows.values()], percentile)
        masks = {
            name: torch.full((len(saliency),), bool(saliency.double().norm() >= gamma))
            for name, saliency in rows.items()
        }
    return {name: mask for name, mask in masks.items() if mask.any()}


def saliency_map(
    rows: Mapping[str, Tensor], masks: Mapping[str, Tensor], candidates: Mapping[str, Parameter]
) -> list[ModuleSaliency]:
    """What was measured and what may change, largest saliency first."""
    found = [
        ModuleSaliency(
            module=name.removesuffix(".weight"),
            parameters=candidates[name].numel(),
            saliency=float(saliency.double().norm()),
            updated=int(masks[name].sum()) * candidates[name][0].numel() if name in masks else 0,
        )
        for name, saliency in rows.items()
    ]
    return sorted(found, key=lambda module: -module.saliency)


def _into(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            total.add_(parameter.grad)
            parameter.grad = None

    return add


def _groups(candidates: Mapping[str, Parameter], budget: int) -> Iterator[dict[str, Parameter]]:
    group: dict[str, Parameter] = {}
    for name, parameter in candidates.items():
        if (
            group
            and (sum(member.numel() for member in group.values()) + parameter.numel()) * ACCUMULATOR_BYTES > budget
        ):
            yield group
            group = {}
        group[name] = parameter
    yield group
