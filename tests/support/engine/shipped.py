"""Artifacts as the engine opens them."""

from pathlib import Path
from typing import Any

from app.checkpoints.format.files import inspect
from app.evidence.artifacts import FORMAT_PRECISIONS
from worker.engine.artifacts import shipped
from worker.engine.checkpoint import open_checkpoint

WEIGHTS_ONLY = ["nf4", "nf4-dq", "w4a16", "half", "MXFP4A16", "NVFP4A16", "gptq", "awq"]
WITH_ACTIVATIONS = ["int8", "W8A8", "FP8_DYNAMIC"]


def open_artifact(path: Path, base: Path | None = None) -> tuple[Any, Any, Any]:
    """The live model, its precision and its census."""
    opened = open_checkpoint(path, "cpu", quantized=True)
    assert opened.files.quantization is not None
    of = shipped.Base(inspect(base)) if base else None
    info, census = shipped.hold(
        opened, FORMAT_PRECISIONS[opened.files.quantization.method], lambda done, total: None, of
    )
    return opened.model, info, census
