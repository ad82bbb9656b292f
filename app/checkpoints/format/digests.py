"""A checkpoint's digests, which identify it wherever it is stored and however it is cut into files.

    tensors     SHA-256 over a line for each tensor, sorted by name:
                `<sha256 of its bytes>  <dtype>  <shape, joined by x>  <name>`
    interface   SHA-256 over everything else that decides what a model says: config, generation config, tokenizer, as
                they reach the loader
    digest      SHA-256 over `<tensors>  tensors` and a line for each small file that is read, sorted by name:
                `<sha256 of its bytes>  <name>`

The digest identifies a checkpoint; its evaluations are shared by its tensors, its interface and the original's. All are
written as `sha256:<64 hex digits>`. Files in the folder that are not read (README, `unlearning.json`, others) are in
none of them.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from app.canonical import sha256
from app.checkpoints.format import configs, content
from app.checkpoints.format.files import CheckpointFiles, inspect
from app.errors import CheckpointRefused

_SETTLED_NS = 2_000_000_000


class Identity(NamedTuple):
    """A checkpoint's digests (see the module)."""

    digest: str
    tensors: str
    interface: str


class Expected(NamedTuple):
    """Digests that were named before anything was read; None where none was."""

    checkpoint: str | None = None
    interface: str | None = None
    base: str | None = None


NOTHING_EXPECTED = Expected()


def digest(path: Path, cache: Path | None = None) -> str:
    """The digest of the checkpoint in `path`, which may be quantized.

    Raises:
        CheckpointRefused: as `inspect`; `checkpoint_changed` when a file was written to while it was read.
    """
    return identity(inspect(path, quantized=True), cache).digest


def identity(files: CheckpointFiles, cache: Path | None = None) -> Identity:
    """A checkpoint's digests; reads those of its tensors that were not read before.

    Args:
        files: From `inspect`.
        cache: A SQLite file (created when missing) that remembers what files held, so that unchanged ones are read
            once. A file counts as unchanged while its path, device, inode, size, mtime and *ctime* are: only the kernel
            sets the ctime, and no program can set it back. To measure a checkpoint, pass none: then every byte is
            hashed. A cache that cannot be used costs time, never an error.

    Raises:
        CheckpointRefused: `checkpoint_unreadable`, `checkpoint_changed`.
    """
    hashes = files.weights.hashes() if cache is None else _remembered(files, cache)
    tensors = _tensors(files, hashes)
    small = {name: hashlib.sha256(data).hexdigest() for name, data in files.contents.items()}
    lines = [f"{value}  {name}" for name, value in sorted(small.items())]
    return Identity(
        digest=_over([f"{tensors}  tensors", *lines]),
        tensors=tensors,
        interface=interface(files),
    )


def check_digest(path: Path, found: str, expected: str | None) -> None:
    """Raise unless what was read has the digest that was named, if one was.

    Raises:
        CheckpointRefused: `checkpoint_changed`.
    """
    if expected is not None and found != expected:
        raise CheckpointRefused(
            "checkpoint_changed",
            f"the files in {path} are no longer those that were registered ({expected}, now {found});"
            " register the directory again and resubmit",
        )


def interface(files: CheckpointFiles) -> str:
    """The digest of config, generation config and tokenizer as they reach the loader; reads no tensor."""
    tokenizer = {
        name: hashlib.sha256(data).hexdigest() for name, data in files.contents.items() if name in content.TOKENIZER
    }
    if content.TOKENIZER_CONFIG in tokenizer:
        tokenizer[content.TOKENIZER_CONFIG] = configs.digest(
            configs.cleaned_tokenizer(files.json(content.TOKENIZER_CONFIG))
        )
    config = files.json(content.CONFIG)
    return configs.digest(
        {
            "tokenizer": tokenizer,
            "attention": configs.attention(config),
            "config": configs.cleaned(config),
            "generation": configs.cleaned(files.json(content.GENERATION)),
        }
    )


def _tensors(files: CheckpointFiles, hashes: Mapping[str, str]) -> str:
    return _over(
        [
            f"{hashes[name]}  {tensor.dtype}  {'x'.join(map(str, tensor.shape))}  {name}"
            for name, tensor in sorted(files.tensors.items())
        ]
    )


def _over(lines: list[str]) -> str:
    return sha256("".join(f"{line}\n" for line in lines).encode())


def _remembered(files: CheckpointFiles, cache: Path) -> dict[str, str]:
    """Tensor -> SHA-256, from the cache where the file is unchanged."""
    shards: dict[str, list[str]] = {}
    for name, tensor in files.tensors.items():
        shards.setdefault(tensor.file, []).append(name)
    found: dict[str, str] = {}
    with closing(_Cache(cache)) as known:
        before = {shard: _key(files.path / shard) for shard in shards}
        for shard, names in shards.items():
            remembered = known.get(before[shard])
            if remembered is not None and remembered.keys() >= {*names}:
                found |= remembered
        if found.keys() >= files.tensors.keys():
            return found
        found = files.weights.hashes()
        for shard, names in shards.items():
            if _key(files.path / shard) != before[shard]:
                raise CheckpointRefused(
                    "checkpoint_changed",
                    f"{files.path / shard} changed while it was read; leave it unchanged, try again",
                )
            known.put(before[shard], {name: found[name] for name in names})
    return found


class _Key(NamedTuple):
    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def _key(file: Path) -> _Key:
    try:
        real = os.path.realpath(file)
        stat = os.stat(real)
    except OSError as error:
        raise CheckpointRefused("checkpoint_unreadable", f"{file} cannot be read: {error.strerror}") from error
    return _Key(real, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class _Cache:
    """A file's identity when it was read -> the SHA-256 of its tensors, in SQLite, shared by all processes."""

    def __init__(self, path: Path) -> None:
        self.connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=10, isolation_level=None)
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS tensor_digests (path TEXT PRIMARY KEY, file TEXT, tensors TEXT)"
            )
        except (sqlite3.Error, OSError):
            self.close()

    def get(self, key: _Key) -> dict[str, str] | None:
        if self.connection is None:
            return None
        try:
            row = self.connection.execute(
                "SELECT tensors FROM tensor_digests WHERE path = ? AND file = ?", (key.path, json.dumps(key[1:]))
            ).fetchone()
        except sqlite3.Error:
            return None
        return dict(json.loads(row[0])) if row else None

    def put(self, key: _Key, tensors: Mapping[str, str]) -> None:
        # A file written to within the clock's grain can change again at the same time (git's "racily clean").
        if self.connection is None or time.time_ns() - max(key.mtime_ns, key.ctime_ns) < _SETTLED_NS:
            return
        try:
            self.connection.execute(
                "INSERT OR REPLACE INTO tensor_digests VALUES (?, ?, ?)",
                (key.path, json.dumps(key[1:]), json.dumps(dict(tensors))),
            )
        except sqlite3.Error:
            return

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
