"""A checkpoint's digest: what it is, wherever it lies.

`sha256:` + SHA-256 over the lines `<sha256 of the file>  <name>`, sorted by name, of the files that make a checkpoint.
With coreutils: `LC_ALL=C; sha256sum *.safetensors *.json *.model *.txt *.jinja | sort -k2 | sha256sum`. What tells
about the checkpoint and is not read to open it (README, `unlearning.json`) is left out: it may name the digest itself.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from stat import S_ISREG

from app.errors import CheckpointRefused

SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")
RECORD = "unlearning.json"
"""The record of the unlearning that made a checkpoint, kept beside its weights."""
_CHUNK = 4 << 20
_SETTLED_NS = 2_000_000_000


def relevant_files(path: Path) -> list[Path]:
    """The files of the top folder that the digest covers, by name; README, record, dotfiles and folders are not."""
    return sorted(
        (
            entry
            for entry in path.iterdir()
            if entry.suffix in SUFFIXES
            and not entry.name.startswith(".")
            and not entry.name.upper().startswith("README")
            and entry.name != RECORD
            and entry.is_file()
        ),
        key=lambda entry: entry.name.encode(),
    )


def digest(path: Path, cache: Path | None = None) -> str:
    """The digest of the checkpoint in `path`, as `sha256:<64 hex digits>`.

    Args:
        path: The checkpoint's directory.
        cache: A SQLite file (made when missing) that remembers files' digests by path, size, mtime and inode, so that
            unchanged weights are read once. A cache that cannot be used costs time, never an error.

    Raises:
        CheckpointRefused: `checkpoint_missing`, `checkpoint_unreadable`, or `checkpoint_changed` when a file was
            written to while it was read.
    """
    total = hashlib.sha256()
    try:
        with closing(_Cache(cache)) as known:
            for file in relevant_files(path):
                total.update(f"{_of_file(file, known)}  {file.name}\n".encode())
    except FileNotFoundError as error:
        raise CheckpointRefused("checkpoint_missing", f"{error.filename or path} does not exist") from error
    except OSError as error:
        raise CheckpointRefused(
            "checkpoint_unreadable", f"{error.filename or path} cannot be read: {error.strerror}"
        ) from error
    return f"sha256:{total.hexdigest()}"


def _of_file(file: Path, known: "_Cache") -> str:
    before = _key(file)
    if (found := known.get(before)) is not None:
        return found
    result = hashlib.sha256()
    for chunk in _chunks(file):
        result.update(chunk)
    if _key(file) != before:
        raise CheckpointRefused(
            "checkpoint_changed", f"{file.name} was written to while it was read; submit it once it is complete"
        )
    known.put(before, result.hexdigest())
    return result.hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _key(file: Path) -> tuple[str, int, int, int]:
    real = os.path.realpath(file)
    stat = os.stat(real)
    if not S_ISREG(stat.st_mode):
        raise CheckpointRefused("checkpoint_unreadable", f"{file.name} is no regular file; remove it")
    return real, stat.st_size, stat.st_mtime_ns, stat.st_ino


class _Cache:
    """(path, size, mtime, inode) -> SHA-256, in SQLite so that the API and all workers share it."""

    def __init__(self, path: Path | None) -> None:
        self.connection: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=10, isolation_level=None)
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS file_digests"
                " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode TEXT, sha256 TEXT)"
            )
        except (sqlite3.Error, OSError):
            self.close()

    def get(self, key: tuple[str, int, int, int]) -> str | None:
        if self.connection is None:
            return None
        path, size, mtime_ns, inode = key
        try:
            row = self.connection.execute(
                "SELECT sha256 FROM file_digests WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?",
                (path, size, mtime_ns, str(inode)),
            ).fetchone()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None

    def put(self, key: tuple[str, int, int, int], sha256: str) -> None:
        path, size, mtime_ns, inode = key
        # A file written to within the clock's grain can change again under the same mtime (git's "racily clean").
        if self.connection is None or time.time_ns() - mtime_ns < _SETTLED_NS:
            return
        try:
            self.connection.execute(
                "INSERT OR REPLACE INTO file_digests VALUES (?, ?, ?, ?, ?)",
                (path, size, mtime_ns, str(inode), sha256),
            )
        except sqlite3.Error:
            return

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
