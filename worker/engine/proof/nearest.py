"""The bound for methods that round to the nearest point of a grid: RTN, bitsandbytes, GGUF, torchao, MXFP4, NVFP4.

The scale s of every group follows from the group's largest unquantized weight, and the module computes with the point
of the format's grid that is nearest to the unquantized weight w:

    low(max|w|) <= |s| <= high(max|w|)              |q - w| <= min over points p of |s p - w|, weight by weight

except for the dtype's own rounding. Weights that were zeroed, permuted, rescaled or taken from another model violate it
wherever they differ by more than a step; the largest weight of a group is never smaller than one. Where a format rounds
the scale after it chose the codes (GGUF, double quantization), |q - w| may be larger by what that changes. The scales:

    RTN         max / 2^(N-1), computed here                      (arXiv 2410.16454)
    NF4, FP4    max; doubly quantized ones within 1/64 of the largest deviation from their mean in their block of 256:
                half of the widest gap of bitsandbytes' dynamic type is 0.9 / 128   (arXiv 2305.14314, section 3)
    LLM.int8()  max / 127, of weights in float16                  (bitsandbytes' Int8Params)
    Q4_0, Q8_0  max / 8, max / 127, in float16                    (ggml-quants.c)
    torchao     max / 127.5, max / 7.5, in the weight's dtype; at int8 not below float32's epsilon
    MXFP4       a power of two; max / s in [3.5, 7): llm-compressor rounds 1.75 up to 2, the format's largest is 6
    NVFP4       max / 6 in e4m3 (3 bits of mantissa: within 1/16), in units of the tensor's max / (6 * 448); a scale
                that would be 0 is 0.125 of these units           (OCP FP8; llm-compressor)
    GPTQ        max / (2^(N-1) - 1/2), of the weights before compensation; its bound for errors is `compensated`'s
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.proof.evidence import Evidence, blocks, errors, parts

HALF_EPS = 2.0**-11
"""The largest relative error of rounding to float16, and"""
HALF_LEAST = 2.0**-25
"""the largest absolute one, for numbers that are too small for that."""
_E4M3_EPS, _E4M3_LEAST, _E4M3_ZERO, _E4M3_MOST = 2.0**-4, 2.0**-10, 0.125, 448.0
_FP4_MOST = 6.0


class Points(NamedTuple):
    """A grid, and how exactly a live weight must lie on it."""

    scale: Tensor
    """[rows, groups], or [blocks, 1] where blocks cross rows; float32."""
    points: Tensor
    """Ascending."""
    size: int
    """Weights that share a scale."""
    slack: float
    """The error that dtypes add, as a share of the group's largest weight."""
    least: float = 0.0
    """The error that dtypes add, absolutely."""
    late: Tensor | None = None
    """How much each group's largest weight changes because scales were rounded after exact ones chose the codes."""


def measure(live: Tensor, original: Tensor, grid: Points) -> Evidence:
    """The evidence of a weight [out, in] that is said to be rounded to the nearest points of a grid."""
    whole, row = errors(live, original)
    q, points = blocks(live, grid.size), grid.points.to(live.device)
    explained = distance = norm = 0.0
    reason = None
    for rows, part in parts(blocks(original, grid.size), live.device):
        w = part.reshape(part.shape[0], -1, grid.size)
        scale = grid.scale[rows, :, None].to(live.device)
        known = w.isfinite().all(2, keepdim=True) & scale.isfinite()
        w = torch.where(known, w, 0)
        largest = w.abs().amax(2, keepdim=True)
        allowed = (_nearest(w, scale, points) - w).abs() + grid.slack * largest + grid.least
        if grid.late is not None:
            # Once for the point that was chosen, once because the nearest is computed here from the rounded scale.
            allowed += torch.where(largest > 0, 2 * grid.late[rows, :, None].to(live.device), 0)
        explained += _squares(torch.where(known, allowed, 0))
        norm += _squares(w)
        off = (q[rows].float().reshape(w.shape) - w).abs()
        distance += _squares(torch.where(known, off, 0))
        beyond = known & ~(off <= allowed)
        if reason is None and bool(beyond.any()):
            worst = int(torch.where(beyond, off.nan_to_num(float("inf")), -1).argmax())
            unit = float(largest.expand(w.shape).flatten()[worst]) or 1.0
            reason = (
                f"holds a weight that is {float(off.flatten()[worst]) / unit:.3g} of its group's largest away from the"
                f" unquantized one, where rounding explains {float(allowed.flatten()[worst]) / unit:.3g}"
            )
    used = (distance / explained) ** 0.5 if explained else float(distance > 0)
    return Evidence(whole, row, (explained / norm) ** 0.5 if norm else 0.0, used, reason)


def scale_reason(scale: Tensor, low: Tensor, high: Tensor) -> str | None:
    """Why these scales are not those of the unquantized groups, to follow the module's name; None when they are.

    Groups of zeros, where any scale is right, have `high` 0; groups with non-finite weights have a non-finite `high`.
    """
    found = scale.abs().float().reshape(low.shape).to(low.device)
    wrong = (high > 0) & high.isfinite() & ~((found >= low) & (found <= high))
    if not bool(wrong.any()):
        return None
    first = int(wrong.flatten().nonzero()[0])
    return (
        f"has the scale {float(found.flatten()[first]):.4g} where the unquantized weights explain"
        f" {float(low.flatten()[first]):.4g} to {float(high.flatten()[first]):.4g}"
    )


def around(expected: Tensor, relative: float, absolute: float = 0.0) -> tuple[Tensor, Tensor]:
    """Bounds around the expected scales; 0 stays 0."""
    slack = relative * expected + absolute
    return expected - slack, torch.where(expected > 0, expected + slack, 0)


def double_quantized(largest: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Bounds of scales that are held in 8 bits, in blocks of this size, after their mean was subtracted."""
    flat = largest.flatten().float()
    deviation = (flat - flat.mean()).abs()
    padded = torch.nn.functional.pad(deviation, (0, -flat.numel() % block)).view(-1, block)
    slack = (padded.amax(1) / 64).repeat_interleave(block)[: flat.numel()].view(largest.shape) + 1e-6 * largest.abs()
    return largest - slack, torch.where(largest > 0, largest + slack, 0)


def nvfp4(largest: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """Bounds of NVFP4's scales; `peak` is the largest weight of all tensors that share the tensor scale."""
    unit = peak / (_FP4_MOST * _E4M3_MOST)
    expected = largest / _FP4_MOST
    slack = (_E4M3_EPS * expected).clamp(min=_E4M3_LEAST * unit) + 1e-3 * expected
    high = (expected + slack).clamp(min=0)
    vanishing = expected <= 1.001 * _E4M3_LEAST * unit
    high = torch.where(vanishing, (1.001 * _E4M3_ZERO * unit), high)
    return expected - slack, torch.where(largest > 0, high, 0)


def _nearest(w: Tensor, scale: Tensor, points: Tensor) -> Tensor:
    """The point of scale * points that is nearest to w [rows, groups, size]; 0 in groups without a scale."""
    place = torch.where(scale != 0, w / scale, 0)
    if len(points) > 16:  # then all points are integers, and rounding is far faster than searching
        return scale * place.round_().clamp_(float(points[0]), float(points[-1]))
    best = points[0].expand_as(place).clone()
    for bound, point in zip(((points[1:] + points[:-1]) / 2).tolist(), points[1:].tolist(), strict=True):
        best.masked_fill_(place > bound, point)
    return scale * best


def _squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
