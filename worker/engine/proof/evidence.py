"""A quantized weight compared with the unquantized one: the error of the whole, and of the worst row."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_AT_ONCE = 1 << 22

Factors = tuple[Tensor, Tensor]
"""The factors by which a rescaling method (AWQ) multiplied the rows [out, 1] and columns [1, in] of a weight."""


class Evidence(NamedTuple):
    """The figures of one module."""

    relative_error: float
    """||Q(W) - W||_F / ||W||_F, with the factors of rows and columns undone first."""
    largest_row_error: float
    """The same for the row where it is largest; rows of zeros left out."""
    explained_error: float
    """The largest relative error that the bits explain for this weight."""
    used: float
    """||Q(W) - W||_F as a share of the explained error."""
    reason: str | None
    """What the bits do not explain, with figure and bound, to follow the module's name; None if they explain all."""

    @property
    def refusal(self) -> str:
        """The reason, with the errors."""
        return f"{self.reason} (its relative error is {self.relative_error:.3g}, explained {self.explained_error:.3g})"


def errors(live: Tensor, original: Tensor, factors: Factors | None = None) -> tuple[float, float]:
    """(relative error, largest relative error of a row) of a weight [out, in], infinite where zeros became nonzero.

    Weights that were not finite before are left out, as are weights that these made non-finite.
    """
    error = size = largest = 0.0
    spoiled = not bool(torch.isfinite(original).all())
    for rows, w in parts(original, live.device):
        q = live[rows].float()
        if factors is not None:
            q = torch.where(q != 0, q / (factors[0][rows] * factors[1]), q)
        finite = w.isfinite() & q.isfinite() if spoiled else w.isfinite()
        off, own = (torch.where(finite, x, 0).double().square_().sum(1) for x in (q - w, w))
        error, size = error + float(off.sum()), size + float(own.sum())
        largest = max(largest, float((off / own).where(own > 0, 0).max()))
    whole = (error / size) ** 0.5 if size else float("inf") if error else 0.0
    return whole, largest**0.5


def finite(figure: float) -> float | None:
    """A figure for the report; None where non-finite weights leave no figure."""
    return figure if math.isfinite(figure) else None


def parts(weight: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Runs of rows of a weight, in float32 on a device, small enough to compute with several copies of them."""
    height = max(1, _AT_ONCE // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], height):
        rows = slice(start, start + height)
        yield rows, weight[rows].to(device).float()


def blocks(weight: Tensor, size: int) -> Tensor:
    """[out, in] -> [rows, in] whose columns the size divides: as it is, or [blocks, size] where blocks cross rows.

    The last block is filled up with zeros.
    """
    if weight.shape[1] % size == 0:
        return weight
    flat = weight.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def maxima(weight: Tensor, size: int) -> Tensor:
    """max|w| of each group of `size` weights, float32: [rows, groups], or [blocks, 1]. What is not finite stays so."""
    groups = blocks(weight, size)
    return torch.cat([part.reshape(part.shape[0], -1, size).abs().amax(2) for _, part in parts(groups, groups.device)])
