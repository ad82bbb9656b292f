"""What one quantized live module of an artifact holds."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.evidence.quantization import Quantization
from worker.engine.artifacts import packed
from worker.engine.quantizers import bnb


class QuantizedModule(NamedTuple):
    """What one quantized live module holds."""

    weight: Tensor
    """What it computes with, [out, in]."""
    bits: int
    packed: str
    """The dtype of its codes in the file."""
    granularity: str
    group_size: int | None
    order: Tensor | None = None
    """The order of columns that puts those of a group side by side; None where they already are."""
    floating: bool = False
    """Whether its codes are floating-point numbers."""


def read_module(module: nn.Module, codes: str, quantization: Quantization) -> QuantizedModule:
    """The weight of a packed module, and its packing."""
    found: Any = module
    if quantization.method == "bitsandbytes":
        bits = 4 if isinstance(module, bnb.bnb.nn.Linear4bit) else 8
        size = found.weight.quant_state.blocksize if bits == 4 else None
        return QuantizedModule(bnb.dequantized(module), bits, codes, "block" if bits == 4 else "channel", size)
    if quantization.method == "compressed-tensors":
        scheme = found.quantization_scheme.weights
        strategy = str(getattr(scheme.strategy, "value", scheme.strategy)).replace("tensor_group", "group")
        index = getattr(found, "weight_g_idx", None)
        order = None if index is None or (index < 0).any() else torch.argsort(index, stable=True)
        size = scheme.group_size if strategy == "group" else None
        floating = str(getattr(scheme.type, "value", scheme.type)) == "float"
        return QuantizedModule(found.weight.detach(), scheme.num_bits, codes, strategy, size, order, floating)
    dtype = torch.float16 if found.qweight.device.type == "cpu" else found.scales.dtype
    size = quantization.group_size
    weight = packed.weight(found, dtype)
    return QuantizedModule(weight, found.bits, codes, "group" if size else "channel", size, packed.order(found))


def most_distinct(quantized: QuantizedModule) -> int | None:
    """The largest number of distinct values in a group; None where groups are not runs of weights (2-D blocks)."""
    weight: Any = torch.nan_to_num(quantized.weight.float(), 0.0, 0.0, 0.0)
    if quantized.order is not None:
        weight = weight[:, quantized.order.to(weight.device)]
    if quantized.granularity == "tensor":
        return int(weight.unique().numel())
    if quantized.group_size is None and quantized.granularity != "channel":
        return None
    size = quantized.group_size or weight.shape[1]
    if quantized.granularity != "block" and weight.shape[1] % size:
        return None
    if weight.numel() % size:
        return None
    most = 0
    groups: Any = weight.reshape(-1, size)
    for part in groups.split(max(1, (1 << 24) // size)):
        most = max(most, int((part.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1).max()) + 1)
    return most
