"""What a quantizer claims about a layer, checked against the unquantized weights.

Each module of `worker.engine.quantizers` says how its layers are read (`live`) and which grid and scales it claims for
them (`evidence`). It is not believed: `nearest` and `compensated` measure whether the claims hold.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from app.catalog.quantizers import Precision
from worker.engine.layers import grids
from worker.engine.layers.linear import Linear, matrix
from worker.engine.proof import nearest
from worker.engine.proof.evidence import Evidence, Factors
from worker.engine.proof.nearest import Points

TOLERANCE = 2e-6
"""The relative error that float32 adds: a scale and a product, each rounded."""

Live = tuple[int | None, Tensor]
"""The largest number of distinct values in a group (None where they are packed), and what a module computes with."""


class Layer(NamedTuple):
    """One layer that was quantized."""

    module: Any
    live: Tensor
    """What it computes with, [out, in]."""
    original: Tensor
    """What it held before the precision was applied."""
    precision: Precision
    peak: float
    """The largest unquantized weight of all that may share a scale with this one's groups."""
    factors: Factors | None
    """The factors by which a rescaling method multiplied its rows and columns."""

    @property
    def size(self) -> int:
        """Weights that share a scale."""
        return self.precision.group_size or self.original.shape[1]

    @property
    def slack(self) -> float:
        """The relative error that the live weights' dtype adds."""
        dtype = self.live.dtype
        return 2 * torch.finfo(dtype).eps + TOLERANCE if dtype.is_floating_point else TOLERANCE


class Quantizer(Protocol):
    """What the proof needs from a quantizer's module."""

    def live(self, module: Linear, shape: tuple[int, int], precision: Precision) -> Live | str:
        """What a live module holds; or why it is not quantized, to follow the module's name."""

    def evidence(self, layer: Layer) -> Evidence:
        """The figures of a layer, and the reason if its bits do not explain them."""


def rounded(layer: Layer, grid: Points, low: Tensor, high: Tensor) -> Evidence:
    """The evidence of a layer that was rounded to the nearest points of a grid whose scales lie within bounds."""
    found = nearest.measure(layer.live, layer.original, grid)
    return found._replace(reason=nearest.scale_reason(grid.scale, low, high) or found.reason)


def on_grid(module: Linear, shape: tuple[int, int], precision: Precision) -> Live | str:
    """`live` for layers that carry the grid that they claim (`layers.grids`)."""
    found = plain(module, shape)
    if isinstance(found, str):
        return found
    if not isinstance(module, grids.OnGrid):
        return f"is a {type(module).__name__} without a grid"
    groups = shape[1] // precision.group_size if precision.group_size else 1
    if module.grid.scale.shape != (shape[0], groups) or len(module.grid.points) > 2 ** (precision.bits or 0):
        points = f"{len(module.grid.points)} points in {list(module.grid.scale.shape)} groups"
        return f"was put onto a different grid, of {points}"
    distinct = grids.distinct(found, module.grid)
    return OFF_GRID if distinct is None else (distinct, found)


def plain(module: nn.Module, shape: tuple[int, int]) -> Tensor | str:
    """The weight of a plain linear layer; or why it is not one of that shape."""
    assert isinstance(module, Linear)
    weight = matrix(module).detach()
    return weight if tuple(weight.shape) == shape else f"has the shape {list(weight.shape)}"


OFF_GRID = "holds weights off the grid"
