"""SURE (arXiv 2410.16454, section 5): only what is salient is updated, θ_u = θ_o + m ⊙ Δθ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from app.evidence.unlearning import ModuleSaliency


def choose(
    rows: Mapping[str, Tensor], percentile: float, granularity: Literal["module", "row"] = "module"
) -> dict[str, Tensor]:
    """m: for every module of which something may change, which of its rows may ([rows], bool).

    `rows` are `saliency.row_saliency`'s. γ is the percentile of the modules' saliencies (of all rows', by row), and
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


class FrozenRows:
    """The rows that must stay, put back after every optimiser step.

    Masking gradients would not do: AdamW's momentum and weight decay move a weight whose gradient is zero.
    """

    def __init__(self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor]) -> None:
        self._frozen: list[tuple[Parameter, Tensor, Tensor]] = []
        for name, mask in masks.items():
            if not mask.all():
                stays = (~mask).nonzero()[:, 0].to(parameters[name].device)
                self._frozen.append((parameters[name], stays, parameters[name].detach()[stays].clone()))

    @property
    def bytes(self) -> int:
        """Memory that the frozen rows take."""
        return sum(values.nbytes for _, _, values in self._frozen)

    @torch.no_grad()
    def restore(self) -> None:
        """θ = θ_o + m ⊙ (θ - θ_o)."""
        for parameter, stays, values in self._frozen:
            parameter[stays] = values
