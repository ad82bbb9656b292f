"""The bounds for methods that do more than round to nearest: GPTQ, AWQ, and files made by unknown tools.

GPTQ moves weights by steps so that the layer's outputs stay the same; AWQ multiplies rows and columns first, then
rounds; some tools clip the largest weights. Let h be half a step, max|w| / (2^N - 1) in each group, and
x = min(|w|, h) the most that rounding to nearest loses of a weight w. `kept` is <q, w> / <w, w> over the weights of two
or more steps, which no rounding could erase; it checks the ordering. Zeros keep 0, another row's weights about 0,
doubled ones 2; equal rows may be swapped. The bounds are

                                    COMPENSATED   GPTQ measured        FINE         ROUNDED      AWQ measured
    row     ||q - w|| / ||x||       16            6.1   (13.1)         16           2            0.90  (0.98)
    module  ||q - w|| / ||x||       5             2.5   (4.1)          5            1.25         0.65  (0.72)
    row             kept            0.25 to 1.75  0.72 to 1.19         0.75 to 1.25 0.7 to 1.3   0.92 to 1.07
                                                  (0.35 to 1.19)                                 (0.91 to 1.07)
    columns whose kept is outside
    of the same, of all             2 %           0    (0.8 %)         2 %          none         0.80 to 1.17 (1.21)
    module          kept            0.8 to 1.25   0.957 to 1.00        0.9 to 1.1   0.9 to 1.1   0.987 to 1.01
                                                  (0.937 to 1.03)                                (0.961 to 1.03)
    groups whose kept is outside of
    0.5 to 1.5, of all in a module  5 %           1.2 % (1.8 %)        1 %          1 %          0

FINE is COMPENSATED for 8 bits (measured: rows and columns keep 0.96 to 1.02, brackets and all); ROUNDED is for the AWQ
that is applied here, where nothing is clipped; CLIPPED, between the two, for AWQ's files (gptqmodel's: 0.88 times in a
module, 0.74 to 1.07 kept). GPTQ zeroes the columns that get no input from its texts: these are among the 2 %, and left
out of everything else. Where factors were undone there are none, since each column proves its own.

Measured on llama, qwen2, gpt2 and mistral of 64, 128 and 256 columns at int8 and int4 in groups of 32 and 64 and per
channel, 4 texts of 64 tokens; weights normal or of Student's t with 3 degrees of freedom, whose outliers are larger
than trained weights' (in brackets: with 2, whose variance is infinite), with and without two activations 30 times as
large as the others. Limits on relative errors would not work: GPTQ's honest rows reached 1.57 (2.8) of their own norm.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.proof.evidence import Evidence, Factors, errors, parts


class Limits(NamedTuple):
    """The bounds of the table above."""

    row: float
    module: float
    kept_line: tuple[float, float]
    kept: tuple[float, float]
    odd_groups: float
    odd_columns: float


COMPENSATED = Limits(16.0, 5.0, (0.25, 1.75), (0.8, 1.25), 0.05, 0.02)
FINE = Limits(16.0, 5.0, (0.75, 1.25), (0.9, 1.1), 0.01, 0.02)
CLIPPED = Limits(4.0, 2.0, (0.6, 1.3), (0.8, 1.15), 0.05, 0.0)
ROUNDED = Limits(2.0, 1.25, (0.7, 1.3), (0.9, 1.1), 0.01, 0.0)
TYPICAL = 0.5
"""The share of a module's limit that the median over an artifact's modules may reach: 2.5 times rounding's error."""
_GROUP = (0.5, 1.5)

Steps = Callable[[Tensor], tuple[Tensor, Tensor]]
"""|w| in groups [rows, groups, size] -> the most that rounding loses of each, and from which |w| on a weight counts as
large in its group, [rows, groups, 1]."""


def integers(bits: int, peak: float | None = None) -> Steps:
    """Steps of integer codes; `peak` is the largest weight where the whole tensor shares a step."""

    def steps(sizes: Tensor) -> tuple[Tensor, Tensor]:
        largest = _largest(sizes, peak)
        half = largest / (2**bits - 1)
        # With 2 or 3 bits two steps exceed the largest weight; then weights above half of it count, which round to at
        # least one step.
        return torch.minimum(sizes, half), torch.minimum(4 * half, largest / 2)

    return steps


def floats(bits: int, peak: float | None = None) -> Steps:
    """Steps of floating-point codes: E4M3 and E5M2, or E2M1 with scales that may be powers of two."""

    def steps(sizes: Tensor) -> tuple[Tensor, Tensor]:
        largest = _largest(sizes, peak)
        if bits == 4:
            # E2M1's widest gap is 2 scales, and a power of two may leave the largest weight at 8 scales, clamped to 6.
            return torch.minimum(sizes, largest / 4), largest / 2
        # E5M2 has 2 bits of mantissa: half a gap is 1/8. Below 2^-16 of the largest both hold multiples of one number.
        return torch.minimum(sizes, sizes / 8 + largest * 2.0**-17), largest * 2.0**-8

    return steps


def _largest(sizes: Tensor, peak: float | None) -> Tensor:
    largest = sizes.amax(2, keepdim=True)
    return largest if peak is None else torch.full_like(largest, peak)


def measure(
    live: Tensor,
    original: Tensor,
    size: int,
    steps: Steps,
    bits: int,
    factors: Factors | None = None,
    limits: Limits | None = None,
) -> Evidence:
    """The evidence of a weight [out, in] that was not just rounded to nearest.

    Args:
        live: What the module computes with.
        original: The unquantized weight.
        size: Weights in a row that share a step; divides the columns.
        steps: How coarse the codes are.
        bits: For the reason.
        factors: The factors by which the rows and columns of the unquantized weight were multiplied before.
        limits: The bounds; by default those for compensated weights.
    """
    limits = limits or (FINE if bits >= 8 else COMPENSATED)
    whole, row = errors(live, original, factors)
    off = lost = norm = 0.0
    odd = groups = 0
    lost_columns = (live == 0).all(0) if factors is None else torch.zeros_like(live[0], dtype=torch.bool)
    in_columns = torch.zeros(3, original.shape[1], dtype=torch.float64, device=live.device)
    reason: str | None = None
    if factors is not None and not all(bool((one.isfinite() & (one != 0)).all()) for one in factors):
        reason = "was multiplied or divided by zero, while the bits explain only factors that can be undone"
    for rows, part in parts(original, live.device):
        known = part.isfinite().all(1, keepdim=True)
        scaled = part if factors is None else part * factors[0][rows] * factors[1]
        w, q = (torch.where(known, x, 0).reshape(part.shape[0], -1, size) for x in (scaled, live[rows].float()))
        in_columns[2] += w.abs().sum(0).flatten()
        loses, least = steps(w.abs())
        loses, w = (torch.where(lost_columns.view(w.shape[1:]), 0, x) for x in (loses, w))
        error, most = (_squares(x).sum(1) for x in (q - w, loses))
        ordered = torch.where((w.abs() >= least) & (w != 0), w, 0)
        both = torch.stack((q * ordered, ordered * ordered)).double()
        in_columns[:2] += both.sum(1).flatten(1)
        off, lost, norm = off + float(error.sum()), lost + float(most.sum()), norm + float(_squares(w).sum())
        shares, wholes = both.sum(3)
        odd, groups = odd + int(_odd(shares, wholes, _GROUP).sum()), groups + int((wholes > 0).sum())
        if reason is None and bool((beyond := ~(error <= limits.row**2 * most)).any()):
            reason = f"has a row that is {_times((error / most)[beyond][0], bits, limits.row)}"
        if reason is None and bool((beyond := _odd(shares.sum(1), wholes.sum(1), limits.kept_line)).any()):
            reason = f"has a row that {_keeps((shares.sum(1) / wholes.sum(1))[beyond][0], limits.kept_line)}"
    shares, wholes, sizes = in_columns
    beyond = _odd(shares, wholes, limits.kept_line) | (lost_columns & (sizes > 0))
    allowed = limits.odd_columns if factors is None else 0.0
    if reason is None and int(beyond.sum()) > allowed * len(beyond):
        reason = (
            f"has {int(beyond.sum())} of {len(beyond)} columns that do not keep {limits.kept_line[0]:g} to"
            f" {limits.kept_line[1]:g} of their large weights, where {allowed:.0%} are explained"
        )
    if reason is None and not off <= limits.module**2 * lost:
        reason = f"is {_times(torch.tensor(off / lost if lost else float('inf')), bits, limits.module)}"
    share, large = shares.sum(), wholes.sum()
    if reason is None and bool(_odd(share, large, limits.kept)):
        reason = _keeps(share / large, limits.kept)
    if reason is None and odd > limits.odd_groups * groups:
        reason = f"has {odd} of {groups} groups whose large weights are not kept, more than the {limits.odd_groups:.0%}"
        reason += f" that {bits} bits explain"
    explained = limits.module * (lost / norm) ** 0.5 if norm else 0.0
    return Evidence(whole, row, explained, (off / lost) ** 0.5 / limits.module if lost else float(off > 0), reason)


def _odd(shares: Tensor, wholes: Tensor, limits: tuple[float, float]) -> Tensor:
    return (wholes > 0) & ~((shares >= limits[0] * wholes) & (shares <= limits[1] * wholes))


def _squares(x: Tensor) -> Tensor:
    return x.double().square_().sum(-1)


def _times(ratio: Tensor, bits: int, limit: float) -> str:
    return (
        f"{float(ratio) ** 0.5:.3g} times as far from the unquantized weights as rounding to {bits} bits brings it,"
        f" more than the {limit:g} times that are explained"
    )


def _keeps(share: Tensor, limits: tuple[float, float]) -> str:
    return f"keeps {float(share):.3g} of its large weights, where {limits[0]:g} to {limits[1]:g} are explained"
