"""From what a request names (a path, a file:// URI) to files that this service may read."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.checkpoints import files
from app.checkpoints.files import CheckpointFiles
from app.errors import CheckpointRefused, ForgetSetRefused
from app.forget_sets import bundle
from app.settings import settings


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found, checked and digested."""

    uri: str
    """The real path: what workers open."""
    digest: str
    files: CheckpointFiles


def open_checkpoint(uri: str, *, quantized: bool = False) -> Source:
    """The checkpoint at a URI. Reads all its files once (later calls use the cached digests); needs no database.

    Args:
        uri: A path or a file:// URI.
        quantized: Whether it may be quantized already.

    Raises:
        CheckpointRefused: for everything that keeps it from being audited, with what to do.
    """
    path = files.resolve_inside(_checkpoint_path(uri), settings().roots)
    found = files.inspect(path, quantized=quantized)
    return Source(str(path), files.digest(path, cache=settings().data_dir / "digests.sqlite"), found)


def read_forget_set(uri: str) -> tuple[str, dict[str, bytes]]:
    """The real path and the files of the bundle in a directory under the allowed roots.

    Raises:
        ForgetSetRefused: `forget_set_missing`, `forget_set_outside_roots`, `forget_set_unknown_file`.
    """
    path = _local_path(uri)
    if path is None:
        raise ForgetSetRefused(
            "forget_set_missing", f"{uri}: give an absolute path or a file:// URI, or upload the files themselves"
        )
    return str(path), bundle.read_directory(path, settings().roots)


def _checkpoint_path(uri: str) -> Path:
    if (path := _local_path(uri)) is not None:
        return path
    if ":" not in uri:
        # Or a name on the hub, which looks the same.
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{uri} is a relative path; give the absolute path of a folder on the service's own machine"
            " (a model of the Hugging Face hub must be downloaded first: hf download … --local-dir /an/allowed/folder)",
        )
    if uri.startswith(("hf://", "hub://", "https://huggingface.co/")):
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{uri} names a hub repository, which this version does not fetch; download it"
            " (hf download … --local-dir /an/allowed/folder) and give that folder's path",
        )
    raise CheckpointRefused(
        "checkpoint_unsupported", f"{uri}: give an absolute path or a file:// URI on the service's own machine"
    )


def _local_path(uri: str) -> Path | None:
    if uri.startswith("/"):
        return Path(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return Path(unquote(parts.path))
    return None
