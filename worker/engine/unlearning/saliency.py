"""How much the forget loss would move each part of the original: SURE's saliency (arXiv 2410.16454, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from app.errors import UnlearningFailed
from worker.engine.muse.subject import Progress
from worker.engine.unlearning.objective import Objective

ACCUMULATOR_BYTES = 4


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
