"""A checkpoint as files: what can be known, and refused, without torch.

`inspect` says what a directory holds or refuses it with a sentence that says what to do; `check_pair` says whether two
checkpoints can be compared; `resolve_inside` keeps paths within the folders that the operator allowed.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.checkpoints import quantization
from app.checkpoints.digests import digest
from app.checkpoints.headers import Tensor, read_header
from app.checkpoints.quantization import Quantization
from app.errors import CheckpointRefused, FieldProblem, InvalidRequest

__all__ = [
    "BUFFERS",
    "OUTPUT",
    "CheckpointFiles",
    "Tensor",
    "check_artifact",
    "check_pair",
    "digest",
    "inspect",
    "resolve_inside",
]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Ends of the names of buffers that older transformers saved and newer ones compute: no part of what a model knows."""
OUTPUT = ("lm_head.weight", "embed_out.weight")
"""The output layer's weight, as most architectures name it."""
_EMBEDDING = (".embed_tokens.weight", "wte.weight", ".embed_in.weight", "word_embeddings.weight")
"""What an embedding of the vocabulary is called: Llama and most others; GPT-2; GPT-NeoX; BLOOM and Falcon."""
_SHOWN = 5


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
    tokenizer: Mapping[str, str] = field(repr=False)
    """Tokenizer file -> SHA-256 of its content (of its meaning, where it is JSON)."""
    quantization: Quantization | None = None
    """How its weights are quantized already; None for an unquantized checkpoint."""


def inspect(path: Path | str, *, quantized: bool = False) -> CheckpointFiles:
    """Read the config, the safetensors headers and the tokenizer's files of a checkpoint directory; no weights.

    Args:
        path: The directory.
        quantized: Whether it may be quantized already, as an audit's artifacts are.

    Raises:
        CheckpointRefused: With the code and the way out for everything that Lethe does not open: missing or unreadable
            paths, pickles, truncated or incomplete weights, no config or tokenizer, remote code, quantized weights.
    """
    path = Path(path)
    names = _list(path)
    config = _read_config(path, names)
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
    return CheckpointFiles(
        path=path,
        architecture=str(architectures[0]),
        model_type=config["model_type"],
        vocab_size=vocab_size,
        parameters=parameters.total(),
        dtype=parameters.most_common(1)[0][0],
        may_tie=bool(config.get("tie_word_embeddings", True)),
        tensors=tensors,
        tokenizer=_read_tokenizer(path, names),
        quantization=stored,
    )


def resolve_inside(path: Path | str, roots: Sequence[Path]) -> Path:
    """The real path of a checkpoint directory, if it and everything in it lie within the allowed roots.

    Symlinks are followed first, so links that stay inside the roots (the Hugging Face cache's layout) are fine.

    Raises:
        CheckpointRefused: `checkpoint_outside_roots`, or `checkpoint_missing` for a path inside that doesn't exist.
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


def check_pair(a: CheckpointFiles, b: CheckpointFiles) -> None:
    """Raise unless two checkpoints are the same model with other weights.

    Architecture, vocabulary size, the names and shapes of all tensors and the tokenizer must agree; dtypes may differ.

    Raises:
        InvalidRequest: `pair_mismatch`, listing the first differences.
    """
    found: list[FieldProblem] = []

    def differ(field: str, message: str) -> None:
        found.append(FieldProblem(field=field, message=message))

    if a.architecture != b.architecture:
        differ("architecture", f"{a.architecture} against {b.architecture}")
    if a.vocab_size != b.vocab_size:
        differ("vocab_size", f"{a.vocab_size} against {b.vocab_size}")
    ours, theirs = _comparable(a, b), _comparable(b, a)
    for name in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            differ(f"tensors.{name}", f"only in the {'second' if left is None else 'first'}")
        elif left.shape != right.shape:
            differ(f"tensors.{name}", f"{list(left.shape)} against {list(right.shape)}")
    common = a.tokenizer.keys() & b.tokenizer.keys()
    if not common:
        differ("tokenizer", f"{', '.join(sorted(a.tokenizer))} against {', '.join(sorted(b.tokenizer))}")
    for name in sorted(common):
        if a.tokenizer[name] != b.tokenizer[name]:
            differ(f"tokenizer.{name}", "its content differs")
    if found:
        shown = "; ".join(f"{problem.field}: {problem.message}" for problem in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InvalidRequest(
            "pair_mismatch",
            f"{a.path} and {b.path} are not the same model with other weights: {shown}{more}",
            errors=found[:20],
        )


def check_artifact(model: CheckpointFiles, artifact: CheckpointFiles) -> None:
    """Raise unless the artifact can be a quantized copy of the model: as `check_pair`, by what its packed weights hold.

    Raises:
        CheckpointRefused: `checkpoint_unsupported` when it is not quantized.
        InvalidRequest: `pair_mismatch`, listing the first differences.
    """
    if artifact.quantization is None:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{artifact.path} is not quantized (its config.json has no quantization_config), so it is no artifact;"
            " name a precision in the plan, or audit it as the unlearned checkpoint",
        )
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    tensors = quantization.unpacked(artifact.tensors, artifact.quantization.bits, shapes)
    check_pair(model, replace(artifact, tensors=tensors))


def _comparable(files: CheckpointFiles, other: CheckpointFiles) -> dict[str, Tensor]:
    """The tensors that both must have: without recomputed buffers, and without a tied output saved by only one."""
    tied = files.may_tie and other.may_tie
    return {
        name: tensor
        for name, tensor in files.tensors.items()
        if not name.endswith(BUFFERS) and not (tied and name in OUTPUT and name not in other.tensors)
    }


def _list(path: Path) -> set[str]:
    if "\0" in str(path) or not path.exists():
        raise CheckpointRefused("checkpoint_missing", f"{path} does not exist")
    if not path.is_dir():
        raise CheckpointRefused("checkpoint_missing", f"{path} is a file; give the directory that holds the checkpoint")
    try:
        entries = list(path.iterdir())
        # Opening a FIFO waits for ever; transformers opens files by names of its own, so none may lie there.
        odd = sorted(entry.name for entry in entries if entry.exists() and not (entry.is_file() or entry.is_dir()))
        if odd:
            raise CheckpointRefused("checkpoint_unreadable", f"{path}/{odd[0]} is no regular file; remove it")
        return {entry.name for entry in entries}
    except OSError as error:
        raise CheckpointRefused("checkpoint_unreadable", f"{path} cannot be read: {error.strerror}") from error


def _read_json(path: Path, code: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointRefused("checkpoint_unreadable", f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(code, f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointRefused(code, f"{path} is not a JSON object")
    return content


def _read_config(path: Path, names: set[str]) -> dict[str, Any]:
    if "adapter_config.json" in names:
        # transformers would follow it to the base model that it names, wherever that is.
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path} holds a LoRA adapter; merge it first: merge_and_unload(), save_pretrained()",
        )
    if "config.json" not in names:
        raise CheckpointRefused(
            "checkpoint_no_config", f"{path} has no config.json; save the model with save_pretrained()"
        )
    config = _read_json(path / "config.json", "checkpoint_no_config")
    for name in ("config.json", "tokenizer_config.json"):
        content = _read_json(path / name, "checkpoint_unreadable") if name in names else {}
        if content.get("auto_map"):
            raise CheckpointRefused(
                "checkpoint_remote_code",
                f"{path}/{name} asks for code of its own (auto_map), which Lethe never runs; if transformers has"
                " this architecture itself, load the model without trust_remote_code, save it again and submit that",
            )
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
        raise CheckpointRefused("checkpoint_unsupported", f"{path}/config.json: its quantization_config is no object")
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
    weight_map = _read_json(path / _INDEX, "checkpoint_unreadable").get("weight_map")
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
        tensors |= header
    return tensors


def _read_tokenizer(path: Path, names: set[str]) -> dict[str, str]:
    present = [group for group in _TOKENIZERS if names.issuperset(group)]
    if not present:
        raise CheckpointRefused(
            "checkpoint_no_tokenizer",
            f"{path} has no tokenizer (tokenizer.json, tokenizer.model or vocabulary files); save it beside the model:"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    digests: dict[str, str] = {}
    for name in {name for group in present for name in group}:
        file = path / name
        if name == "tokenizer.json":
            meaning = _read_json(file, "checkpoint_unreadable")
            for changed_by_use in ("truncation", "padding", "version"):
                meaning.pop(changed_by_use, None)
            content = json.dumps(meaning, sort_keys=True).encode()
        else:
            try:
                content = file.read_bytes()
            except OSError as error:
                raise CheckpointRefused("checkpoint_unreadable", f"{file} cannot be read: {error.strerror}") from error
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests
