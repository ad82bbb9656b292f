"""Opening GPTQ and AWQ checkpoints by gptqmodel (the successor of auto-gptq and autoawq; an extra of Lethe).

On the CPU the plain kernels are requested: they compute with the dequantized weights, while the fused one that the
library would pick also rounds its inputs (7.2310 against 7.2301 for the loss of a tiny model in float32). They exist
for 16 bits only.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

# Otherwise it counts the machine's cores and, with two or fewer, keeps none for itself (engine/README.md, "Counted
# cores").
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.quantizers.quiet import no_output, no_progress_bars

_AT_ONCE = 1024


def import_now() -> None:
    """Import gptqmodel, if it is installed, before another library does: with its settings, and without its banner."""
    with no_output():
        if importlib.util.find_spec("gptqmodel"):
            importlib.import_module("gptqmodel")


def load(path: Path, place: torch.device, method: str) -> PreTrainedModel:
    """The model with gptqmodel's live modules, in eval mode; float16 on the CPU, bfloat16 on a GPU.

    Raises:
        ImportError: without gptqmodel. And whatever it raises.
    """
    with no_output(), no_progress_bars():
        from gptqmodel import BACKEND, GPTQModel

        plain = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}[method]
        on_cpu = place.type == "cpu"
        loaded: Any = GPTQModel.load(
            str(path),
            device=str(place),
            dtype=torch.float16 if on_cpu else torch.bfloat16,
            backend=plain if on_cpu else BACKEND.AUTO,
            trust_remote_code=False,
            local_files_only=True,
        )
    model: PreTrainedModel = loaded.model
    return model


def is_packed(module: Any) -> bool:
    """Whether this is one of gptqmodel's layers, with a packed weight."""
    return hasattr(module, "qweight") and hasattr(module, "out_features")


@torch.inference_mode()
def weight(module: Any, dtype: torch.dtype) -> Tensor:
    """The weight that a packed layer computes with, [out, in]: its outputs for the rows of the identity.

    The library's own dequantize_model() misreads AWQ (engine/README.md, "Misread AWQ").
    """
    device, bias = module.qweight.device, module.bias
    module.bias = None
    try:
        columns = [
            module(torch.eye(module.in_features, dtype=dtype, device=device)[start : start + _AT_ONCE])
            for start in range(0, module.in_features, _AT_ONCE)
        ]
    finally:
        module.bias = bias
    return torch.cat(columns).T.contiguous()


def order(module: Any) -> Tensor | None:
    """The order of columns that puts those of a group side by side; None where they already are."""
    index = getattr(module, "g_idx", None)
    if index is None or index.numel() != module.in_features:
        return None
    return torch.argsort(index.long(), stable=True)
