"""The codes that rounding gives, for weights in memory: round to nearest, and bitsandbytes' 4-bit codebooks.

    RTN       m = max|w| over the weights that share a step      delta = m / 2^(N-1)
              code = clamp(round(w / delta), -2^(N-1), 2^(N-1) - 1)                      (arXiv 2410.16454)
    NF4, FP4  m = max|w| over 64 weights in a row                code = the codebook's entry nearest to w / m

NF4's codebook is that of QLoRA (arXiv 2305.14314, appendix E), FP4's has one sign, two exponent and one mantissa bit,
divided by its largest entry (bitsandbytes `functional.get_4bit_type`; a test compares every code with bitsandbytes').
"""

from typing import NamedTuple

import torch
from torch import Tensor

from app.catalog.quantizers import BNB_BLOCK, Precision

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4 = (-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -0.0625, 0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


class Codebook(NamedTuple):
    """Entries that a block's weights, divided by the block's largest, are rounded to."""

    values: Tensor
    """Ascending, from -1 to 1."""
    bounds: Tensor
    """Midpoints between neighbours."""
    widths: Tensor
    """The width of each entry's bucket within [-1, 1]."""
    near_zero: tuple[int, int]
    """The first and the last index of the entries that are zero, or FP4's smallest, 1/192."""


def _codebook(values: tuple[float, ...]) -> Codebook:
    entries = torch.tensor(values)
    entries /= entries.abs().max()
    bounds = (entries[:-1] + entries[1:]) / 2
    edges = torch.cat([entries[:1], bounds, entries[-1:]])
    near_zero = (entries.abs() < 0.01).nonzero()
    return Codebook(entries, bounds, edges.diff(), (int(near_zero[0]), int(near_zero[-1])))


CODEBOOKS = {"bnb-nf4": _codebook(_NF4), "bnb-fp4": _codebook(_FP4)}


def grouped(weight: Tensor, precision: Precision) -> Tensor:
    """[rows, in] -> [groups, weights that share a step].

    Codebook blocks cross rows; the last one is filled up with zeros.
    """
    if precision.name in CODEBOOKS:
        flat = weight.reshape(-1)
        missing = -flat.numel() % BNB_BLOCK
        return torch.nn.functional.pad(flat, (0, missing)).view(-1, BNB_BLOCK)
    if precision.granularity == "group":
        return weight.reshape(-1, precision.group_size or 1)
    return weight


def largest(groups: Tensor) -> Tensor:
    """max|w| of each group, [groups, 1]."""
    return groups.abs().amax(dim=1, keepdim=True)


def rtn_codes(groups: Tensor, maximum: Tensor, bits: int) -> Tensor:
    """Integer codes as float32, as `rtn.quantize` computes them; groups of zeros have code 0."""
    levels = 2 ** (bits - 1)
    delta = maximum / levels
    return (groups / torch.where(delta > 0, delta, 1)).round_().clamp_(-levels, levels - 1)


def book_codes(groups: Tensor, maximum: Tensor, book: Codebook) -> Tensor:
    """Indices into `book.values` as float32. Divides as bitsandbytes does, by multiplying with 1 / m."""
    scaled = (groups * (1.0 / maximum.clamp(min=1e-38))).clamp_(-1, 1)
    # Counting the bounds below is three times as fast as torch.bucketize, whose binary search mispredicts branches.
    codes, above = torch.zeros_like(scaled), torch.empty_like(scaled)
    for bound in book.bounds.tolist():
        codes += torch.gt(scaled, bound, out=above)
    return codes
