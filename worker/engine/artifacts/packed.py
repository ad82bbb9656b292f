"""Opening GPTQ and AWQ checkpoints by gptqmodel (auto-gptq's and autoawq's successor; an extra of Lethe's).

The plain kernels are asked for on the CPU: they compute with the weights as dequantized, where the fused one that the
library would pick rounds its inputs as well (7.2310 against 7.2301 for the loss of a tiny model in float32). They are
there for 16 bits only.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

# Else it counts the machine's cores and, with two or fewer, has none for itself (engine/README.md, "Counted cores").
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.quantizers.quiet import no_output, no_progress_bars

_AT_ONCE = 1024


def import_now() -> None:
    """Import gptqmodel, if it is installed, before another library does: with what it needs, and without its banner."""
    with no_output():
        if importlib.util.find_spec("gptqmodel"):
            importlib.import_module("gptqmodel")


def load(path: Path, place: torch.device, method: str) -> PreTrainedModel:
    """The model with gptqmodel's live modules, in eval mode; float16 on the CPU, bfloat16 where a GPU's kernels do.

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
    """What a packed layer computes with, [out, in]: its answers to the rows of the identity.

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
    """The columns, those of one group side by side; None where they lie so."""
    index = getattr(module, "g_idx", None)
    if index is None or index.numel() != module.in_features:
        return None
    return torch.argsort(index.long(), stable=True)
