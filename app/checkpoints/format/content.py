"""A checkpoint's small files: which of them are read, and their bytes and JSON as they were when they were read.

Each is read once, so the same bytes are checked, compared, digested and given to a loader. No other file of the folder
reaches a loader.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.checkpoints.format.headers import no_doubles, open_regular
from app.errors import CheckpointRefused

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"

VOCABULARIES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)
"""Files that make a tokenizer: at least one of these groups must be complete."""

TOKENIZER = (*(name for group in VOCABULARIES for name in group), TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
"""What a tokenizer is loaded from."""
NAMES = (CONFIG, GENERATION, *TOKENIZER)

_LARGEST = 512 << 20
"""The most bytes that such a file may have; the largest vocabularies in use have about 40 MB."""


RECORD = "unlearning.json"
"""The record of the unlearning that made a checkpoint, kept beside its weights."""
_PUBLISHED = (".safetensors", ".json", ".model", ".txt", ".jinja")


def published(folder: Path) -> list[Path]:
    """The files of the top folder that are copied with a checkpoint: its own, and others such as templates.

    The record, README, dotfiles and folders are not among them.
    """
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix in _PUBLISHED
        and not entry.name.startswith(".")
        and not entry.name.upper().startswith("README")
        and entry.name != RECORD
        and entry.is_file()
    )


def read(folder: Path, present: set[str]) -> dict[str, bytes]:
    """Name -> bytes, for those of the files that exist.

    Raises:
        CheckpointRefused: `checkpoint_unreadable`.
    """
    return {name: read_file(folder / name) for name in NAMES if name in present}


def parse(contents: Mapping[str, bytes], name: str, folder: Path, code: str = "checkpoint_unreadable") -> Any:
    """The JSON object in a file; empty where there is no such file.

    Raises:
        CheckpointRefused: with `code`, for what is not a JSON object, for a name given twice in one object, and for NaN
            and infinity, which are not JSON: parsers disagree about these.
    """
    if name not in contents:
        return {}
    try:
        found = json.loads(contents[name], parse_constant=_no_constant, object_pairs_hook=no_doubles)
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(code, f"{folder / name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointRefused(code, f"{folder / name} is not a JSON object")
    return found


def read_file(file: Path) -> bytes:
    """A small file's bytes.

    Raises:
        CheckpointRefused: `checkpoint_unreadable`, also when the file is too large.
    """
    found = bytearray()
    with open_regular(file) as opened:
        while more := opened.read(1 << 20):
            found += more
            if len(found) > _LARGEST:
                raise CheckpointRefused(
                    "checkpoint_unreadable", f"{file} is larger than {_LARGEST >> 20} MB, too large for {file.name}"
                )
    return bytes(found)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
