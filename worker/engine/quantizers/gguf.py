"""llama.cpp's block formats Q4_0 and Q8_0, by the `gguf` package's own quantizers (ggml-quants.c in numpy).

Each weight is packed and unpacked again, and the model computes with what was unpacked. K-quants (Q4_K_M and others)
cannot be offered: the package reads them, but doesn't implement how they are made.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.catalog.frozen import Scalar
from app.catalog.quantizers import Precision
from worker.engine.layers.grids import Grid, integers, on_grid
from worker.engine.layers.linear import matrix, targets
from worker.engine.proof import claims, nearest
from worker.engine.proof.evidence import Evidence, maxima
from worker.engine.proof.nearest import HALF_EPS, HALF_LEAST, Points

gguf: Any = importlib.import_module("gguf")


@torch.no_grad()
def apply(model: PreTrainedModel, precision: Precision, tick: Callable[[], None], calibration: object = None) -> None:
    """Replace the model's linear layers by ones that hold unpacked weights."""
    for name, module in targets(model).items():
        original = matrix(module).detach()
        packed = pack(original, precision)
        live = unpack(packed, precision).to(original.device, original.dtype)
        model.set_submodule(name, on_grid(live, module.bias, grid(packed, precision)))
        tick()


def pack(weight: Tensor, precision: Precision) -> np.ndarray[Any, Any]:
    """[out, in] -> the bytes of a GGUF file [out, bytes per row]."""
    # Overflow and invalid values come from a collapsed model's own weights; they stay as they are.
    with np.errstate(all="ignore"):
        packed: np.ndarray[Any, Any] = gguf.quants.quantize(weight.float().cpu().numpy(), _type(precision))
    return packed


def unpack(packed: np.ndarray[Any, Any], precision: Precision) -> Tensor:
    """The bytes -> [out, in], float32."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(packed, _type(precision)))


def grid(packed: np.ndarray[Any, Any], precision: Precision) -> Grid:
    """The grid of the weights in these bytes: a block of 32 is its scale in 16 bits, then the codes."""
    size = gguf.GGML_QUANT_SIZES[_type(precision)][1]
    blocks = packed.reshape(packed.shape[0], -1, size)
    scale = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)[:, :, 0]
    return Grid(torch.from_numpy(scale), None, integers(precision.bits or 0))


def _type(precision: Precision) -> Any:
    return gguf.GGMLQuantizationType[precision.name.removeprefix("gguf-").upper()]


def parameters(precision: Precision) -> dict[str, Scalar]:
    """What else could change a number."""
    return {"type": precision.name.removeprefix("gguf-").upper(), "scale": "float16"}


live = claims.on_grid


def evidence(layer: claims.Layer) -> Evidence:
    """Q4_0's scales are max / 8, Q8_0's max / 127, rounded to float16 after they gave the codes (ggml-quants.c)."""
    bits = layer.precision.bits or 0
    steps = {4: 8, 8: 127}[bits]
    largest, scale = maxima(layer.original, layer.size), layer.module.grid.scale
    late = (scale.abs() * steps - largest).abs()
    grid = Points(scale, integers(bits), layer.size, layer.slack, late=late)
    return claims.rounded(layer, grid, *nearest.around(largest / steps, 2 * HALF_EPS, HALF_LEAST))
