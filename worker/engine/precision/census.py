"""The proof that a precision was applied, measured on the live model.

No proof, no scores: a competing audit tool had to withdraw its results because its backend silently fell back to 16
bits. For round-to-nearest the proof is the weights themselves: in every group they are integer multiples of one step
and take at most 2^bits values. For a backend that packs, it is its packed type and quantizer state. For the others the
live layer carries the grid that its quantizer claims, of at most 2^bits points per group; its weights must lie on it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.errors import EvaluationFailed
from app.precisions import Precision
from app.reports.schemas import Census, ModuleCensus
from worker.engine.precision import bnb, grids
from worker.engine.precision.layers import Survey, matrix, targets
from worker.engine.precision.rtn import grouped

_AT_ONCE = 1 << 24


def take(model: PreTrainedModel, precision: Precision, survey: Survey, errors: Mapping[str, float]) -> Census:
    """Measure the proof of `precision` on a live model.

    Args:
        model: The model as it will be evaluated.
        precision: What it should hold.
        survey: The model as it was before: which modules had to be quantized, and what stays.
        errors: Module -> relative error against its unquantized weight.

    Raises:
        EvaluationFailed: `not_quantized` when a module that had to be quantized isn't, or when there was none.
    """
    if not survey.shapes:
        raise EvaluationFailed("not_quantized", f"{type(model).__name__} has no linear layer that could be quantized")
    live = targets(model)
    modules: list[ModuleCensus] = []
    failed: dict[str, str] = {}
    for name, shape in survey.shapes.items():
        module = live.get(name)
        if module is None or name not in errors:
            failed[name] = "was not reached"
            continue
        distinct, reason = _measure(module, shape, precision)
        if reason is not None:
            failed[name] = reason
            continue
        modules.append(
            ModuleCensus(
                module=name,
                shape=list(shape),
                quantizer=precision.name,
                bits=precision.bits or 0,
                granularity=_granularity(precision),
                max_distinct=distinct,
                packed_dtype=str(module.weight.dtype).removeprefix("torch.") if precision.method == "bnb" else None,
                relative_error=errors[name],
            )
        )
    if failed:
        first, reason = next(iter(failed.items()))
        raise EvaluationFailed(
            "not_quantized",
            f"{precision.name}: {len(failed)} of {len(survey.shapes)} modules are not quantized; {first} {reason}",
        )
    return Census(
        modules=modules,
        parameters_total=survey.total,
        parameters_quantized=survey.quantized,
        coverage=survey.quantized / survey.total,
        left_out=dict(survey.left_out),
    )


def _measure(module: nn.Module, shape: tuple[int, int], precision: Precision) -> tuple[int | None, str | None]:
    """(largest number of distinct values in a group, None), or (None, why the module is not quantized)."""
    if precision.method == "bnb":
        return None, bnb.unproven(module, shape, precision)
    weight = matrix(module).detach()  # type: ignore[arg-type]
    if tuple(weight.shape) != shape:
        return None, f"has the shape {list(weight.shape)}"
    if precision.method == "rtn":
        distinct = distinct_on_grid(weight, precision)
    elif isinstance(module, grids.OnGrid):
        groups = shape[1] // precision.group_size if precision.group_size else 1
        if module.grid.scale.shape != (shape[0], groups) or len(module.grid.points) > 2 ** (precision.bits or 0):
            points = f"{len(module.grid.points)} points in {list(module.grid.scale.shape)} groups"
            return None, f"was put onto another grid, of {points}"
        distinct = grids.distinct(weight, module.grid)
    else:
        return None, f"is a {type(module).__name__} without a grid"
    return distinct, None if distinct is not None else "holds weights off the grid"


def distinct_on_grid(weight: Tensor, precision: Precision) -> int | None:
    """The largest number of distinct values in any group, if all groups lie on grids of 2^bits steps; else None.

    A count alone proves nothing at 8 bits, where a row of 128 unquantized weights has fewer than 256 values too. So the
    step is found again from the live weights: the largest |w| of a group is 2^(N-1) steps, or 2^(N-1) - 1 when it
    was positive and clamped. Tolerance: weights held in 16 bits are off the grid by their own rounding.
    """
    most = 0
    everything = torch.nan_to_num(grouped(weight, precision), 0.0, 0.0, 0.0)
    at_once = max(1, _AT_ONCE // everything.shape[1])
    for start in range(0, everything.shape[0], at_once):
        groups = everything[start : start + at_once]
        if not _on_grid(groups, precision.bits or 0, torch.finfo(weight.dtype).eps):
            return None
        ordered = groups.sort(dim=1).values
        most = max(most, int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1)
    return most if most <= 2 ** (precision.bits or 0) else None


def _on_grid(w: Tensor, bits: int, eps: float) -> bool:
    """Whether every row of w [groups, size] is integer multiples, within the bits' range, of one step."""
    levels = 2 ** (bits - 1)
    largest = w.abs().amax(dim=1, keepdim=True)
    fits = torch.zeros(w.shape[0], dtype=torch.bool, device=w.device)
    for steps in (levels, levels - 1):
        ratio = torch.where(largest > 0, w * (steps / largest), 0)
        codes = ratio.round().clamp(-levels, levels - 1)
        fits |= ((ratio - codes).abs() <= 1e-3 + eps * codes.abs()).all(dim=1)
    return bool(fits.all())


def _granularity(precision: Precision) -> str:
    return f"group of {precision.group_size}" if precision.group_size else str(precision.granularity)
