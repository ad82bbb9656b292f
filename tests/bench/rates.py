"""What this machine can do at most, measured in the same process: matrix products and copies."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Rates(NamedTuple):
    """Of one device."""

    flops: float
    """Floating-point operations a second, of a product as large as a model's."""
    bytes: float
    """Bytes read and written a second, by copying what no cache holds."""


def measure(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of several tries: what a busy neighbour takes is not the machine's."""
    on_gpu = device.type == "cuda"
    rows, width = (8192, 8192) if on_gpu else (1024, 1376)
    x, w = (torch.randn(n, width, device=device, dtype=dtype) for n in (rows, width))
    flops = max(2 * rows * width**2 / seconds(lambda: x @ w, device) for _ in range(20))
    source = torch.empty((1 << 30 if on_gpu else 1 << 26), device=device, dtype=torch.float32).fill_(1)
    target = torch.empty_like(source)
    copied = max(2 * source.nbytes / seconds(lambda: target.copy_(source), device) for _ in range(5))
    return Rates(flops, copied)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
