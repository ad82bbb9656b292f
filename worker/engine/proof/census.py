"""The proof that a precision was applied, measured on the live model against its weights as they were before.

No proof, no scores: a competing audit tool had to withdraw its results because its backend silently fell back to 16
bits. Nothing that a method says of itself counts. For every module that had to be quantized,

- what it computes with takes at most 2^bits values per group: multiples of one step for round-to-nearest, the packed
  type and quantizer state for a backend that packs, points of the grid that the layer carries for the others;
- the scales of these are what the unquantized weights' groups explain, and so is every error: weight by weight where
  a method rounds to nearest (`nearest`), row by row where it compensates or rescales (`compensated`);

and whatever no precision quantizes is there bit for bit, but for the norms and biases that AWQ divides (`rescaling`).
"""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.catalog.quantizers import Precision
from app.errors import EvaluationFailed
from app.evidence.evaluation import Census, ModuleCensus
from worker.engine.proof import claims
from worker.engine.proof.evidence import finite
from worker.engine.proof.rescaling import Rescaling
from worker.engine.proof.snapshot import Snapshot, changed
from worker.engine.quantizers import bnb, grids
from worker.engine.quantizers.layers import Linear, Survey, matrix, targets
from worker.engine.quantizers.rtn import grouped

_AT_ONCE = 1 << 24


def take(model: PreTrainedModel, precision: Precision, survey: Survey, snapshot: Snapshot) -> Census:
    """Measure the proof of `precision` on a live model.

    Args:
        model: The model as it will be evaluated.
        precision: What it should hold.
        survey: The model as it was before: which modules had to be quantized, and what stays.
        snapshot: The numbers that it held before; each module's are let go once it is done.

    Raises:
        EvaluationFailed: `not_quantized` when a module that had to be quantized isn't, or holds what its bits do not
            explain, when something else changed, or when there was nothing to quantize.
    """
    if not survey.shapes:
        raise EvaluationFailed("not_quantized", f"{type(model).__name__} has no linear layer that could be quantized")
    live = targets(model)
    rescaling = _rescaling(model, survey, snapshot) if precision.method == "awq" else None
    peaks = _peaks(snapshot) if precision.method == "nvfp4" else {}
    modules: dict[str, ModuleCensus] = {}
    failed = dict.fromkeys(live.keys() - survey.shapes.keys(), "is an unquantized layer that was not there before")
    for name in rescaling.ordered() if rescaling else survey.shapes:
        original, module = snapshot.weights.pop(name), live.get(name)
        found = _measure(module, survey.shapes[name], precision) if module is not None else "was not reached"
        if module is None or isinstance(found, str):
            failed[name] = str(found)
            continue
        distinct, weight = found
        factors = rescaling.factors(name, weight, original) if rescaling else None
        shown = claims.evidence(module, weight, original.to(weight.device), precision, peaks.get(name, 0.0), factors)
        if shown.reason is not None:
            failed[name] = shown.refusal
            continue
        modules[name] = ModuleCensus(
            module=name,
            shape=list(survey.shapes[name]),
            quantizer=precision.name,
            bits=precision.bits or 0,
            granularity=_granularity(precision),
            max_distinct=distinct,
            packed_dtype=str(module.weight.dtype).removeprefix("torch.") if precision.method == "bnb" else None,
            relative_error=finite(shown.relative_error),
            largest_row_error=finite(shown.largest_row_error),
            explained_error=finite(shown.explained_error),
        )
    if failed:
        first, reason = next(iter(failed.items()))
        raise EvaluationFailed(
            "not_quantized",
            f"{precision.name}: {len(failed)} of {len(survey.shapes)} modules are not quantized as it says; {first}"
            f" {reason}",
        )
    odd = [name for name in changed(model, snapshot.rest) if not (rescaling and rescaling.explains(name))]
    if odd:
        raise EvaluationFailed("not_quantized", f"{precision.name}: {odd[0]}, which it does not quantize, has changed")
    return Census(
        modules=[modules[name] for name in survey.shapes],
        parameters_total=survey.total,
        parameters_quantized=survey.quantized,
        coverage=survey.quantized / survey.total,
        left_out=dict(survey.left_out),
    )


def _rescaling(model: PreTrainedModel, survey: Survey, snapshot: Snapshot) -> Rescaling:
    def now(name: str) -> Tensor | None:
        return live[name].detach().cpu() if name in live else None

    live = dict(model.named_parameters())
    return Rescaling(model, survey.shapes, snapshot.rest.get, now)


def _peaks(snapshot: Snapshot) -> dict[str, float]:
    """Module -> the largest unquantized weight of those beside it: NVFP4's layers may share their tensors' scale."""
    own = {name: float(weight.abs().max().nan_to_num(math.inf, math.inf)) for name, weight in snapshot.weights.items()}
    beside: dict[str, float] = {}
    for name, peak in own.items():
        beside[name.rpartition(".")[0]] = max(peak, beside.get(name.rpartition(".")[0], 0.0))
    return {name: beside[name.rpartition(".")[0]] for name in own}


def _measure(module: Linear, shape: tuple[int, int], precision: Precision) -> tuple[int | None, Tensor] | str:
    """(largest number of distinct values in a group, what the module computes with); or why it is not quantized."""
    if precision.method == "bnb":
        return bnb.unproven(module, shape, precision) or (None, bnb.dequantized(module))
    weight = matrix(module).detach()
    if tuple(weight.shape) != shape:
        return f"has the shape {list(weight.shape)}"
    if precision.method == "rtn":
        distinct = distinct_on_grid(weight, precision)
    elif isinstance(module, grids.OnGrid):
        groups = shape[1] // precision.group_size if precision.group_size else 1
        if module.grid.scale.shape != (shape[0], groups) or len(module.grid.points) > 2 ** (precision.bits or 0):
            points = f"{len(module.grid.points)} points in {list(module.grid.scale.shape)} groups"
            return f"was put onto another grid, of {points}"
        distinct = grids.distinct(weight, module.grid)
    else:
        return f"is a {type(module).__name__} without a grid"
    return "holds weights off the grid" if distinct is None else (distinct, weight)


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
