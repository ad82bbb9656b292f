"""The model store, where remediations store their checkpoints: a folder, or any URL that fsspec supports.

A model's place is `<store>/<trial>/<digest>`: an attempt that repeats another one's work writes the same bytes to
the same place. Nothing here knows the database; rows name a model before it is written (`app.remediations`).
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from app.checkpoints.format.content import RECORD, published
from app.checkpoints.format.digests import digest
from app.errors import AppError, CheckpointRefused, Unavailable
from app.settings import settings

CARD = "README.md"
"""The model card; not part of a checkpoint's digest, so it can be completed once there is a verdict."""

Progress = Callable[[str, int, int], None]


def is_local() -> bool:
    """Whether the store is a folder."""
    return "://" not in root()


def folder() -> Path | None:
    """The store's folder, where it is one."""
    return Path(root()) if is_local() else None


def owns(uri: str) -> bool:
    """Whether this is a model's place in the store, not the store itself or anything above or below the place."""
    below = uri.removeprefix(root() + "/").split("/")
    return uri.startswith(root() + "/") and len(below) == 2 and not {"", ".", ".."} & {*below}


def place(trial_id: str, checkpoint_digest: str) -> str:
    """The URI for a trial's checkpoint; where the store is a folder, its path."""
    return f"{root()}/{trial_id}/{checkpoint_digest.removeprefix('sha256:')[:16]}"


def store(checkpoint: Path, uri: str, card: str, progress: Progress) -> int:
    """Write a checkpoint's files, its record and its card to the store; returns the bytes that they take there.

    Raises:
        Unavailable: `model_store_unavailable`.
    """
    files = [*published(checkpoint), *checkpoint.glob(RECORD)]
    with _reaching(uri) as (files_of, path):
        files_of.makedirs(path, exist_ok=True)
        for number, file in enumerate(files):
            progress("store", number, len(files))
            files_of.put_file(str(file), f"{path}/{file.name}")
        files_of.pipe_file(f"{path}/{CARD}", card.encode())
        progress("store", len(files), len(files))
        stored = _sizes(files_of, path)
    for file in files:
        if stored.get(file.name) != file.stat().st_size:
            raise Unavailable(
                "model_store_unavailable",
                f"{uri}/{file.name} holds {stored.get(file.name)} of {file.stat().st_size} bytes right after it was"
                " written; check the store (LETHE_MODEL_STORE_URL)",
            )
    return sum(stored.values())


def write_card(uri: str, card: str) -> None:
    """Replace a model's card.

    Raises:
        Unavailable: `model_store_unavailable`.
    """
    with _reaching(uri) as (files_of, path):
        files_of.pipe_file(f"{path}/{CARD}", card.encode())


def delete(uri: str) -> None:
    """Delete a model and this machine's copy of it; a model that does not exist counts as deleted.

    Raises:
        Unavailable: `model_store_unavailable`.
    """
    with _reaching(uri) as (files_of, path):
        files_of.invalidate_cache()
        if files_of.exists(path):
            files_of.rm(path, recursive=True)
        above = path.rpartition("/")[0]
        if is_local() and os.path.isdir(above) and not os.listdir(above):
            os.rmdir(above)
    shutil.rmtree(copy_of(uri), ignore_errors=True)


def check_reachable() -> None:
    """Raise unless the store answers.

    Raises:
        Unavailable: `model_store_unavailable`.
    """
    with _reaching(root()) as (files_of, path):
        files_of.invalidate_cache()
        files_of.exists(path)


def local_path(uri: str, expected: str | None = None, progress: Progress | None = None) -> Path:
    """The directory on this machine that holds the checkpoint: a path itself, or the fetched copy of a remote model.

    Args:
        uri: As in a checkpoint's row.
        expected: The digest that a fetched copy must have; one that was fetched before is used as it is.

    Raises:
        CheckpointRefused: `checkpoint_missing` (it was deleted), `checkpoint_changed` (it is not what was stored).
        Unavailable: `model_store_unavailable`.
    """
    if "://" not in uri:
        return Path(uri)
    copy = copy_of(uri)
    if not copy.is_dir():
        _fetch(uri, copy, expected, progress or (lambda stage, done, total: None))
    return copy


def _fetch(uri: str, copy: Path, expected: str | None, progress: Progress) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: two requests, threads of one process, may fetch the same model.
    part = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", suffix=".part", dir=copy.parent))
    part.chmod(0o755)
    try:
        with _reaching(uri) as (files_of, path):
            names = sorted(_sizes(files_of, path))
            for number, name in enumerate(names):
                progress("fetch", number, len(names))
                files_of.get_file(f"{path}/{name}", str(part / name))
            progress("fetch", len(names), len(names))
        if not names:
            raise CheckpointRefused("checkpoint_missing", f"there is no model at {uri}; it may have been deleted")
        found = digest(part)
        if expected is not None and found != expected:
            raise CheckpointRefused(
                "checkpoint_changed", f"the model at {uri} has changed since it was stored ({expected}, now {found})"
            )
        try:
            part.rename(copy)
        except OSError:
            # Another process was faster; its copy is as good.
            if not copy.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sizes(files_of: Any, path: str) -> dict[str, int]:
    """Name -> bytes of a model's files."""
    files_of.invalidate_cache()
    found = files_of.find(path, detail=True)
    return {name.rpartition("/")[2]: int(entry["size"]) for name, entry in found.items()}


def copy_of(uri: str) -> Path:
    """Where this machine keeps its copy of a model of a remote store."""
    return settings().data_dir / "fetched" / hashlib.sha256(uri.encode()).hexdigest()[:32]


def root() -> str:
    """The store: an absolute path, or a URL."""
    url = settings().resolved_model_store_url
    path = url.removeprefix("file://")
    return url if "://" in path else os.path.realpath(path)


@contextmanager
def _reaching(uri: str) -> Iterator[tuple[Any, str]]:
    try:
        yield fsspec.core.url_to_fs(uri)
    except AppError:
        raise
    except Exception as error:  # each filesystem raises its own
        raise Unavailable(
            "model_store_unavailable",
            f"the model store cannot be used at {uri} ({type(error).__name__}: {error}); see LETHE_MODEL_STORE_URL and"
            " its credentials",
        ) from error
