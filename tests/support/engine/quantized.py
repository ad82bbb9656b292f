"""Tiny models quantized in this process, and what they then compute."""

from typing import Any

import torch

from app.catalog.precisions import parse
from tests.support.factories import sentences, tiny_model, tiny_tokenizer
from worker.engine import precisions as registry
from worker.engine.quantizers import calibration
from worker.engine.quantizers.availability import installed
from worker.engine.quantizers.calibration import Calibration

ARCHITECTURES = ["llama", "llama-tied", "neox", "qwen2", "mistral", "gpt2"]
TORCHAO = ["torchao-int8", "torchao-int4-g64", "torchao-int4-channel"] if installed("torchao") else []
"""An extra: `pip install -e '.[torchao]'`."""
NO_AWQ = {"neox", "gpt2"}
IDS = torch.randint(2, 384, (2, 48), generator=torch.Generator().manual_seed(0))


def texts(seed: int = 0) -> Calibration:
    ids = calibration.pack(sentences(60, seed), tiny_tokenizer(), samples=4, length=64, seed=0)
    return Calibration(ids, "generic", "sha256:0", 0, tiny_tokenizer())


def applied(name: str, architecture: str = "llama", **changes: Any) -> tuple[Any, Any]:
    """The live model, and its census."""
    model = tiny_model(architecture, **changes)
    precision = parse(name)
    return model, registry.apply(model, precision, calibration=texts() if precision.calibration else None)


def loss(model: Any) -> float:
    with torch.inference_mode():
        return float(model(IDS, labels=IDS).loss)
