"""The proof that a precision was applied, measured on the live model against its weights as they were before.

No proof, no scores: a competing audit tool had to withdraw its results because its backend silently fell back to 16
bits. Nothing that a method says about itself counts. For every module that had to be quantized,

- what it computes with takes at most 2^bits values per group: multiples of one step for round-to-nearest, the packed
  type and quantizer state for a backend that packs, points of the grid that the layer carries for the others;
- the unquantized weights explain its scales and every error: weight by weight where a method rounds to nearest
  (`nearest`), row by row where it compensates or rescales (`compensated`);

and whatever no precision quantizes is unchanged bit for bit, except the norms and biases that AWQ divides
(`rescaling`).
"""

import math

from torch import Tensor
from transformers import PreTrainedModel

from app.catalog.quantizers import QUANTIZERS, Precision
from app.errors import EvaluationFailed
from app.evidence.evaluation import Census, ModuleCensus
from worker.engine.layers.linear import Survey, targets
from worker.engine.proof.claims import Layer, Quantizer
from worker.engine.proof.evidence import finite
from worker.engine.proof.rescaling import Rescaling
from worker.engine.proof.snapshot import Snapshot, changed


def take(
    model: PreTrainedModel, precision: Precision, survey: Survey, snapshot: Snapshot, quantizer: Quantizer
) -> Census:
    """Measure the proof of `precision` on a live model.

    Args:
        model: The model as it will be evaluated.
        precision: What it should hold.
        survey: The model as it was before: which modules had to be quantized, and what stays.
        snapshot: The weights that it held before; each module's are freed once it is done.
        quantizer: The module that applied the precision, for its claims.

    Raises:
        EvaluationFailed: `not_quantized` when a module that had to be quantized isn't, or holds what its bits do not
            explain, when something else changed, or when there was nothing to quantize.
    """
    if not survey.shapes:
        raise EvaluationFailed("not_quantized", f"{type(model).__name__} has no linear layer to quantize")
    live = targets(model)
    entry = QUANTIZERS[precision.method]
    rescaling = _rescaling(model, survey, snapshot) if entry.rescales else None
    peaks = _peaks(snapshot) if entry.tensor_scale else {}
    modules: dict[str, ModuleCensus] = {}
    failed = dict.fromkeys(live.keys() - survey.shapes.keys(), "is an unquantized layer that was not there before")
    for name in rescaling.ordered() if rescaling else survey.shapes:
        original, module = snapshot.weights.pop(name), live.get(name)
        found = quantizer.live(module, survey.shapes[name], precision) if module is not None else "was not reached"
        if module is None or isinstance(found, str):
            failed[name] = str(found)
            continue
        distinct, weight = found
        factors = rescaling.factors(name, weight, original) if rescaling else None
        layer = Layer(module, weight, original.to(weight.device), precision, peaks.get(name, 0.0), factors)
        shown = quantizer.evidence(layer)
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
            packed_dtype=str(module.weight.dtype).removeprefix("torch.") if distinct is None else None,
            relative_error=finite(shown.relative_error),
            largest_row_error=finite(shown.largest_row_error),
            explained_error=finite(shown.explained_error),
        )
    if failed:
        first, reason = next(iter(failed.items()))
        raise EvaluationFailed(
            "not_quantized",
            f"{precision.name}: {len(failed)} of {len(survey.shapes)} modules are not quantized as claimed: {first}"
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
    """Module -> the largest unquantized weight of its sibling layers: with NVFP4 these may share one tensor scale."""
    own = {name: float(weight.abs().max().nan_to_num(math.inf, math.inf)) for name, weight in snapshot.weights.items()}
    beside: dict[str, float] = {}
    for name, peak in own.items():
        beside[name.rpartition(".")[0]] = max(peak, beside.get(name.rpartition(".")[0], 0.0))
    return {name: beside[name.rpartition(".")[0]] for name in own}


def _granularity(precision: Precision) -> str:
    return f"group of {precision.group_size}" if precision.group_size else str(precision.granularity)
