"""The bounds for methods that do more than round to nearest: GPTQ, AWQ, and files whose making is unknown.

GPTQ moves weights by steps so that the layer's outputs stay; AWQ multiplies rows and columns first, and rounds then;
some tools clip the largest. Let h be half a step, max|w| / (2^N - 1) in each group, and x = min(|w|, h) the most that
rounding to nearest loses of a weight w. `kept` is <q, w> / <w, w> over the weights of two steps and more, which no
rounding could erase: the ordering. Zeros keep 0, another row's weights about 0, doubled ones 2; rows that equal each
other may change places. Bounded are

                                        COMPENSATED   GPTQ measured       ROUNDED       AWQ measured
    row       ||q - w|| / ||x||         16            6.1   (13.1)        2             0.90  (0.98)
    module    ||q - w|| / ||x||         5             2.5   (4.1)         1.25          0.65  (0.72)
    row       kept                      0.25 to 1.75  0.72  (0.35), 1.19  0.75 to 1.25  0.92  (0.91), 1.07
    module    kept                      0.8 to 1.25   0.957 (0.937), 1.03 0.9 to 1.1    0.987 (0.961), 1.025
    groups whose kept is outside of
    0.5 to 1.5, of all of a module's    5 %           1.2 % (1.8 %)       1 %           0

Measured on llama, qwen2, gpt2 and mistral of 64, 128 and 256 columns at int8 and int4 in groups of 32 and 64 and per
channel, 4 texts of 64 tokens; weights normal or of Student's t with 3 degrees of freedom, whose outliers are larger
than trained weights' (in brackets: with 2, whose variance is infinite), with and without two activations 30 times as
large as the others. Limits to relative errors would not do: GPTQ's honest rows reached 1.57 (2.8) of their own norm.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.precision.evidence import Evidence, Factors, errors, parts


class Limits(NamedTuple):
    """What is still explained; see above."""

    row: float
    module: float
    kept_row: tuple[float, float]
    kept: tuple[float, float]
    odd_groups: float


COMPENSATED = Limits(16.0, 5.0, (0.25, 1.75), (0.8, 1.25), 0.05)
ROUNDED = Limits(2.0, 1.25, (0.75, 1.25), (0.9, 1.1), 0.01)
TYPICAL = 0.5
"""What share of its module's limit the median over an artifact's modules may use: 2.5 times what rounding brings."""
_GROUP = (0.5, 1.5)

Steps = Callable[[Tensor], tuple[Tensor, Tensor]]
"""|w| in groups [rows, groups, size] -> the most that rounding loses of each, and each group's weights that count as
large: from where on, [rows, groups, 1]."""


def integers(bits: int, peak: float | None = None) -> Steps:
    """Steps of integer codes; `peak` is the largest weight where the whole tensor shares a step."""

    def steps(sizes: Tensor) -> tuple[Tensor, Tensor]:
        largest = _largest(sizes, peak)
        half = largest / (2**bits - 1)
        # With 2 or 3 bits two steps are more than there is: the upper half of the range, which rounds to a step at least.
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
    limits: Limits = COMPENSATED,
) -> Evidence:
    """The evidence of a weight [out, in] that was not just rounded to nearest.

    Args:
        live: What the module computes with.
        original: The unquantized weight.
        size: Weights in a row that share a step; divides the columns.
        steps: How coarse the codes are.
        bits: For the reason.
        factors: What the rows and columns of the unquantized weight were multiplied with before.
        limits: What is still explained.
    """
    whole, row = errors(live, original, factors)
    off = lost = norm = share = large = 0.0
    odd = groups = 0
    reason: str | None = None
    for rows, part in parts(original, live.device):
        known = part.isfinite().all(1, keepdim=True)
        scaled = part if factors is None else part * factors[0][rows] * factors[1]
        w, q = (torch.where(known, x, 0).reshape(part.shape[0], -1, size) for x in (scaled, live[rows].float()))
        loses, least = steps(w.abs())
        error, most = (_squares(x).sum(1) for x in (q - w, loses))
        ordered = torch.where((w.abs() >= least) & (w != 0), w, 0)
        shares, wholes = (q * ordered).double().sum(2), _squares(ordered)
        off, lost, norm = off + float(error.sum()), lost + float(most.sum()), norm + float(_squares(w).sum())
        share, large = share + float(shares.sum()), large + float(wholes.sum())
        odd, groups = odd + int(_odd(shares, wholes, _GROUP).sum()), groups + int((wholes > 0).sum())
        shares, wholes = shares.sum(1), wholes.sum(1)
        if reason is None and bool((beyond := ~(error <= limits.row**2 * most)).any()):
            reason = f"has a row that is {_times((error / most)[beyond][0], bits, limits.row)}"
        if reason is None and bool((beyond := _odd(shares, wholes, limits.kept_row)).any()):
            reason = f"has a row that {_keeps((shares / wholes)[beyond][0], limits.kept_row)}"
    if reason is None and not off <= limits.module**2 * lost:
        reason = f"is {_times(torch.tensor(off / lost if lost else float('inf')), bits, limits.module)}"
    if reason is None and large and not limits.kept[0] <= share / large <= limits.kept[1]:
        reason = _keeps(torch.tensor(share / large), limits.kept)
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
        f"{float(ratio) ** 0.5:.3g} times as far from the unquantized weights as rounding to {bits} bits brings it, more"
        f" than the {limit:g} times that are explained"
    )


def _keeps(share: Tensor, limits: tuple[float, float]) -> str:
    return f"keeps {float(share):.3g} of its large weights, where {limits[0]:g} to {limits[1]:g} are explained"
