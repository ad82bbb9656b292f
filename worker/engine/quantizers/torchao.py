"""torchao's weight-only integers: int8 per output channel, int4 in groups or per channel, both symmetric.

torchao's tensors dequantize in every forward; here each layer holds what they dequantize to. (Its 4-bit kernels for
CUDA need another library, `mslk`; `IntxWeightOnlyConfig`, which is used here, runs anywhere.)

It is an extra of its own because transformers imports it, where installed, in every process: slowly, and with warnings.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.catalog.frozen import Scalar
from app.catalog.quantizers import Precision
from worker.engine.layers.grids import Grid, integers, on_grid
from worker.engine.layers.linear import matrix, targets
from worker.engine.proof import claims, nearest
from worker.engine.proof.evidence import Evidence, maxima
from worker.engine.proof.nearest import Points

quantization: Any = importlib.import_module("torchao.quantization")


@torch.no_grad()
def apply(model: PreTrainedModel, precision: Precision, tick: Callable[[], None], calibration: object = None) -> None:
    """Replace the model's linear layers by ones that hold torchao's weights."""
    for name, module in targets(model).items():
        original = matrix(module).detach().contiguous()
        packed = pack(original, precision)
        live = packed.dequantize().contiguous()
        scale = packed.scale.detach().float().reshape(original.shape[0], -1)
        model.set_submodule(name, on_grid(live, module.bias, Grid(scale, None, integers(precision.bits or 0))))
        tick()


def pack(weight: Tensor, precision: Precision) -> Any:
    """[out, in] -> torchao's tensor of integer codes and scales."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    quantization.quantize_(layer, _config(precision))
    return layer.weight


def _config(precision: Precision) -> Any:
    if precision.bits == 8:
        return quantization.Int8WeightOnlyConfig()
    per = quantization.PerGroup(precision.group_size) if precision.group_size else quantization.PerAxis(0)
    return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=per)  # type: ignore[attr-defined]


def parameters(precision: Precision) -> dict[str, Scalar]:
    """What else could change a number."""
    config = "Int8WeightOnlyConfig" if precision.bits == 8 else "IntxWeightOnlyConfig"
    return {"config": config, "symmetric": True, "activations": "not quantized"}


live = claims.on_grid


def evidence(layer: claims.Layer) -> Evidence:
    """Scales are max / 127.5 or max / 7.5 in the weights' dtype; at int8 not below float32's epsilon."""
    bits = layer.precision.bits or 0
    expected = maxima(layer.original, layer.size) / (2 ** (bits - 1) - 0.5)
    if bits == 8:
        expected = expected.clamp(min=torch.finfo(torch.float32).eps)
    grid = Points(layer.module.grid.scale, integers(bits), layer.size, layer.slack)
    return claims.rounded(layer, grid, *nearest.around(expected, layer.slack))
