"""What the tests of unlearning share: a bundle with raw texts, small recipes, and looking into checkpoints."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from app.catalog.recipes import Recipe, recipe
from app.forget_sets.bundle import Bundle, parse
from tests.support.factories import bundle_files, sentences

TEXTS = 6


def raw_bundle(**changes: list[str]) -> Bundle:
    """Six items of every set, raw/forget and raw/retain too; `changes` replace sets by field (raw_forget)."""
    files = bundle_files(TEXTS)
    for name, seed in (("raw/forget", 50), ("raw/retain", 90)):
        files[f"{name}.json"] = json.dumps([" ".join(sentences(2 + i % 3, seed + i)) for i in range(TEXTS)]).encode()
    for name, texts in changes.items():
        files[f"{name.replace('_', '/')}.json"] = json.dumps(texts).encode()
    return parse(files)


def small(method: str, loss: str, **given: Any) -> Recipe:
    """A recipe of a few steps with no stop rule, unless told otherwise."""
    return recipe(method, loss, {"learning_rate": 1e-3, "max_steps": 3, "stop": None, "lora_rank": 2, **given})


def tensor_digests(checkpoint: Path) -> dict[str, str]:
    """Tensor -> SHA-256 of its bytes."""
    found: dict[str, str] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                found[name] = hashlib.sha256(
                    file.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes()
                ).hexdigest()
    return found
