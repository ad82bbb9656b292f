"""The evidence for each method: the grid that its layers claim, held against what the unquantized weights explain."""

from typing import Any

import torch
from torch import Tensor, nn

from app.catalog.quantizers import Precision
from worker.engine.proof import compensated, nearest
from worker.engine.proof.evidence import Evidence, Factors, maxima
from worker.engine.proof.nearest import HALF_EPS, HALF_LEAST, Points
from worker.engine.quantizers import bnb
from worker.engine.quantizers.codes import CODEBOOKS
from worker.engine.quantizers.grids import FP4_POINTS, OnGrid, integers

_TOLERANCE = 2e-6
"""What float32 adds: a scale and a product, each rounded."""
_FLOAT32_EPS = torch.finfo(torch.float32).eps


def evidence(
    module: nn.Module, live: Tensor, original: Tensor, precision: Precision, peak: float, factors: Factors | None
) -> Evidence:
    """What a live module shows.

    Args:
        module: The module.
        live: What it computes with, [out, in].
        original: What it held before the precision was applied.
        precision: The precision.
        peak: The largest unquantized weight of all that may share a scale with this one's groups.
        factors: What a rescaling method multiplied its rows and columns with.
    """
    if precision.method in ("gptq", "awq"):
        size = precision.group_size or original.shape[1]
        bits = precision.bits or 0
        limits = compensated.ROUNDED if precision.method == "awq" else None
        found = compensated.measure(live, original, size, compensated.integers(bits), bits, factors, limits)
        if precision.method == "awq" or not isinstance(module, OnGrid):
            return found
        bounds = nearest.around(maxima(original, size) / (2 ** (bits - 1) - 0.5), _slack(live))
        return found._replace(reason=found.reason or nearest.scale_reason(module.grid.scale, *bounds))
    grid, (low, high) = _claimed(module, live, original, precision, peak)
    found = nearest.measure(live, original, grid)
    return found._replace(reason=nearest.scale_reason(grid.scale, low, high) or found.reason)


def four_bit(state: Any, original: Tensor, slack: float = _TOLERANCE) -> tuple[Points, tuple[Tensor, Tensor]]:
    """The grid of a 4-bit weight of bitsandbytes, and bounds of its scales; `slack` where 16 bits lay in between."""
    largest = maxima(original, state.blocksize)
    low, high = nearest.around(largest, slack)
    if state.nested:
        less, more = nearest.double_quantized(largest, state.state2.blocksize)
        low, high = less - slack * largest, more + slack * largest
    scale = bnb.scales(state).float().reshape(largest.shape).to(largest.device)
    points = CODEBOOKS[f"bnb-{state.quant_type}"].values
    return Points(scale, points, state.blocksize, slack, late=(scale - largest).abs()), (low, high)


def eight_bit(largest: Tensor, original: Tensor, slack: float) -> tuple[Points, tuple[Tensor, Tensor]]:
    """The grid of LLM.int8(), which holds weights in float16 before it rounds them, and bounds of its scales."""
    bounds = nearest.around(maxima(original, original.shape[1]) / 127, slack, HALF_LEAST)
    return Points(largest.float()[:, None] / 127, integers(8), original.shape[1], slack, HALF_LEAST), bounds


def _claimed(
    module: Any, live: Tensor, original: Tensor, precision: Precision, peak: float
) -> tuple[Points, tuple[Tensor, Tensor]]:
    bits, slack = precision.bits or 0, _slack(live)
    if precision.method == "bnb":
        if bits == 8:
            return eight_bit(bnb.int8_state(module)[1], original, max(slack, 2 * HALF_EPS))
        grid, bounds = four_bit(module.weight.quant_state, original)
        return grid._replace(slack=slack), bounds
    size = precision.group_size or original.shape[1]
    largest = maxima(original, size)
    if precision.method == "rtn":
        if precision.granularity == "tensor":
            largest = largest.amax().expand(largest.shape)
        scale = largest / 2 ** (bits - 1)
        return Points(scale, integers(bits), size, slack), (scale, scale)
    points = Points(module.grid.scale, integers(bits), size, slack)
    if precision.method == "gguf":
        steps = {4: 8, 8: 127}[bits]
        late = (module.grid.scale.abs() * steps - largest).abs()
        return points._replace(late=late), nearest.around(largest / steps, 2 * HALF_EPS, HALF_LEAST)
    if precision.method == "torchao":
        expected = largest / (2 ** (bits - 1) - 0.5)
        return points, nearest.around(expected.clamp(min=_FLOAT32_EPS) if bits == 8 else expected, slack)
    points = points._replace(points=torch.tensor(FP4_POINTS))
    if precision.method == "mxfp4":
        return points, (largest / 7 * (1 - slack), largest / 3.5 * (1 + slack))
    low, high = nearest.nvfp4(largest, peak)
    return points, (low - slack * largest, high + slack * largest)


def _slack(live: Tensor) -> float:
    return 2 * torch.finfo(live.dtype).eps + _TOLERANCE if live.dtype.is_floating_point else _TOLERANCE
