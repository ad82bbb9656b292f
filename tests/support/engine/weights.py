"""Checkpoints of a few given weights, written without a model."""

import json
import struct
from pathlib import Path

import torch

Weights = dict[str, torch.Tensor]
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save(path: Path, weights: Weights, model_type: str = "llama") -> Path:
    """A checkpoint of just these weights, named `….weight` in the first layer."""
    path.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": model_type, "vocab_size": 1000}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    header, data = {}, b""
    for name, weight in weights.items():
        raw = weight.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[f"layers.0.{name}.weight"] = {
            "dtype": DTYPES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": offsets,
        }
        data += raw
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path
