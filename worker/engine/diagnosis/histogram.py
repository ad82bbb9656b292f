"""Quantiles of more numbers than fit into memory."""

import math

import torch
from torch import Tensor

_DROPPED = 14
_BINS = (0x7F800000 >> _DROPPED) + 1


class Histogram:
    """Counts of non-negative float32 numbers by the first 18 bits of their pattern.

    Patterns of non-negative floats sort as the numbers do. A bin keeps 9 bits of mantissa, so it is 2^-9 of its numbers
    wide and its middle lies within 2^-10 (0.1 %) of each; zero is exact, and so are infinities, in the last bin.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count float32 values >= 0, infinity among them."""
        self.counts += torch.bincount(values.reshape(-1).view(torch.int32) >> _DROPPED, minlength=_BINS).cpu()

    def add_zeros(self, count: int) -> None:
        """Count that many zeros."""
        self.counts[0] += count

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts

    def quantile(self, q: float) -> float:
        """The smallest number x such that at least a share q of all numbers is <= x; 0 where nothing was counted."""
        total = int(self.counts.sum())
        if not total:
            return 0.0
        rank = max(1, math.ceil(q * total))
        place = int(torch.searchsorted(self.counts.cumsum(0), torch.tensor([rank])))
        if place == 0:
            return 0.0
        if place == _BINS - 1:
            return float("inf")
        pattern = torch.tensor([(place << _DROPPED) | (1 << (_DROPPED - 1))], dtype=torch.int32)
        return pattern.view(torch.float32).item()
