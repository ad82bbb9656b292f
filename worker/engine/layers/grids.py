"""The grid that a quantizer claims for a weight, and the check that the live weight really lies on it.

    w = scale * (point - zero)        point from a table of at most 2^bits values

with one scale (and, for asymmetric quantizers, one zero) per group of consecutive weights in a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FP4_POINTS = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1, the values of 4-bit floating point (OCP Microscaling Formats 1.0, section 5.3.3); its two zeros are one."""

_AT_ONCE = 1 << 24


class Grid(NamedTuple):
    """Where the weights of one module may lie."""

    scale: Tensor
    """[out, groups], float32."""
    zero: Tensor | None
    """[out, groups], float32; None for 0."""
    points: Tensor
    """[at most 2^bits], float32, ascending."""

    def to(self, device: torch.device) -> "Grid":
        """The same grid on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return Grid(self.scale.to(device), zero, self.points.to(device))


class OnGrid(nn.Linear):
    """A linear layer whose weight was put onto a grid: the weight that it computes with is the one that is proven."""

    grid: Grid


def on_grid(weight: Tensor, bias: nn.Parameter | None, grid: Grid) -> OnGrid:
    """A plain layer with exactly this weight [out, in], in its dtype and on its device."""
    rows, columns = weight.shape
    layer = OnGrid(columns, rows, bias=bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = bias  # type: ignore[assignment]
    layer.grid = grid.to(weight.device)
    return layer.eval().requires_grad_(False)


def integers(bits: int) -> Tensor:
    """The points of a signed integer quantizer: -2^(bits-1) to 2^(bits-1) - 1."""
    return torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float32)


def distinct(weight: Tensor, grid: Grid) -> int | None:
    """The largest number of distinct values in any group of weight [out, in]; None when one lies off the grid.

    The expected value is rounded to the weight's dtype and compared with it: exactly in 16 bits, where the grid's own
    steps are hardly coarser than the dtype's, and to the last bits in float32. Weights that are not finite, which
    no grid holds, are skipped: a model that collapsed is scored, not refused.
    """
    columns = weight.shape[1]
    most = 0
    for start in range(0, weight.shape[0], max(1, _AT_ONCE // columns)):
        rows = slice(start, start + max(1, _AT_ONCE // columns))
        scale = grid.scale[rows, :, None]
        zero = 0.0 if grid.zero is None else grid.zero[rows, :, None]
        live = weight[rows].reshape(scale.shape[0], scale.shape[1], -1)
        finite = live.isfinite() & scale.isfinite()
        place = torch.where(finite & (scale != 0), live.float() / scale + zero, zero)
        middles = (grid.points[1:] + grid.points[:-1]) / 2
        codes = torch.bucketize(place, middles)
        expected = (scale * (grid.points[codes] - zero)).to(weight.dtype)
        slack = 4 * torch.finfo(weight.dtype).eps if weight.dtype == torch.float32 else 0.0
        if not ((live - expected).abs() <= slack * expected.abs())[finite].all():
            return None
        ordered = codes.sort(dim=2).values
        most = max(most, int((ordered.diff(dim=2) != 0).sum(dim=2).max()) + 1)
    return most
