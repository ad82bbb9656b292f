"""Checkpoints without torch: a config, a tokenizer's file, and one tensor of a value."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_checkpoint(
    path: Path, *, value: int = 0, vocab_size: int = 8, architecture: str = "LlamaForCausalLM", tokenizer: str = "{}"
) -> Path:
    """A checkpoint without torch: config, a tokenizer's file, and one tensor whose numbers are all `value`."""
    path.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [architecture], "model_type": "llama", "vocab_size": vocab_size}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(tokenizer)
    data = struct.pack("<f", value) * (vocab_size * 2)
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [vocab_size, 2], "data_offsets": [0, len(data)]}}
    raw = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
