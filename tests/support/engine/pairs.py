"""Pairs of checkpoints without a model: of random weights and any size, or of the few weights that a test gives."""

import json
import struct
from pathlib import Path

import torch

from app.evidence.diagnosis import DEFAULT_DIAGNOSED, Diagnosis
from tests.support.engine.weights import Weights, save
from worker.engine.diagnosis import overlap

HIDDEN, INNER, VOCAB = 2048, 5504, 32000
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def write_pair(folder: Path, megabytes: int, shards: int = 2) -> tuple[Path, Path]:
    """Two Llama-like bfloat16 checkpoints of about that size each; the second has a small update."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN // 16)}
    layer, size = 0, 0
    while size < megabytes * 2**20:
        for name, shape in _LAYER.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            size += 2 * shape[0] * shape[1]
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
        layer += 1
    paths = folder / "original", folder / "unlearned"
    for path, update in zip(paths, (0.0, 2e-5), strict=True):
        _write(path, shapes, shards, update)
    return paths


def _write(path: Path, shapes: dict[str, tuple[int, ...]], shards: int, update: float) -> None:
    path.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    places: dict[str, str] = {}
    names = list(shapes)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[shard::shards]
        places |= dict.fromkeys(mine, file)
        header, at = {}, 0
        for name in mine:
            end = at + 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, end]}
            at = end
        raw = json.dumps(header).encode()
        with (path / file).open("wb") as out:
            out.write(struct.pack("<Q", len(raw)) + raw)
            for name in mine:
                out.write(_bytes(shapes[name], names.index(name), update))
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _bytes(shape: tuple[int, ...], seed: int, update: float) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).mul_(0.02)
    if update:
        weight += update * torch.randn(shape, generator=generator)
    return weight.bfloat16().view(torch.uint8).numpy().tobytes()


def compare(folder: Path, original: Weights, unlearned: Weights, *precisions: str) -> Diagnosis:
    """The diagnosis of two checkpoints of just these weights."""
    pair = save(folder / "original", original), save(folder / "unlearned", unlearned)
    return overlap.diagnose(*pair, precisions or DEFAULT_DIAGNOSED)
