"""A model's weights as they were before a precision was applied, held on the host, for the census to compare with.

What a method says about its own error proves nothing, so the weights that it is measured against are kept away from it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.engine.layers.linear import matrix, targets


class Snapshot(NamedTuple):
    """Copies on the CPU, in 16 bits where that holds every number exactly, else in the model's own dtype."""

    weights: dict[str, Tensor]
    """Module -> the weight [out, in] that is to be quantized. The census removes each one when it is done with it."""
    rest: dict[str, Tensor]
    """Name -> every parameter and buffer that no precision quantizes."""


def take_snapshot(model: PreTrainedModel) -> Snapshot:
    """Copy an unquantized model's weights."""
    linear = targets(model)
    quantized = {id(module.weight) for module in linear.values()}
    rest = {name: _compact(tensor) for name, tensor in _tensors(model) if id(tensor) not in quantized}
    return Snapshot({name: _compact(matrix(module).detach()) for name, module in linear.items()}, rest)


def changed(model: PreTrainedModel, rest: dict[str, Tensor]) -> list[str]:
    """The names of what a precision had to leave alone but changed."""
    live = dict(_tensors(model))
    return [name for name, before in rest.items() if name not in live or not _same(live[name], before)]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _compact(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.dtype in (torch.float32, torch.float64):
        for dtype in (torch.bfloat16, torch.float16):
            half = tensor.to(dtype)
            if torch.equal(half.to(tensor.dtype), tensor):
                return half.to("cpu").contiguous()
    return tensor.to("cpu", copy=True).contiguous()


def _same(live: Tensor, before: Tensor) -> bool:
    if live.shape != before.shape:
        return False
    now = live.detach().to("cpu")
    then = before.to(now.dtype)
    return torch.equal(now, then) or bool(torch.isclose(now, then, rtol=0, atol=0, equal_nan=True).all())
