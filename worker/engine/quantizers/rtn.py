"""Round to nearest, as the papers' formula reads (arXiv 2410.16454 and 2602.13151).

    delta = max|w| / 2^(N-1)        Q(w) = delta * round(w / delta)

over the weights w that share a step: an output channel, a group of consecutive weights within one, or the whole tensor.
The integer codes are clamped to [-2^(N-1), 2^(N-1) - 1]: the bare formula reaches +2^(N-1), which N bits cannot hold.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.catalog.frozen import Scalar
from app.catalog.quantizers import Precision
from worker.engine.layers.grids import integers
from worker.engine.layers.linear import Linear, matrix, targets
from worker.engine.proof import claims, steps
from worker.engine.proof.evidence import Evidence, maxima
from worker.engine.proof.nearest import Points


def grouped(weight: Tensor, precision: Precision) -> Tensor:
    """[out, in] -> [groups, weights that share a step], in float32."""
    if precision.granularity == "tensor":
        return weight.float().reshape(1, -1)
    if precision.granularity == "group":
        return weight.float().reshape(-1, precision.group_size or 1)
    return weight.float()


def quantize(weight: Tensor, precision: Precision) -> Tensor:
    """Q(w) for a weight of shape [out, in], in float32. Groups of zeros stay zero."""
    bits = precision.bits or 0
    levels = 2 ** (bits - 1)
    w = grouped(weight, precision)
    delta = w.abs().amax(dim=1, keepdim=True) / levels
    codes = torch.where(delta > 0, w / delta, 0).round().clamp(-levels, levels - 1)
    q: Tensor = delta * codes
    return q.reshape(weight.shape)


@torch.no_grad()
def apply(model: PreTrainedModel, precision: Precision, tick: Callable[[], None], calibration: object = None) -> None:
    """Round the model's linear weights in place."""
    for module in targets(model).values():
        weight = matrix(module)
        weight.copy_(quantize(weight, precision))
        tick()


def parameters(precision: Precision) -> dict[str, Scalar]:
    """What else could change a number."""
    levels = 2 ** ((precision.bits or 1) - 1)
    return {"step": f"max|w| / {levels}", "lowest_code": -levels, "highest_code": levels - 1}


def live(module: Linear, shape: tuple[int, int], precision: Precision) -> claims.Live | str:
    """The weight of a plain layer, whose steps are recovered from the weight alone."""
    found = claims.plain(module, shape)
    if isinstance(found, str):
        return found
    distinct = steps.distinct(grouped(found, precision), precision.bits or 0, torch.finfo(found.dtype).eps)
    return claims.OFF_GRID if distinct is None else (distinct, found)


def evidence(layer: claims.Layer) -> Evidence:
    """Against the steps of the formula above, computed again from the unquantized weights."""
    bits = layer.precision.bits or 0
    largest = maxima(layer.original, layer.size)
    if layer.precision.granularity == "tensor":
        largest = largest.amax().expand(largest.shape)
    scale = largest / 2 ** (bits - 1)
    return claims.rounded(layer, Points(scale, integers(bits), layer.size, layer.slack), scale, scale)
