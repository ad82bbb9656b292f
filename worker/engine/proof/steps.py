"""Whether weights lie on grids of equal steps, recovered from the weights alone, because nothing claims these grids."""

import torch
from torch import Tensor

_AT_ONCE = 1 << 24


def distinct(weights: Tensor, bits: int, eps: float) -> int | None:
    """The largest number of distinct values in any group, if all groups lie on grids of 2^bits steps; else None.

    A count alone proves nothing at 8 bits: a row of 128 unquantized weights also has fewer than 256 values. So the step
    is recovered from the live weights: the largest |w| of a group is 2^(N-1) steps, or 2^(N-1) - 1 when it
    was positive and clamped. Tolerance: weights held in 16 bits are off the grid by their own rounding.

    Args:
        weights: [groups, weights that share a step], float32.
        bits: Bits per weight.
        eps: The relative rounding of the dtype in which the weights are held.
    """
    most = 0
    everything = torch.nan_to_num(weights, 0.0, 0.0, 0.0)
    at_once = max(1, _AT_ONCE // everything.shape[1])
    for start in range(0, everything.shape[0], at_once):
        groups = everything[start : start + at_once]
        if not _on_grid(groups, bits, eps):
            return None
        ordered = groups.sort(dim=1).values
        most = max(most, int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1)
    return most if most <= 2**bits else None


def _on_grid(w: Tensor, bits: int, eps: float) -> bool:
    """Whether every row of w [groups, size] consists of integer multiples, within the bits' range, of one step."""
    levels = 2 ** (bits - 1)
    largest = w.abs().amax(dim=1, keepdim=True)
    fits = torch.zeros(w.shape[0], dtype=torch.bool, device=w.device)
    for steps in (levels, levels - 1):
        ratio = torch.where(largest > 0, w * (steps / largest), 0)
        codes = ratio.round().clamp(-levels, levels - 1)
        fits |= ((ratio - codes).abs() <= 1e-3 + eps * codes.abs()).all(dim=1)
    return bool(fits.all())
