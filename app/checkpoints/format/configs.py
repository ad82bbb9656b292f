"""Configs as they may reach a loader: without what points to other files, chooses code, or only says how to run.

A config is written by the audited party. What it says about the architecture is kept and compared (`pair`); what would
make a loader open another file, fetch a kernel or run code is refused; what says how a machine should run the model
(dtypes, caches, attention kernels) never reaches the loader.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.canonical import sha256
from app.errors import CheckpointRefused

ATTENTION = ("eager", "sdpa")
"""Attention implementations that a checkpoint may choose; the same one serves every role of an audit."""
_KNOWN_ATTENTION = (*ATTENTION, "flash_attention_2", "flash_attention_3", "flex_attention")
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")

_RUNTIME = frozenset(
    {
        *_ATTENTION_KEYS, "device_map", "distributed_config", "dtype", "experts_implementation", "fusion_config",
        "kernel_config", "name_or_path", "torch_dtype", "transformers_version", "use_kernels",
    }
)  # fmt: skip
"""Keys that say where a config came from or how to run it; so do all that begin with an underscore."""

_DEEPEST = 20
"""Configs within configs."""

_ELSEWHERE = (
    "transformers_weights", "configuration_files", "custom_generate", "tokenizer_file", "vocab_file", "merges_file",
    "spm_file",
)  # fmt: skip
"""Keys that name another file to open, or code."""
_HARMLESS = ("special_tokens_map_file", "name_or_path", "_name_or_path", "_commit_hash", "fast_tokenizer_files")
"""Keys of tokenizer configs that also name files, but are common: they are not refused, and do not reach the loader."""


def check(config: Mapping[str, Any], file: Path, depth: int = 0) -> None:
    """Raise when a config asks for code, for another file or for a kernel, or is nested too deeply.

    Raises:
        CheckpointRefused: `checkpoint_remote_code`, `checkpoint_unsupported`.
    """
    if depth > _DEEPEST:
        raise CheckpointRefused("checkpoint_unsupported", f"{file} is nested more than {_DEEPEST} levels deep")
    if config.get("auto_map"):
        raise CheckpointRefused(
            "checkpoint_remote_code",
            f"{file} asks for code of its own (auto_map), which Lethe never runs; if transformers has"
            " this architecture itself, load the model without trust_remote_code, save it again and submit that",
        )
    for key in _ELSEWHERE:
        if config.get(key):
            raise CheckpointRefused(
                "checkpoint_unsupported",
                f"{file} names another file in {key}; only files with the usual names in the folder itself are audited:"
                " put its content there and remove the key",
            )
    for key in _ATTENTION_KEYS:
        chosen = config.get(key)
        for one in chosen.values() if isinstance(chosen, dict) else [chosen]:
            if one is not None and one not in _KNOWN_ATTENTION:
                raise CheckpointRefused(
                    "checkpoint_unsupported",
                    f"{file} asks for the attention kernel {one!r} ({key}), which Lethe does not fetch; remove"
                    f" the key, or name {' or '.join(ATTENTION)}",
                )
    for value in config.values():
        if isinstance(value, dict):
            check(value, file, depth + 1)


def cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it reaches the loader."""
    return {
        key: cleaned(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _RUNTIME and not key.startswith("_")
    }


def cleaned_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's config as it reaches the loader."""
    return {key: value for key, value in config.items() if key not in (*_HARMLESS, *_ELSEWHERE)}


def attention(config: Mapping[str, Any]) -> str | None:
    """The attention implementation that a config chooses; None where the default is meant."""
    chosen = next((config[key] for key in _ATTENTION_KEYS if config.get(key)), None)
    return chosen if chosen in ATTENTION else None


def end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any], folder: Path) -> list[int] | None:
    """The ids that end a generation: the generation config's, else the config's; None where neither gives any.

    Raises:
        CheckpointRefused: `checkpoint_unsupported` for what is not an id.
    """
    inner = config.get("text_config")
    for source in (generation, config, inner if isinstance(inner, dict) else {}):
        found = source.get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(one) is int and one >= 0 for one in ids):
            raise CheckpointRefused(
                "checkpoint_unsupported", f"{folder}: eos_token_id is {found!r}, not a token id or a list of them"
            )
        return sorted(set(ids))
    return None


def canonical(content: Any) -> bytes:
    """JSON in one form: the same for the same content however it was written.

    Raises:
        CheckpointRefused: `checkpoint_unreadable` where it is nested too deeply.
    """
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError as error:
        raise CheckpointRefused("checkpoint_unreadable", "one of its JSON files is nested too deeply") from error


def digest(content: Any) -> str:
    """`sha256:…` over the canonical JSON."""
    return sha256(canonical(content))
