"""A checkpoint as files: what can be known, and refused, without torch.

`inspect` says what a directory holds, or refuses it and says what to do. `resolve_inside` keeps paths within the
folders that the operator allowed. `pair` says whether two checkpoints can be compared; `digests` identifies them.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.checkpoints.format import configs, content, quantization
from app.checkpoints.format.headers import Tensor, read_header
from app.checkpoints.format.weights import Weights
from app.errors import CheckpointRefused
from app.evidence.quantization import Quantization

__all__ = ["BUFFERS", "OUTPUT", "CheckpointFiles", "Tensor", "inspect", "resolve_inside"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Suffixes of the buffers that older transformers saved and newer ones compute: not part of what a model knows."""
OUTPUT = ("lm_head.weight", "embed_out.weight")
"""The output layer's weight, as most architectures name it."""
_EMBEDDING = (".embed_tokens.weight", "wte.weight", ".embed_in.weight", "word_embeddings.weight")
"""What an embedding of the vocabulary is called: Llama and most others; GPT-2; GPT-NeoX; BLOOM and Falcon."""


@dataclass(frozen=True)
class CheckpointFiles:
    """What a checkpoint's files say about it."""

    path: Path
    architecture: str
    model_type: str
    vocab_size: int
    parameters: int
    dtype: str
    """The dtype that most of the stored parameters have, in safetensors' names: F32, BF16, ..."""
    may_tie: bool
    """Whether the output layer may share the embedding's weights (what an absent setting means differs by model)."""
    tensors: Mapping[str, Tensor] = field(repr=False)
    contents: Mapping[str, bytes] = field(repr=False)
    """Name -> bytes of the small files that are read (`content`), as they were."""
    weights: Weights = field(repr=False, compare=False)
    """Reads the tensors and hashes what it reads."""
    end_tokens: Sequence[int] | None = None
    """The ids that end a generation; None where only the tokenizer can tell."""
    quantization: Quantization | None = None
    """How its weights are quantized already; None for an unquantized checkpoint."""

    def json(self, name: str) -> dict[str, Any]:
        """One of the small files as JSON; empty where there is none."""
        found: dict[str, Any] = content.parse(self.contents, name, self.path)
        return found


def inspect(path: Path | str, *, quantized: bool = False) -> CheckpointFiles:
    """Read the config, the safetensors headers and the tokenizer's files of a checkpoint directory; no weights.

    Args:
        path: The directory.
        quantized: Whether it may be quantized already, as an audit's artifacts are.

    Raises:
        CheckpointRefused: With a code and what to do, for everything that Lethe does not open: missing or unreadable
            paths, pickles, truncated or incomplete weights, no config or tokenizer, remote code, quantized weights.
    """
    path = Path(path)
    names = _list(path)
    contents = content.read(path, names)
    config = _read_config(path, names, contents)
    stored = _quantization(config, path, quantized)
    tensors = _read_tensors(path, names)
    parameters: Counter[str] = Counter()
    for tensor in (quantization.unpacked(tensors, stored.bits, {}) if stored else tensors).values():
        parameters[tensor.dtype] += math.prod(tensor.shape)
    if not parameters.total():
        raise CheckpointRefused("checkpoint_no_weights", f"{path}: its safetensors files hold no parameters")
    architectures = config.get("architectures")
    text_config = config["text_config"] if isinstance(config.get("text_config"), dict) else {}
    vocab_size = config.get("vocab_size", text_config.get("vocab_size"))
    if not isinstance(architectures, list) or not architectures or not isinstance(config.get("model_type"), str):
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path}/config.json names no architecture or model_type; save the model with save_pretrained()",
        )
    if type(vocab_size) is not int or vocab_size < 1:
        raise CheckpointRefused("checkpoint_unsupported", f"{path}/config.json gives no vocab_size")
    for name, tensor in tensors.items():
        # More rows are padding; fewer cannot hold the vocabulary.
        if name.endswith(_EMBEDDING) and len(tensor.shape) == 2 and tensor.shape[0] < vocab_size:
            raise CheckpointRefused(
                "checkpoint_unsupported",
                f"{path}/config.json says vocab_size {vocab_size}, but {name} has {tensor.shape[0]} rows; save the"
                " model again with the config that belongs to it",
            )
    _check_tokenizer(path, contents)
    return CheckpointFiles(
        path=path,
        architecture=str(architectures[0]),
        model_type=config["model_type"],
        vocab_size=vocab_size,
        parameters=parameters.total(),
        dtype=parameters.most_common(1)[0][0],
        may_tie=bool(config.get("tie_word_embeddings", True)),
        tensors=tensors,
        contents=contents,
        weights=Weights(path, tensors),
        end_tokens=configs.end_tokens(config, content.parse(contents, content.GENERATION, path), path),
        quantization=stored,
    )


def resolve_inside(path: Path | str, roots: Sequence[Path]) -> Path:
    """The real path of a checkpoint directory, if it and everything in it lie within the allowed roots.

    Symlinks are followed first, so links that stay inside the roots (the Hugging Face cache's layout) are fine.

    Raises:
        CheckpointRefused: `checkpoint_outside_roots`, or `checkpoint_missing` for a path within that doesn't exist.
    """
    allowed = [Path(os.path.realpath(root)) for root in roots]

    def inside(real: Path) -> bool:
        return any(real.is_relative_to(root) for root in allowed)

    if "\0" in str(path):
        raise CheckpointRefused("checkpoint_missing", "a path cannot contain a NUL character")
    real = Path(os.path.realpath(path))
    if not inside(real):
        raise CheckpointRefused(
            "checkpoint_outside_roots",
            f"{path} is not below an allowed folder ({', '.join(map(str, roots)) or 'none is allowed'});"
            " move it there or allow its folder with LETHE_ROOTS",
        )
    if not real.exists():
        raise CheckpointRefused("checkpoint_missing", f"{path} does not exist")
    for folder, folders, files in os.walk(real):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if entry.is_symlink() and not inside(Path(os.path.realpath(entry))):
                raise CheckpointRefused(
                    "checkpoint_outside_roots",
                    f"{entry.relative_to(real)} in {path} is a link out of the allowed folders; copy the file instead",
                )
    return real


def _list(path: Path) -> set[str]:
    if "\0" in str(path) or not path.exists():
        raise CheckpointRefused("checkpoint_missing", f"{path} does not exist")
    if not path.is_dir():
        raise CheckpointRefused("checkpoint_missing", f"{path} is a file; give the directory that holds the checkpoint")
    try:
        entries = list(path.iterdir())
        # Opening a FIFO blocks forever. transformers also opens files that are not listed here, so the folder must have
        # none at all.
        odd = sorted(entry.name for entry in entries if entry.exists() and not (entry.is_file() or entry.is_dir()))
        if odd:
            raise CheckpointRefused("checkpoint_unreadable", f"{path}/{odd[0]} is not a regular file; remove it")
        return {entry.name for entry in entries}
    except OSError as error:
        raise CheckpointRefused("checkpoint_unreadable", f"{path} cannot be read: {error.strerror}") from error


def _read_config(path: Path, names: set[str], contents: Mapping[str, bytes]) -> dict[str, Any]:
    if "adapter_config.json" in names:
        # transformers would follow it to the base model that it names, wherever that is.
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path} holds a LoRA adapter; merge it first: merge_and_unload(), save_pretrained()",
        )
    if content.CONFIG not in contents:
        raise CheckpointRefused(
            "checkpoint_no_config", f"{path} has no config.json; save the model with save_pretrained()"
        )
    config: dict[str, Any] = content.parse(contents, content.CONFIG, path, "checkpoint_no_config")
    for name in (content.CONFIG, content.GENERATION, content.TOKENIZER_CONFIG):
        configs.check(content.parse(contents, name, path), path / name)
    return config


def _quantization(config: dict[str, Any], path: Path, allowed: bool) -> Quantization | None:
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else {}
    found = config.get("quantization_config") or inner.get("quantization_config")
    if not found:
        return None
    if not allowed:
        raise CheckpointRefused(
            "checkpoint_quantized",
            f"{path} is already quantized; give the unquantized checkpoint here, and name this one among the audit's"
            " artifacts (or a precision in the plan)",
        )
    if not isinstance(found, dict):
        raise CheckpointRefused("checkpoint_unsupported", f"{path}/config.json: quantization_config is not an object")
    return quantization.read(found, path)


def _read_tensors(path: Path, names: set[str]) -> dict[str, Tensor]:
    if _WEIGHTS in names:
        return read_header(path / _WEIGHTS)
    if _INDEX in names:
        return _read_shards(path, names)
    others = sorted(name for name in names if name.endswith(".safetensors"))
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if others:
        raise CheckpointRefused(
            "checkpoint_no_weights", f"{path} has {others[0]} but neither {_WEIGHTS} nor {_INDEX}; save it again"
        )
    if pickles:
        raise CheckpointRefused(
            "checkpoint_pickle",
            f"{path}/{pickles[0]} is a pickle, which can run code when opened; convert it to safetensors on a machine"
            " that trusts it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    raise CheckpointRefused("checkpoint_no_weights", f"{path} has no {_WEIGHTS}")


def _read_shards(path: Path, names: set[str]) -> dict[str, Tensor]:
    index = content.parse({_INDEX: content.read_file(path / _INDEX)}, _INDEX, path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointRefused("checkpoint_unreadable", f"{path}/{_INDEX} has no weight_map; save the model again")
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if shard not in names or not shard.endswith(".safetensors")]
    if missing:
        raise CheckpointRefused(
            "checkpoint_truncated",
            f"{path} lacks {len(missing)} of {len(shards)} shards, first {missing[0]}; copy or download it again",
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        header = read_header(path / shard)
        absent = [name for name, where in weight_map.items() if where == shard and name not in header]
        if absent:
            raise CheckpointRefused(
                "checkpoint_truncated", f"{path}/{shard} lacks {absent[0]!r}, which {_INDEX} puts there; save it again"
            )
        twice = tensors.keys() & header.keys()
        if twice:
            raise CheckpointRefused(
                "checkpoint_unreadable",
                f"{path}/{shard} holds {min(twice)!r}, and so does another shard; save it again",
            )
        tensors |= header
    return tensors


def _check_tokenizer(path: Path, contents: Mapping[str, bytes]) -> None:
    if not any(contents.keys() >= {*group} for group in content.VOCABULARIES):
        raise CheckpointRefused(
            "checkpoint_no_tokenizer",
            f"{path} has no tokenizer (tokenizer.json, tokenizer.model or vocabulary files); save it beside the model:"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    for name in content.TOKENIZER:
        if name.endswith(".json"):
            content.parse(contents, name, path)
